"""OpenAI's messages: `{"messages": [{"role", "content"}]}` as a transcript or a line for fine-tuning, or a bare list.

One episodic experience for each message of the user or the assistant. Ids are made from what is yielded here, so a
change of it would write every transcript that was taught before once more.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from common.errors import InvalidInput
from common.types import Json
from stores.imports.chat import TICK_S, Skipped, digest, fault, left_out, text_of
from stores.memory.memory import parse_time

TAUGHT_ROLES = ("user", "assistant")
SKIPPED_ROLES = ("system", "developer", "tool", "function")


def is_message(document: Any) -> bool:
    return isinstance(document, Mapping) and "role" in document and "text" not in document


def fits(document: Any) -> bool:
    if isinstance(document, list):
        return any(map(is_message, document))
    return isinstance(document, Mapping) and "messages" in document


def read(document: Any) -> Iterator[Json | Skipped]:
    """Raises `InvalidInput` where there are no messages or the transcript's own time is none."""
    transcript = {"messages": document} if isinstance(document, list) else document
    messages = transcript["messages"]
    if not isinstance(messages, list) or not messages:
        raise InvalidInput("messages: must be a list that is not empty", param="messages")
    conversation = str(transcript.get("conversation", transcript.get("id")) or digest(messages))
    began = transcript.get("time")
    if began is not None:
        began = parse_time(began, "time")
    for turn, message in enumerate(messages):
        found = _experience(message, turn, began)
        yield {**found, "conversation": conversation} if isinstance(found, dict) else found


def _experience(message: Any, turn: int, began: float | None) -> Json | Skipped:
    where = f"messages[{turn}]"
    if not isinstance(message, Mapping):
        return fault(f"{where}: must be an object with role and content")
    role = message.get("role")
    if role in SKIPPED_ROLES:
        return left_out(f"a message of role {role}")
    if role not in TAUGHT_ROLES:
        known = ", ".join(TAUGHT_ROLES + SKIPPED_ROLES)
        return fault(f"{where}: role {str(role)[:64]!r}; valid: {known}")
    content = text_of(message.get("content"))
    if not content and (message.get("tool_calls") or message.get("function_call")):
        return left_out("a call of a tool")
    if not content:
        return fault(f"{where}: content is empty")
    return {
        "kind": "episodic",
        "text": f"{role}: {content}",
        "time": message.get("time", None if began is None else began + turn * TICK_S),
        "context": {"role": role, "turn": turn},
    }
