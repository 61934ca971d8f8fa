"""What a format's reader yields, and the experiences of a conversation."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from common.errors import InvalidInput
from common.types import Json
from stores.memory.memory import MAX_CONVERSATION, canonical, parse_time

TICK_S = 1e-6  # between things without a time of their own, so that they keep their order


@dataclass(frozen=True)
class Skipped:
    """Something that gave no memory. `line` counts from 1 (in a file that is one list, its items do); 0 is the file
    as a whole. `fault` is False for what the format's rules leave out: system messages, images, calls of tools."""

    line: int
    reason: str
    fault: bool = True


class Message(NamedTuple):
    """`turn` is the place in the conversation, from 0, if every later export of it says the same; `time` is whatever
    the file says."""

    turn: int | None
    role: str
    text: str
    time: Any = None


def fault(reason: str) -> Skipped:
    return Skipped(0, reason)


def left_out(reason: str) -> Skipped:
    return Skipped(0, reason, fault=False)


def said(
    found: Sequence[Message | Skipped], *, source: str, conversation: str, began: Any = None
) -> Iterator[Json | Skipped]:
    """One experience a message. A message without a usable time comes right after the one before it; the first ones
    take the conversation's (`began`), or come just before the first that has one."""
    times = (time_or_none(each.time) for each in found if isinstance(each, Message))
    first = next((time for time in times if time is not None), None)
    last = time_or_none(began)
    before = None if first is None else first - TICK_S * (len(found) + 1)
    if before is not None and (last is None or last > before):
        last = before
    for each in found:
        if isinstance(each, Skipped):
            yield each
            continue
        own = time_or_none(each.time)
        last = own if own is not None else None if last is None else last + TICK_S
        turn = {} if each.turn is None else {"turn": each.turn}
        yield {
            "kind": "episodic",
            "text": f"{each.role}: {each.text}",
            "conversation": conversation[:MAX_CONVERSATION],
            "time": last,
            "context": {"role": each.role, **turn, "source": source},
        }


def time_or_none(value: Any) -> float | None:
    """The time of a foreign file in seconds; None where it is absent or no time: the message is worth more."""
    if value is None or value == "":
        return None
    try:
        return parse_time(value, "time")
    except InvalidInput:
        return None


def text_of(content: Any) -> str:
    """Text, or the texts of a list of parts."""
    if isinstance(content, list):
        content = "\n".join(filter(None, map(_part, content)))
    return content.strip() if isinstance(content, str) else ""


def _part(part: Any) -> str:
    text = part.get("text") if isinstance(part, Mapping) else part
    return text if isinstance(text, str) else ""


def digest(value: Any) -> str:
    """A name for a conversation that has none: 16 hex digits over its content."""
    try:
        return hashlib.blake2b(canonical(value), digest_size=8).hexdigest()
    except (ValueError, RecursionError):  # NaN, half of a surrogate pair: the name stays stable
        return hashlib.blake2b(repr(value).encode(errors="replace"), digest_size=8).hexdigest()


def objects(value: Any) -> Iterable[tuple[int, Mapping[str, Any]]]:
    """The objects of a list with their places."""
    return (
        (i, each)
        for i, each in enumerate(value if isinstance(value, list) else [])
        if isinstance(each, Mapping)
    )
