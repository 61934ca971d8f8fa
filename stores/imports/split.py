"""An experience as a memory; where its text is over the size limit as several, cut where it hurts least."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from common.errors import TooLarge
from common.types import Json
from stores.imports.chat import TICK_S
from stores.memory.memory import Memory, parse_memory, stable_id

# Best first: between paragraphs, lines, sentences, words. A cut is at the end of a match.
_BOUNDARIES = tuple(
    map(re.compile, (r"\n[ \t]*\n\s*", r"\n\s*", r"[.!?\u2026]['\")\]]*\s+|[\u3002\uff01\uff1f]", r"\s+"))
)


def memories_of(item: Any, *, namespace: str, max_text_bytes: int, now: float) -> list[Memory]:
    """The memory of an experience; of an episode whose text is over the limit its parts, in the order of their times.

    A part has `context.part = {"of": id of the whole, "number", "parts"}`; a cue goes to the first part that holds its
    answer. Raises as `parse_memory`.
    """
    try:
        return [_named(item, parse_memory(item, namespace=namespace, now=now, max_text_bytes=max_text_bytes))]
    except TooLarge as error:
        if error.param != "text" or item.get("kind", "episodic") != "episodic":
            raise
    most = len(item["text"].encode())
    whole = _named(item, parse_memory(item, namespace=namespace, now=now, max_text_bytes=most))
    parts: list[Memory] = []
    for part in _part_items(item, whole, max_text_bytes):
        at = whole.time + len(parts) * TICK_S
        timed = {"time": at} if whole.timed else {}
        memory = parse_memory(part | timed, namespace=namespace, now=at, max_text_bytes=max_text_bytes)
        parts.append(_named(part, memory))
    return parts


def _named(item: Json, memory: Memory) -> Memory:
    return memory if item.get("id") is not None else replace(memory, id=stable_id(memory))


def _part_items(item: Json, whole: Memory, limit: int) -> Iterator[Json]:
    """The experience of each part; who speaks is said in each."""
    speaker = f"{whole.context.get('role')}: "
    if not whole.text.startswith(speaker) or len(speaker.encode()) > limit // 4:
        speaker = ""
    texts = split_text(whole.text[len(speaker) :], limit - len(speaker.encode()))
    cues: list[list[Json]] = [[] for _ in texts]
    for cue in item.get("cues") or ():
        holds = (i for i, text in enumerate(texts) if cue["answer"].casefold() in text.casefold())
        cues[next(holds, 0)].append(cue)
    for i, text in enumerate(texts):
        part = {"of": whole.id, "number": i + 1, "parts": len(texts)}
        changed = {
            "text": speaker + text.rstrip(),
            "cues": cues[i],
            "context": {**whole.context, "part": part},
        }
        yield {**item, **changed, "id": None}


def split_text(text: str, limit: int) -> list[str]:
    """Parts of at most `limit` bytes of UTF-8 (at least 4) that together are `text`; a part of white space alone is
    left out. A cut is at the best boundary in the second half of what fits, in the middle of a word only where there is
    none."""
    return [part for part in _parts(text, limit) if part.strip()]


def _parts(text: str, limit: int) -> Iterator[str]:
    at = 0
    while at < len(text):
        end = at + _fitting(text[at : at + limit], limit)
        if end < len(text):
            end = _cut(text, at, end)
        yield text[at:end]
        at = end


def _fitting(text: str, limit: int) -> int:
    """How many of the characters fit in `limit` bytes."""
    return max(1, len(text.encode()[:limit].decode(errors="ignore")))


def _cut(text: str, at: int, end: int) -> int:
    middle = (at + end) // 2
    for boundary in _BOUNDARIES:
        cuts = [match.end() for match in boundary.finditer(text, middle, end)]
        if cuts:
            return cuts[-1]
    return end
