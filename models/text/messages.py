"""Chat messages as every path takes them: a role and plain text. No torch: the API checks them here first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import InvalidInput

# Private-use characters: they mark where a piece is cut out of a rendered chat template.
MEMORIES = "\ue000memories\ue001"
RESPONSE = "\ue000response\ue001"

Message = Mapping[str, Any]


@dataclass(frozen=True)
class TokenText:
    """A text to continue that came as token ids of the served model; `text` is what they decode to."""

    ids: tuple[int, ...]
    text: str = ""


Messages = Sequence[Message] | str | TokenText  # a chat, or a text to continue


def check_messages(messages: Sequence[Message]) -> list[dict]:
    """Normalise to role and plain text. Raises `InvalidInput` naming the first bad message."""
    if not messages:
        raise InvalidInput("messages is empty; give at least one", param="messages")
    return [_check_message(i, message) for i, message in enumerate(messages)]


def _check_message(i: int, message: Message) -> dict:
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "developer", "user", "assistant"):
        raise InvalidInput(f"messages[{i}].role = {role!r}; one of system, user, assistant", param="messages")
    if isinstance(content, list):  # OpenAI's content parts
        if not all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
            raise InvalidInput(f"messages[{i}].content has parts that are not text", param="messages")
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise InvalidInput(f"messages[{i}].content must be a string", param="messages")
    check_text(content, f"messages[{i}].content")
    return {"role": "system" if role == "developer" else role, "content": content}


def check_text(text: str, name: str) -> str:
    """The text as it is. Raises `InvalidInput` where it holds what no prompt can; `name` says which text it is."""
    param = name.partition("[")[0]
    if MEMORIES in text or RESPONSE in text:
        raise InvalidInput(f"{name} holds a reserved marker (U+E000)", param=param)
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise InvalidInput(f"{name} holds half a surrogate pair; send whole characters", param=param)
    return text
