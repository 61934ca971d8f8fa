"""Notes in Markdown or plain text: a memory for each paragraph, list item (with what is indented below it) or code
block, under its headings in `context.heading`.

The time is a date in the nearest heading above that has one (`## 2026-03-01`, `# Diary, 1 March 2026`), else the `date`
of the front matter; else there is none. A title in the front matter is the first heading.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime

from common.types import Json
from stores.imports.chat import time_or_none

_HEADING = re.compile(r"(#{1,6})\s+(.*?)\s*#*\s*$")
_UNDERLINE = re.compile(r"(=+|-+)\s*$")
_ITEM = re.compile(r"(?:[-*+\u2022]|\d{1,9}[.)])\s+(?:\[[ xX]\]\s+)?")
_RULE = re.compile(r"\s*(?:[-*_]\s*){3,}$")
_FENCE = re.compile(r"\s*(```+|~~~+)")
_FRONT = re.compile(r"---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_FIELD = re.compile(
    r"^(date|created|created_at|title)\s*:\s*['\"]?(.*?)['\"]?\s*$", re.MULTILINE | re.IGNORECASE
)
_ISO = re.compile(r"\b\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2})?(?:Z|[+-]\d{2}:?\d{2})?)?\b")
_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*"
_WORDS = re.compile(
    rf"\b(?:(\d{{1,2}})(?:st|nd|rd|th)?\.?\s+({_MONTH})|({_MONTH})\s+(\d{{1,2}})(?:st|nd|rd|th)?),?\s+(\d{{4}})\b"
)

Headings = list[tuple[int, str]]  # level and title, from the top


def read(text: str) -> Iterator[Json]:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    front = _FRONT.match(text)
    fields = {name.lower(): value for name, value in _FIELD.findall(front[1])} if front else {}
    day = next(
        (time for name in ("date", "created", "created_at") if (time := _day(fields.get(name, "")))), None
    )
    headings: Headings = [(0, fields["title"])] if fields.get("title") else []
    for block in _blocks(text[front.end() :] if front else text):
        if isinstance(block, tuple):
            headings = [each for each in headings if each[0] < block[0]] + [block]
            continue
        yield {
            "kind": "episodic",
            "text": block,
            "time": next((time for _, title in reversed(headings) if (time := _day(title)) is not None), day),
            "context": {"source": "notes", "heading": [title for _, title in headings]},
        }


def _blocks(text: str) -> Iterator[str | tuple[int, str]]:
    """Paragraphs, items and code blocks as text, headings as `(level, title)`, in order."""
    held: list[str] = []
    for line in _joined(text):
        heading, underline = _HEADING.match(line), _UNDERLINE.match(line)
        if (
            underline
            and len(held) == 1
            and not _ITEM.match(held[0])
            and not held[0].startswith((" ", "\t", "|"))
        ):
            title = held.pop().strip()
            yield (1 if line.startswith("=") else 2), title
        elif heading or not line.strip() or _RULE.match(line) or _ITEM.match(line) or _FENCE.match(line):
            yield from _taken(held)
            held = [line] if (_ITEM.match(line) and not _RULE.match(line)) or _FENCE.match(line) else []
            if heading and heading[2]:
                yield len(heading[1]), heading[2]
        else:
            held.append(line)
    yield from _taken(held)


def _joined(text: str) -> Iterator[str]:
    """Lines; a fenced code block is one, so that empty lines and hashes in it are not looked at."""
    fence, code = "", [""]
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if fence:
            code.append(line)
            if line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                yield "\n".join(code)
                fence = ""
        elif mark:
            fence, code = mark[1], [line]
        else:
            yield line
    if fence:
        yield from code  # never closed


def _taken(lines: list[str]) -> Iterator[str]:
    text = "\n".join(lines).strip("\n")
    if item := _ITEM.match(text):
        text = text[item.end() :]
    if text.strip():
        yield text.strip()


def _day(text: str) -> float | None:
    """The first date in a text, in seconds; None if there is none."""
    if found := _ISO.search(text):
        return time_or_none(found[0])
    if found := _WORDS.search(text):
        day, month, year = found[1] or found[4], found[2] or found[3], found[5]
        try:
            return datetime.strptime(f"{day} {month[:3]} {year}", "%d %b %Y").replace(tzinfo=UTC).timestamp()
        except ValueError:
            return None
    return None
