"""LangChain's messages: `{"type": "human", "data": {"content"}}` (`messages_to_dict`), `{"type": "human", "content"}`
(`model_dump`) and `{"lc": 1, "id": [..., "HumanMessage"], "kwargs": {"content"}}` (`dumpd`); a list of them, one a
line, or under `messages`."""

from collections.abc import Iterator, Mapping
from typing import Any

from common.types import Json
from stores.imports.chat import Message, Skipped, digest, fault, left_out, said, text_of

ROLES = {"human": "user", "ai": "assistant", "system": "", "tool": "", "function": "", "remove": ""}


def is_message(document: Any) -> bool:
    return isinstance(document, Mapping) and (
        ("lc" in document and isinstance(document.get("kwargs"), Mapping))
        or (isinstance(document.get("type"), str) and isinstance(document.get("data"), Mapping))
        or ("content" in document and "role" not in document and _kind(document)[0] in ROLES)
    )


def fits(document: Any) -> bool:
    listed = document.get("messages") if isinstance(document, Mapping) else document
    return isinstance(listed, list) and any(map(is_message, listed))


def read(document: Any) -> Iterator[Json | Skipped]:
    chat = document if isinstance(document, Mapping) else {"messages": document}
    messages = chat["messages"]
    found = [_message(message, turn) for turn, message in enumerate(messages)]
    name = str(chat.get("session_id") or chat.get("thread_id") or chat.get("id") or digest(messages))
    yield from said(found, source="langchain", conversation=name, began=chat.get("created_at"))


def _message(message: Any, turn: int) -> Message | Skipped:
    where = f"messages[{turn}]"
    if not is_message(message):
        return fault(f"{where}: must be a serialised message")
    speaker, data = _kind(message)
    content = data.get("content")
    if speaker in ("chat", "generic"):  # ChatMessage: any role
        speaker = {"user": "human", "assistant": "ai"}.get(str(data.get("role")), str(data.get("role")))
    if speaker not in ROLES:
        return fault(f"{where}: type {speaker[:64]!r}; valid: {', '.join(ROLES)}")
    if not ROLES[speaker]:
        return left_out(f"a message of role {speaker}")
    if text := text_of(content):
        return Message(turn, ROLES[speaker], text, _time(data))
    if data.get("tool_calls") or data.get("additional_kwargs"):
        return left_out("a call of a tool")
    return fault(f"{where}: content is empty")


def _kind(message: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The type in lower case without `Message` or `MessageChunk` (`AIMessageChunk` is `ai`), and the fields."""
    path, data = message.get("id"), message.get("kwargs")
    if "lc" in message and isinstance(path, list) and path and isinstance(data, Mapping):
        kind = str(path[-1])
    else:
        kind, data = str(message.get("type")), message.get("data", message)
    return kind.removesuffix("Chunk").removesuffix("Message").lower(), data


def _time(data: Mapping[str, Any]) -> Any:
    """LangChain has no time; applications put one beside the content."""
    extra = data.get("additional_kwargs")
    return extra.get("timestamp") if isinstance(extra, Mapping) else None
