"""Letta's agent file (`.af`): the memory blocks of an agent, and its messages.

Of today `{"agents": [{"messages", "block_ids"}], "blocks": [...]}`, of before one agent with `core_memory` and
`messages`. An assistant speaks by calling `send_message`; what it writes beside that are its thoughts. A later file may
lack early messages, so a message has no number of its turn.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from common.types import Json
from stores.imports.chat import (
    Message,
    Skipped,
    digest,
    fault,
    left_out,
    objects,
    said,
    text_of,
    time_or_none,
)


def fits(document: Any) -> bool:
    if not isinstance(document, Mapping):
        return False
    return isinstance(document.get("agents"), list) or isinstance(document.get("core_memory"), list)


def read(document: Any) -> Iterator[Json | Skipped]:
    agents = document["agents"] if isinstance(document.get("agents"), list) else [document]
    blocks = [*_listed(document.get("blocks"))]
    for _, agent in objects(agents):
        blocks += _listed(agent.get("core_memory"))
    for i, block in enumerate(blocks):
        yield _block(block, i)
    for number, agent in objects(agents):
        yield from _messages(agent, number)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _block(block: Any, number: int) -> Json | Skipped:
    if not isinstance(block, Mapping) or not isinstance(block.get("value"), str):
        return fault(f"blocks[{number}]: needs a label and a value")
    if not block["value"].strip():
        return left_out("a block without text")
    return {
        "kind": "episodic",
        "text": block["value"].strip(),
        "time": time_or_none(block.get("created_at")),
        "context": {"source": "letta", "block": str(block.get("label"))},
    }


def _messages(agent: Mapping[str, Any], number: int) -> Iterator[Json | Skipped]:
    messages = _listed(agent.get("messages"))
    found = [each for turn, message in enumerate(messages) for each in _message(message, turn)]
    name = f"{agent.get('name') or 'agent'}:{agent.get('id') or number}:{digest(agent.get('created_at'))}"
    yield from said(found, source="letta", conversation=name, began=agent.get("created_at"))


def _message(message: Any, turn: int) -> Iterator[Message | Skipped]:
    if not isinstance(message, Mapping):
        yield fault(f"messages[{turn}]: must be an object with role and content")
        return
    role, time = message.get("role"), message.get("created_at")
    text = text_of(message.get("content")) or text_of(message.get("text"))
    if role == "assistant" and (spoken := _spoken(message.get("tool_calls"))):
        yield Message(None, "assistant", spoken, time)
    elif role == "assistant" and message.get("tool_calls"):
        yield left_out("a call of a tool")
    elif role not in ("user", "assistant"):
        yield left_out(f"a message of role {str(role)[:32]}")
    elif not (text := _unpacked(text)):
        yield left_out("a message without text, or an event of the system")
    else:
        yield Message(None, role, text, time)


def _spoken(calls: Any) -> str:
    """What the calls of `send_message` say."""
    functions = (call.get("function") for _, call in objects(calls))
    sent = [each for each in functions if isinstance(each, Mapping) and each.get("name") == "send_message"]
    said_ = (_json(each.get("arguments")) for each in sent)
    return "\n".join(str(each["message"]).strip() for each in said_ if each.get("message"))


def _unpacked(text: str) -> str:
    """A user's message may be packed: `{"type": "user_message", "message": ..., "time": ...}`; heartbeats, logins and
    alerts are packed the same way."""
    packed = _json(text)
    if not isinstance(packed.get("type"), str):
        return text
    return str(packed.get("message") or "").strip() if packed["type"] == "user_message" else ""


def _json(text: Any) -> Mapping[str, Any]:
    try:
        found = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, Mapping) else {}
