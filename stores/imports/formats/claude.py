"""Claude's export: `conversations.json`, a list of conversations with `chat_messages`."""

from collections.abc import Iterator, Mapping
from typing import Any

from common.types import Json
from stores.imports.chat import Message, Skipped, digest, fault, left_out, said, text_of

ROLES = {"human": "user", "user": "user", "assistant": "assistant"}


def fits(document: Any) -> bool:
    return isinstance(document, Mapping) and "chat_messages" in document


def read(document: Any) -> Iterator[Json | Skipped]:
    messages = document["chat_messages"]
    listed = messages if isinstance(messages, list) else []
    if not listed:
        yield left_out("a conversation without a message")
    found = [each for turn, message in enumerate(listed) for each in _message(message, turn)]
    name = str(document.get("uuid") or digest(listed))
    yield from said(found, source="claude", conversation=name, began=document.get("created_at"))


def _message(message: Any, turn: int) -> Iterator[Message | Skipped]:
    sender = message.get("sender") if isinstance(message, Mapping) else None
    if not isinstance(sender, str) or sender not in ROLES:
        yield fault(f"chat_messages[{turn}]: sender {str(sender)[:64]!r}; valid: {', '.join(ROLES)}")
        return
    content = message.get("content")
    blocks = content if isinstance(content, list) else []
    for block in blocks:
        if isinstance(block, Mapping) and block.get("type") != "text":
            yield left_out(f"a block of type {str(block.get('type'))[:32]}")
    for name in ("attachments", "files"):
        yield from (left_out("an attachment") for _ in message.get(name) or ())
    written = [block for block in blocks if isinstance(block, Mapping) and block.get("type") == "text"]
    if text := text_of(written) or text_of(message.get("text")):
        yield Message(turn, ROLES[sender], text, message.get("created_at"))
    else:
        yield left_out("a message without text")
