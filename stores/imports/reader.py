"""The memories of a file that people have: recognised by content, read as a stream.

A file is a stream of JSON documents (one list, JSON lines, or documents one after another), notes, or a `.zip` with a
`conversations.json` in it. Each document is recognised by itself, so a file may mix formats. Ids are made from the
content where a document gives none: reading a file twice gives the same memories.
"""

import math
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import IO

from common.errors import InvalidInput, SharpwaveError
from common.types import Json
from stores.imports.chat import TICK_S, Skipped
from stores.imports.documents import MAX_DOCUMENT, Found, Window, documents
from stores.imports.formats import notes
from stores.imports.recognise import (
    NOTES,
    describe,
    format_of,
    is_json,
    is_message,
    refuse_foreign,
    unknown,
)
from stores.imports.split import memories_of
from stores.memory.memory import Memory

MEMBER = "conversations"  # the .json of this name in an export's .zip; large ones are numbered
_CLOSE_S = 1.0  # times made by counting ticks are so close; a message that is older than this keeps its time
UNKNOWN_FIRST = 3  # documents in no known format at the beginning of a file: it is refused


class FileReader:
    """Memories of one file, in its order, with a `Skipped` for whatever gave none. Iterate once; then `formats` says
    how many documents of each format there were."""

    def __init__(
        self, path: str | Path, *, namespace: str, max_text_bytes: int, now: float | None = None
    ) -> None:
        self._path = Path(path)
        self._namespace = namespace
        self._limit = max_text_bytes
        self._now = time.time() if now is None else now
        self._made = 0
        self.formats: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Memory | Skipped]:
        """Raises `InvalidInput` if the path is no file."""
        if not self._path.is_file():
            raise InvalidInput(f"file {str(self._path)!r} is not a file", param="file")
        with self._path.open("rb") as file:
            try:
                for stream in _streams(file):
                    yield from self._stream(stream)
            except InvalidInput as error:
                yield Skipped(0, error.message)

    def _stream(self, stream: IO[bytes]) -> Iterator[Memory | Skipped]:
        try:
            window = Window(stream)
            refuse_foreign(window.head, window.text)
            if not window.peek():
                yield Skipped(0, "the file is empty")
            elif is_json(window.text[window.at :]):
                yield from self._documents(window)
            else:
                yield from self._notes(window)
        except InvalidInput as error:
            yield Skipped(0, error.message)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            yield Skipped(0, f"the zip file is damaged, what follows is lost: {error}")

    def _notes(self, window: Window) -> Iterator[Memory | Skipped]:
        while window.more():
            if len(window.text) > MAX_DOCUMENT:
                raise InvalidInput(f"the text is longer than {MAX_DOCUMENT} characters", param="file")
        for item in notes.read(window.text):
            self.formats[NOTES] += 1
            yield from self._memories(item, 0)

    def _documents(self, window: Window) -> Iterator[Memory | Skipped]:
        """Documents in no known format wait until one is known: a file that begins with several is refused whole."""
        waiting: list[Skipped] | None = []
        found = ""
        for line, document in _grouped(documents(window)):
            form = None if isinstance(document, Skipped) else format_of(document)
            if form is not None:
                yield from waiting or ()
                waiting = None
                self.formats[form.name] += 1
                yield from self._document(line, form.read(document))
                continue
            if isinstance(document, Skipped):
                skipped = replace(document, line=line)
            else:
                found = found or describe(document)
                skipped = Skipped(line, f"{describe(document)} is in no known format")
            if waiting is None:
                yield skipped
                continue
            waiting.append(skipped)
            if found and len(waiting) >= UNKNOWN_FIRST:
                raise unknown(found)
        if waiting is not None and found:
            raise unknown(found)
        yield from waiting or ()
        if waiting == []:
            yield Skipped(0, "the file is empty: its list has no items")

    def _document(self, line: int, items: Iterator[Json | Skipped]) -> Iterator[Memory | Skipped]:
        last = -math.inf  # time of the last part of a text that was split: what follows comes after it
        try:
            for item in items:
                if isinstance(item, Skipped):
                    yield replace(item, line=line)
                    continue
                for found in self._memories(item, line, after=last):
                    if isinstance(found, Memory) and found.timed and "part" in found.context:
                        last = found.time
                    yield found
        except SharpwaveError as error:
            yield Skipped(line, error.message)

    def _memories(self, item: Json, line: int, after: float = -math.inf) -> Iterator[Memory | Skipped]:
        limits: Json = {"namespace": self._namespace, "max_text_bytes": self._limit}
        if isinstance(own := item.get("time"), float) and after - _CLOSE_S < own <= after:
            item = {**item, "time": after + TICK_S}
        try:
            memories = memories_of(item, **limits, now=self._now + self._made * TICK_S)
        except SharpwaveError as error:
            turn = item.get("context", {}).get("turn") if isinstance(item.get("context"), dict) else None
            where = "" if turn is None else f"messages[{turn}]: "
            yield Skipped(line, where + error.message)
            return
        self._made += len(memories)
        yield from memories


def _streams(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """The file, or the conversations in it if it is a zip file."""
    if not (file.read(4) == b"PK\x03\x04" and zipfile.is_zipfile(file)):
        file.seek(0)
        yield file
        return
    with zipfile.ZipFile(file) as archive:
        paths = map(PurePosixPath, archive.namelist())
        wanted = [path for path in paths if path.suffix == ".json" and path.name.startswith(MEMBER)]
        if not wanted:
            names = ", ".join(archive.namelist()[:8])
            raise unknown(f"a zip file without a {MEMBER}.json (it holds {names or 'nothing'})")
        for path in sorted(wanted):
            try:
                stream = archive.open(str(path))
            except (
                RuntimeError,
                NotImplementedError,
                zipfile.BadZipFile,
            ) as error:  # encrypted, or an odd method
                raise InvalidInput(f"{path} in the zip file cannot be read: {error}", param="file") from None
            with stream:
                yield stream


def _grouped(found: Iterable[Found]) -> Iterator[Found]:
    """Messages that stand by themselves, one after another, are one document: a conversation."""
    first, held = 0, []
    for line, document in found:
        if is_message(document):
            first = first or line
            held.append(document)
            continue
        if held and not isinstance(document, Skipped):
            yield first, held
            first, held = 0, []
        yield line, document
    if held:
        yield first, held
