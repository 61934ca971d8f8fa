"""Memories from a file of experiences: JSON lines, chat transcripts, or both mixed.

A line is one experience (`{"text": ...}`) or one transcript (`{"messages": [...]}`). A file may also be
one JSON document over several lines: a transcript, an experience, or a list of them. Ids are made from
the content if a line gives none, so ingesting a file twice writes nothing new.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from common.errors import InvalidInput, SharpwaveError
from stores.memory.memory import Memory, canonical, parse_memory, parse_time, stable_id

MAX_LINE_BYTES = 64 << 20  # of one line, and of a file that is one document
TAUGHT_ROLES = ("user", "assistant")
SKIPPED_ROLES = ("system", "developer", "tool", "function")
_TICK_S = 1e-6  # between memories without a time, so that lists keep the order of the file


@dataclass(frozen=True)
class BadLine:
    """A line that gave no memory. Lines count from 1 (in a file that is one list, its items do); 0 is
    the file as a whole."""

    line: int
    reason: str


def read_experiences(
    path: str | Path, *, namespace: str, max_text_bytes: int, now: float | None = None
) -> Iterator[Memory | BadLine]:
    """Memories in the order of the file, with a `BadLine` for each invalid line.

    A transcript with one bad message yields one `BadLine` and none of its messages. Raises
    `InvalidInput` if `path` is no file.
    """
    path = Path(path)
    if not path.is_file():
        raise InvalidInput(f"file {str(path)!r} is not a file; give JSON lines or a transcript", param="file")
    start = time.time() if now is None else now
    made = count = 0
    with path.open("rb") as file:
        for line, parsed in _documents(file, path.stat().st_size):
            count += 1
            if isinstance(parsed, BadLine):
                yield parsed
                continue
            try:
                memories = _memories(parsed, namespace, max_text_bytes, start + made * _TICK_S)
            except SharpwaveError as error:
                yield BadLine(line, error.message)
                continue
            made += len(memories)
            yield from memories
    if not count:
        yield BadLine(0, f"file {str(path)!r} is empty: expected one JSON object a line")


def _documents(file: BinaryIO, size: int) -> Iterator[tuple[int, Any]]:
    """`(line, value or BadLine)` for every JSON document of the file."""
    if size <= MAX_LINE_BYTES and (document := _whole(file)) is not None:
        yield from enumerate(document if isinstance(document, list) else [document], start=1)
        return
    file.seek(0)
    number = 0
    while raw := file.readline(MAX_LINE_BYTES):
        number += 1
        if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
            _skip_line(file)
            yield number, BadLine(number, f"the line is longer than {MAX_LINE_BYTES} bytes")
            continue
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if raw.strip():
            yield number, _load(raw, number)


def _whole(file: BinaryIO) -> Any:
    """The file as one document that spans lines, or None if its first line is a document by itself."""
    first = file.readline().removeprefix(b"\xef\xbb\xbf").strip()
    if not first.startswith((b"{", b"[")):
        return None
    if not first.startswith(b"[") and not isinstance(_load(first, 1), BadLine):
        return None
    rest = file.read()
    document = _load(first + b"\n" + rest, 1)
    return None if isinstance(document, BadLine) else document


def _load(raw: bytes, line: int) -> Any:
    try:
        return json.loads(raw.decode())
    except UnicodeDecodeError as error:
        return BadLine(line, f"not UTF-8 at byte {error.start}")
    except json.JSONDecodeError as error:
        return BadLine(line, f"not JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # an integer of too many digits; nesting
        return BadLine(line, f"not usable JSON: {error}")


def _skip_line(file: BinaryIO) -> None:
    while (chunk := file.readline(1 << 20)) and not chunk.endswith(b"\n"):
        pass


def _memories(parsed: Any, namespace: str, max_text_bytes: int, now: float) -> list[Memory]:
    transcript = isinstance(parsed, Mapping) and "messages" in parsed
    experiences = list(_turns(parsed)) if transcript else [parsed]
    memories = []
    for offset, experience in enumerate(experiences):
        memory = parse_memory(
            experience, namespace=namespace, now=now + offset * _TICK_S, max_text_bytes=max_text_bytes
        )
        memories.append(memory if experience.get("id") is not None else replace(memory, id=stable_id(memory)))
    return memories


def _turns(transcript: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One episodic experience for each message of the user or the assistant."""
    messages = transcript["messages"]
    if not isinstance(messages, list) or not messages:
        raise InvalidInput("messages: must be a list that is not empty", param="messages")
    conversation = transcript.get("conversation", transcript.get("id")) or _digest(messages)
    began = transcript.get("time")
    if began is not None:
        began = parse_time(began, "time")
    for turn, message in enumerate(messages):
        where = f"messages[{turn}]"
        if not isinstance(message, Mapping):
            raise InvalidInput(f"{where}: must be an object with role and content", param="messages")
        role = message.get("role")
        if role in SKIPPED_ROLES:
            continue
        if role not in TAUGHT_ROLES:
            known = ", ".join(TAUGHT_ROLES + SKIPPED_ROLES)
            raise InvalidInput(f"{where}: role {str(role)[:64]!r}; valid: {known}", param="messages")
        content = _content(message.get("content"))
        if not content and message.get("tool_calls"):
            continue
        if not content:
            raise InvalidInput(f"{where}: content is empty", param="messages")
        yield {
            "kind": "episodic",
            "text": f"{role}: {content}",
            "conversation": str(conversation),
            "time": message.get("time", None if began is None else began + turn * _TICK_S),
            "context": {"role": role, "turn": turn},
        }


def _content(content: Any) -> str:
    """Text, or the text parts of a list of parts."""
    if isinstance(content, list):
        texts = [part["text"] for part in content if isinstance(part, Mapping) and "text" in part]
        content = "\n".join(text for text in texts if isinstance(text, str))
    return content.strip() if isinstance(content, str) else ""


def _digest(messages: list[Any]) -> str:
    try:
        return hashlib.blake2b(canonical(messages), digest_size=8).hexdigest()
    except (ValueError, RecursionError):  # NaN, half of a surrogate pair: the name stays stable
        return hashlib.blake2b(repr(messages).encode(errors="replace"), digest_size=8).hexdigest()
