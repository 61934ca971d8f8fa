"""Which format a document or a file is in. Recognised by content: a name says nothing."""

import csv
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from common.errors import InvalidInput
from common.types import Json
from stores.imports.chat import Skipped
from stores.imports.formats import (
    chatgpt,
    claude,
    experiences,
    langchain,
    letta,
    mem0,
    sharegpt,
    transcripts,
)


class Format(NamedTuple):
    """`shape` is how people see it in their file; `read` yields experiences in the API's shape."""

    name: str
    shape: str
    fits: Callable[[Any], bool]
    read: Callable[[Any], Iterator[Json | Skipped]]


FORMATS = (
    Format("ChatGPT export", "conversations.json with mapping and current_node", chatgpt.fits, chatgpt.read),
    Format("Claude export", "conversations.json with chat_messages", claude.fits, claude.read),
    Format("Letta agent file", ".af with agents, or with core_memory", letta.fits, letta.read),
    Format("ShareGPT", '{"conversations": [{"from", "value"}]}', sharegpt.fits, sharegpt.read),
    Format("LangChain messages", '[{"type": "human", "data": {"content"}}]', langchain.fits, langchain.read),
    Format("OpenAI messages", '{"messages": [{"role", "content"}]}', transcripts.fits, transcripts.read),
    Format("mem0 export", '{"results": [{"memory"}]}', mem0.fits, mem0.read),
    Format("experiences", '{"text"}, or a kind with its fields', experiences.fits, experiences.read),
)
NOTES = "notes"
KNOWN = "; ".join([*(f"{each.name}: {each.shape}" for each in FORMATS), f"{NOTES}: Markdown or plain text"])

_MAGIC = {
    b"%PDF": "a PDF document: save its text",
    b"SQLite format 3": "a SQLite database",
    b"\x1f\x8b": "a gzip file: unpack it",
    b"PAR1": "a Parquet file: `sharpwave import` reads one that `sharpwave export` wrote",
    b"PK": "a zip file that is cut off or empty",
}


def format_of(document: Any) -> Format | None:
    return next((each for each in FORMATS if each.fits(document)), None)


def is_message(document: Any) -> bool:
    """True for one message of a chat by itself: those that follow each other in a file are one conversation."""
    return any(each.is_message(document) for each in (langchain, sharegpt, transcripts))


def describe(document: Any) -> str:
    """What a document is, as a person would say it."""
    if isinstance(document, dict):
        if document.get("format") == "sharpwave-export":
            return "a file that `sharpwave export` wrote (use `sharpwave import`)"
        keys = ", ".join(str(key)[:32] for key in list(document)[:12]) or "none"
        return f"a JSON object with keys {keys}" + (", ..." if len(document) > 12 else "")
    if isinstance(document, list):
        return f"a JSON list that begins with {describe(document[0])}" if document else "an empty JSON list"
    return f"a JSON {'string' if isinstance(document, str) else 'number or constant'}"


def is_json(text: str) -> bool:
    """True for the beginning of a JSON document; `- [ ] milk`, `[a link](...)` and `[2026-03-01]` are notes.

    Raises `InvalidInput` for a file that holds neither JSON nor prose."""
    begin = text.lstrip()[:4096]
    if begin.startswith("{"):
        return begin[1:].lstrip()[:1] in ('"', "}", "")
    if begin.startswith("["):
        return begin[1:].lstrip(" \t\r\n[")[:1] in ("", "{", '"', "]") and not begin.startswith(
            ("[ ]", "[](")
        )
    return False


def refuse_foreign(head: bytes, text: str) -> None:
    """Raises `InvalidInput` for a file that is neither JSON nor prose, with what it is."""
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            raise unknown(what)
    if "\x00" in text:
        raise unknown("binary data")
    begin = text.lstrip()[:64].lower()
    if begin.startswith(("<!doctype", "<html", "<?xml")):
        raise unknown("an HTML or XML page; of a ChatGPT export, give its conversations.json or the .zip")
    if not is_json(text) and (columns := _columns(text)):
        raise unknown(f"a table with columns {', '.join(columns)}"[:200])
    if text.strip() and not is_json(text) and _scalar(text):
        raise unknown(_scalar(text))


def unknown(what: str) -> InvalidInput:
    """The error for a file in no known format."""
    return InvalidInput(f"found {what}, which is in no known format; known are: {KNOWN}", param="file")


def _scalar(text: str) -> str:
    """What a file is that is one JSON value, but no object; empty for any other file."""
    try:
        return describe(json.loads(text)) if len(text) < 4096 else ""
    except (ValueError, RecursionError):
        return ""


def _columns(text: str) -> list[str]:
    """The header of a table: the first lines all have the same number, at least three, of fields. Empty if not one."""
    lines = [line for line in text[:65536].splitlines() if line.strip()][:8]
    for mark in (",", "\t", ";"):
        table = list(csv.reader(lines, delimiter=mark)) if len(lines) > 2 else []
        if table and len({len(row) for row in table}) == 1 and len(table[0]) > 2:
            return table[0]
    return []
