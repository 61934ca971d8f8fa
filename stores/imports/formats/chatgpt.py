"""ChatGPT's export: `conversations.json`, a list of conversations. Each is a tree of messages (`mapping`), in which an
edit or a regenerated answer is a branch; only the branch that leads to `current_node` is read.

What a tool shows in a chat is a turn of its own role; system messages, hidden ones, thoughts and calls of tools are
left out. A title can change between two exports and is not kept: it would make every message of the chat a new one.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from common.types import Json
from stores.imports.chat import Message, Skipped, digest, fault, left_out, said, text_of, time_or_none

ROLES = ("user", "assistant", "tool")
_INNER = {
    "user_editable_context": "custom instructions",
    "model_editable_context": "custom instructions",
    "thoughts": "thoughts of the model",
    "reasoning_recap": "thoughts of the model",
}


def fits(document: Any) -> bool:
    return isinstance(document, Mapping) and isinstance(document.get("mapping"), Mapping)


def read(document: Any) -> Iterator[Json | Skipped]:
    mapping = document["mapping"]
    branch = _branch(mapping, document.get("current_node"))
    found = [each for turn, node in enumerate(branch) for each in _message(node, turn)]
    name = str(document.get("conversation_id") or document.get("id") or digest(mapping))
    if not any(isinstance(each, Message) for each in found):
        yield left_out("a conversation without a message")
    yield from said(found, source="chatgpt", conversation=name, began=document.get("create_time"))
    if others := sum(_has_message(node) for node in mapping.values()) - sum(map(_has_message, branch)):
        yield from (left_out("a message of another branch") for _ in range(others))


def _branch(mapping: Mapping[str, Any], current: Any) -> list[Mapping[str, Any]]:
    """The nodes from the root to `current`, or to the newest message where that is missing."""
    if not isinstance(current, str) or current not in mapping:
        nodes = ((key, node) for key, node in mapping.items() if _has_message(node))
        current = max(nodes, key=lambda each: _created(each[1]), default=(None, None))[0]
    branch, seen = [], set()
    while isinstance(current, str) and current not in seen and isinstance(mapping.get(current), Mapping):
        seen.add(current)
        branch.append(mapping[current])
        current = mapping[current].get("parent")
    return branch[::-1]


def _has_message(node: Any) -> bool:
    return isinstance(node, Mapping) and isinstance(node.get("message"), Mapping)


def _created(node: Mapping[str, Any]) -> float:
    return time_or_none(node["message"].get("create_time")) or 0.0


def _message(node: Mapping[str, Any], turn: int) -> Iterator[Message | Skipped]:
    if not _has_message(node):
        return  # the root
    message = node["message"]
    author, content = _object(message.get("author")), _object(message.get("content"))
    role = author.get("role")
    if role == "system" or _object(message.get("metadata")).get("is_visually_hidden_from_conversation"):
        yield left_out("a system message or a hidden one")
    elif (kind := content.get("content_type")) in _INNER:
        yield left_out(_INNER[kind])
    elif role == "assistant" and message.get("recipient") not in (None, "all"):
        yield left_out("a call of a tool")
    elif role not in ROLES:
        yield fault(
            f"message {str(message.get('id'))[:64]!r}: role {str(role)[:64]!r}; valid: {', '.join(ROLES)}"
        )
    else:
        yield from _content(content, turn, role, message.get("create_time"))


def _content(content: Mapping[str, Any], turn: int, role: str, time: Any) -> Iterator[Message | Skipped]:
    parts = content.get("parts")
    text = text_of(parts if isinstance(parts, list) else content.get("text") or content.get("result"))
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, Mapping) and not part.get("text"):
            yield left_out("an image or another attachment")
    if text:
        yield Message(turn, role, text, time)
    else:
        yield left_out("a message without text")


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
