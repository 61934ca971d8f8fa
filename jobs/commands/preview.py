"""What `sharpwave teach` would write, without a server: format, conversations, memories, times, what is skipped."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from common.types import Json
from stores.imports.chat import Skipped
from stores.imports.reader import FileReader
from stores.memory.memory import Memory, to_json

SAMPLES = 3
SHOWN = 10  # bad places that are named, a file; the others are counted


@dataclass
class Preview:
    """Of one file. `split` texts were over the limit and became `parts` memories; `first` and `last` are the times that
    the file gives; `left_out` counts by reason what the format's rules leave out, `bad` are places with reasons."""

    file: str
    formats: Json = field(default_factory=dict)
    conversations: int = 0
    memories: int = 0
    repeated: int = 0
    first: str | None = None
    last: str | None = None
    split: int = 0
    parts: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    bad_count: int = 0
    samples: list[Json] = field(default_factory=list)


def preview_file(file: Path, *, namespace: str, max_text_bytes: int) -> Preview:
    """Read the whole file; nothing is written and no memory is kept but the samples."""
    reader = FileReader(file, namespace=namespace, max_text_bytes=max_text_bytes)
    shown = Preview(str(file))
    names: set[str] = set()
    ids: set[int] = set()  # hashes: a collision would miscount one memory
    times: list[float] = []
    for found in reader:
        if isinstance(found, Skipped):
            _skip(shown, found)
            continue
        _count(shown, found)
        names |= {found.conversation} if found.conversation else set()
        if found.timed:
            times = [min(found.time, *times), max(found.time, *times)] if times else [found.time] * 2
        ids.add(hash(found.id))
    shown.formats = dict(reader.formats)
    shown.conversations = len(names)
    shown.repeated = shown.memories - len(ids)
    shown.first, shown.last = map(_iso, times) if times else (None, None)
    return shown


def _skip(shown: Preview, found: Skipped) -> None:
    if not found.fault:
        shown.left_out[found.reason] += 1
        return
    shown.bad_count += 1
    if len(shown.bad) < SHOWN:
        shown.bad.append(
            f"{shown.file}:{found.line}: {found.reason}" if found.line else f"{shown.file}: {found.reason}"
        )


def _count(shown: Preview, memory: Memory) -> None:
    shown.memories += 1
    part = memory.context.get("part")
    if isinstance(part, dict) and "of" in part:
        shown.parts += 1
        shown.split += part.get("number") == 1
    if len(shown.samples) < SAMPLES:
        shown.samples.append(to_json(memory))


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def as_rows(shown: Preview) -> Iterator[tuple[str, str]]:
    """What people read: a name and a value a line."""
    yield "file", shown.file
    yield (
        "format",
        ", ".join(f"{name} ({count} documents)" for name, count in shown.formats.items()) or "none",
    )
    yield (
        "memories",
        str(shown.memories) + (f" ({shown.repeated} of them say the same)" if shown.repeated else ""),
    )
    yield "conversations", str(shown.conversations)
    yield "times", f"{shown.first} to {shown.last}" if shown.first else "none: the time of writing is taken"
    yield "split", f"{shown.split} long texts into {shown.parts} parts"
    yield from (("left out", f"{count} x {reason}") for reason, count in shown.left_out.most_common())
    yield from (("bad", each) for each in shown.bad)
    if shown.bad_count > len(shown.bad):
        yield "bad", f"and {shown.bad_count - len(shown.bad)} more"
    yield from (("sample", _sample(each)) for each in shown.samples)


def _sample(memory: Json) -> str:
    text = " ".join(memory["text"].split())
    return f"{_iso(memory['time'])}  {text if len(text) <= 100 else text[:97] + '...'}  {memory['context']}"


def totals(previews: Iterable[Preview]) -> Json:
    """The document of `--json`: one entry a file."""
    return {"files": [vars(each) | {"left_out": dict(each.left_out)} for each in previews]}
