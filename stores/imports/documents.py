"""The JSON documents of a stream one by one: the items of one list, JSON lines, or one document after another.

A bad document is reported and costs only itself, and no more of the stream is held than one document and a chunk.
"""

import codecs
import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import IO, Any

from stores.imports.chat import Skipped

MAX_DOCUMENT = 64 << 20  # characters of one document
CHUNK = 1 << 16  # bytes
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[\s,]*")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_STRAY = re.compile(r"[,\]\n]")
_FIRST_KEY = re.compile(r'\{\s*"(?:[^"\\]|\\.)*"\s*:')
_ANY_ITEM = re.compile(r'(?<=\}),\s*\{\s*"')
_NEXT = re.compile(r"\s*(?:,\s*[{\[]|\]\s*\Z)")
_BOMS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}

Found = tuple[int, Any]  # line or item, counted from 1, and the value or what is wrong with it


class Window:
    """A sliding window over a stream: `text` from `at` on is not read yet. Bytes that are no UTF-8 become lone
    surrogates, which `parse_memory` refuses where they are."""

    def __init__(self, file: IO[bytes]) -> None:
        head = file.read(CHUNK)
        bom = next((bom for bom in _BOMS if head.startswith(bom)), b"")
        encoding = _BOMS.get(bom, "utf-8")
        errors = "surrogateescape" if encoding == "utf-8" else "replace"
        self._file = file
        self.head = head[:16]
        self._decoder = codecs.getincrementaldecoder(encoding)(errors)
        self.text = self._decoder.decode(head[len(bom) :])
        self.at = 0
        self.ended = False

    def more(self) -> bool:
        """Read as much again as is held, so that trying again is linear in all. False at the end of the stream."""
        raw = self._file.read(max(CHUNK, len(self.text) - self.at))
        self.ended = not raw
        self.text = self.text[self.at :] + self._decoder.decode(raw, final=self.ended)
        self.at = 0
        return not self.ended

    def peek(self) -> str:
        """The next character that is neither white space nor a comma; empty at the end."""
        while True:
            match = _SPACE.match(self.text, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def line(self) -> str | None:
        """The next line with its end; None at the end of the stream."""
        while (end := self.text.find("\n", self.at)) < 0 and len(self.text) - self.at <= MAX_DOCUMENT:
            if not self.more():
                break
        end = len(self.text) if end < 0 else end + 1
        found, self.at = self.text[self.at : end], end
        return found or None

    def value(self) -> Any:
        """The JSON value that begins here, or what is wrong with it; then `at` is where it began."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
                if end < len(self.text) or self.ended:
                    self.at = end
                    return value
            except (ValueError, RecursionError) as error:
                if self.ended or _closing(self.text, self.at) is not None:
                    return Skipped(0, f"not JSON: {_reason(error)}")
            if len(self.text) - self.at > MAX_DOCUMENT:
                return Skipped(
                    0, f"longer than {MAX_DOCUMENT} characters, or a bracket or quote is never closed"
                )
            self.more()

    def skip_item(self, opening: re.Pattern[str]) -> None:
        """Go past a bad item: to its closing bracket, if the list goes on there, else to the next item that begins as
        the ones before (`opening`)."""
        end = _closing(self.text, self.at)
        if end is not None and end + 256 > len(self.text):
            end -= self.at
            self.more()
        if end is not None and _NEXT.match(self.text, end):
            self.at = end
            return
        self.at += 1
        while True:
            if match := opening.search(self.text, self.at):
                self.at = match.start()
                return
            self.at = max(self.at, len(self.text) - 256)  # an opening may go on in the next chunk
            if not self.more():
                self.at = len(self.text)
                return

    def rest_is_blank(self) -> bool:
        """True if only white space follows the character at `at`."""
        while not self.text[self.at + 1 :].strip():
            if not self.more():
                return True
        return False


def documents(window: Window) -> Iterator[Found]:
    """`(line or item, value or Skipped)` for every JSON document."""
    first = window.peek()
    line = _first_line(
        window, CHUNK if first == "[" else MAX_DOCUMENT
    )  # a list is long: it is not tried whole
    alone = line is not None and not isinstance(load(line), Skipped)
    if first == "[" and not (alone and line and window.text[window.at + len(line) :].strip()):
        yield from _items(window)
    elif alone:
        yield from _lines(window)
    else:
        yield from _sequence(window)


def load(line: str) -> Any:
    """The JSON value of a line, or what is wrong with it."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return Skipped(0, f"not JSON: {_reason(error)}")


def _first_line(window: Window, most: int) -> str | None:
    """The line that begins here; None if it is longer than `most` characters."""
    while (end := window.text.find("\n", window.at)) < 0 and window.more():
        if len(window.text) > most:
            return None
    return window.text[window.at : len(window.text) if end < 0 else end + 1]


def _lines(window: Window) -> Iterator[Found]:
    number = window.text.count("\n", 0, window.at)
    while (line := window.line()) is not None:
        number += 1
        if len(line) > MAX_DOCUMENT:
            while not line.endswith("\n") and (rest := window.line()) is not None:
                line = rest
            yield number, Skipped(number, f"the line is longer than {MAX_DOCUMENT} characters")
        elif line.strip():
            yield number, load(line)


def _items(window: Window) -> Iterator[Found]:
    """The items of the list that begins here, in a file that holds nothing else."""
    window.at += 1
    number, opening = 0, _ANY_ITEM
    while char := window.peek():
        if char == "]" and window.rest_is_blank():
            return
        number += 1
        began = window.text[window.at : window.at + 256]
        value = Skipped(0, "a bracket too many") if char == "]" else window.value()
        if isinstance(value, Skipped):
            window.skip_item(opening)
        elif opening is _ANY_ITEM and (match := _FIRST_KEY.match(began)):
            opening = re.compile(r"\{\s*" + re.escape(match[0][1:].strip()[:-1].strip()) + r"\s*:")
        yield number, value
    yield number + 1, Skipped(0, "the file ends in the middle of its list: it is cut off here")


def _sequence(window: Window) -> Iterator[Found]:
    """Documents over several lines, one after another; if the first is none, the lines that are."""
    number = 0
    while window.peek():
        number += 1
        value = window.value()
        if isinstance(value, Skipped) and number == 1 and _some_line(window.text[window.at :]):
            yield from _lines(window)
            return
        yield number, value
        if isinstance(value, Skipped):
            return


def _some_line(text: str) -> bool:
    """True if one of the first lines is a JSON object by itself."""
    lines = (line for line in islice(text.splitlines(), 100) if line.startswith("{"))
    return any(not isinstance(load(line), Skipped) for line in lines)


def _closing(text: str, at: int) -> int | None:
    """Where the bracket that opens at `at` is closed; None if it is not in this text."""
    if text[at] not in "[{":  # a stray word
        stray = _STRAY.search(text, at)
        return stray.start() if stray else None
    depth = 0
    for match in _TOKEN.finditer(text, at):
        if match[0] in "[{":
            depth += 1
        elif match[0] in "]}":
            depth -= 1
            if depth <= 0:
                return match.end()
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        near = error.doc[error.pos : error.pos + 24].strip()
        return f"{error.msg}, before {near!r}" if near else f"{error.msg}, where it ends"
    return str(error)
