"""ShareGPT, as data sets of chats are kept: `{"id", "conversations": [{"from": "human", "value": ...}]}`."""

from collections.abc import Iterator, Mapping
from typing import Any

from common.types import Json
from stores.imports.chat import Message, Skipped, digest, fault, left_out, said, text_of

ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
}
LEFT_OUT = ("system", "tool", "function", "function_call", "function_response", "observation")


def is_message(document: Any) -> bool:
    return isinstance(document, Mapping) and "from" in document and "value" in document


def fits(document: Any) -> bool:
    if isinstance(document, Mapping):
        document = document.get("conversations", document.get("conversation"))
    return isinstance(document, list) and any(map(is_message, document))


def read(document: Any) -> Iterator[Json | Skipped]:
    chat = document if isinstance(document, Mapping) else {"conversations": document}
    messages = chat["conversations"] if "conversations" in chat else chat["conversation"]
    found = [_message(message, turn) for turn, message in enumerate(messages)]
    name = str(chat.get("id") or digest(messages))
    yield from said(found, source="sharegpt", conversation=name, began=chat.get("create_time"))


def _message(message: Any, turn: int) -> Message | Skipped:
    where = f"conversations[{turn}]"
    if not is_message(message) or not isinstance(message["from"], str):
        return fault(f"{where}: must be an object with from and value")
    speaker, text = message["from"].lower(), text_of(message["value"])
    if speaker in LEFT_OUT:
        return left_out(f"a message of role {speaker}")
    if speaker not in ROLES:
        return fault(f"{where}: from {speaker[:64]!r}; valid: {', '.join((*ROLES, *LEFT_OUT))}")
    return Message(turn, ROLES[speaker], text) if text else fault(f"{where}: value is empty")
