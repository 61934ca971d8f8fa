"""After an erasure: does any file of the store still hold the content? `shard_probe` asks a running shard.

A report has one row for each place that was searched: `{place, checked, found, unchecked}`. `checked` counts the
items examined (files, records, memories, ...); `found` lists leftovers as `{canary, form, where}`, where `canary`
names one by kind and number, never by content; `unchecked` lists what could not be read, and why. A place is
clean only where `found` and `unchecked` are empty and `checked` is not 0.

Text is searched for as UTF-8, UTF-16 and UTF-32, in both composed and decomposed Unicode form, as JSON
strings (escaped once and twice), in hex, and in base64 at each of its three alignments; vectors as float32,
float16 and float64, in base64, and as JSON numbers. With `fragment`, every piece of so many bytes is
searched for too: a reused page may keep part of a text. Compressed content is found if it can be
decoded: Parquet and Arrow files, gzip, and encrypted content whose key is given.
"""

import base64
import gzip
import json
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import NotFound, SharpwaveError
from common.types import Json
from stores.crypto.keyring import is_encrypted
from stores.index.vectors import Vectors

CHUNK_BYTES = 8 << 20  # of a file held at once
COMPRESSED = {".store": "tantivy's compressed documents", ".zst": "zstd", ".lz4": "lz4", ".zip": "zip"}
_VECTOR_PIECE = 8  # consecutive numbers that count as a piece of the vector

Open = Callable[[bytes], bytes]
"""Decrypts a piece; raises `NotFound` if its key was destroyed."""


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """What is searched for. Words that remaining memories share cause false alarms. `ids` are in the records of
    their own erasure, so give them only if they carry content themselves."""

    texts: Sequence[str] = ()
    vectors: Sequence[Vectors] = ()
    ids: Sequence[str] = ()
    fragment: int | None = None

    def needles(self) -> list[tuple[bytes, str, str]]:
        """`(bytes, canary, form)`; every canary in all its forms."""
        found: dict[bytes, tuple[str, str]] = {}
        for kind, texts in (("text", self.texts), ("id", self.ids)):
            for number, text in enumerate(texts):
                for needle, form in _text_forms(text, self.fragment):
                    found.setdefault(needle, (f"{kind} {number}", form))
        for number, vector in enumerate(self.vectors):
            for needle, form in _vector_forms(np.asarray(vector, np.float32)):
                found.setdefault(needle, (f"vector {number}", form))
        return [(needle, *named) for needle, named in found.items() if needle]


def _text_forms(text: str, fragment: int | None) -> Iterator[tuple[bytes, str]]:
    for spelled in dict.fromkeys(
        (text, unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text))
    ):
        plain = spelled.encode()
        yield plain, "utf-8"
        for encoding in ("utf-16-le", "utf-16-be", "utf-32-le"):
            yield spelled.encode(encoding), encoding
        for ascii_only in (False, True):
            once = json.dumps(spelled, ensure_ascii=ascii_only)[1:-1]
            yield once.encode(), "json"
            yield json.dumps(once, ensure_ascii=ascii_only)[1:-1].encode(), "json in json"
        yield plain.hex().encode(), "hex"
        yield from _base64_forms(plain, "utf-8")
        for start in range(0, len(plain) - (fragment or len(plain)) + 1):
            yield plain[start : start + (fragment or 0)], f"{fragment} bytes of utf-8"


def _vector_forms(vector: Vectors) -> Iterator[tuple[bytes, str]]:
    for kind in ("<f4", "<f2", "<f8"):
        raw = vector.astype(kind).tobytes()
        piece = min(_VECTOR_PIECE, len(vector)) * np.dtype(kind).itemsize
        for start in range(0, len(raw) - piece + 1, piece):
            yield raw[start : start + piece], f"float{8 * np.dtype(kind).itemsize}"
    yield from _base64_forms(vector.astype("<f4").tobytes(), "float32")
    for numbers in (vector.tolist(), [float(str(number)) for number in vector]):
        for separators in ((",", ":"), (", ", ": ")):
            yield json.dumps(numbers[:_VECTOR_PIECE], separators=separators)[1:-1].encode(), "json numbers"


def _base64_forms(raw: bytes, of: str) -> Iterator[tuple[bytes, str]]:
    """The base64 of the bytes at each alignment, without the characters shared with neighbouring bytes."""
    for shift in range(3):
        whole = raw[(3 - shift) % 3 :]
        inner = base64.b64encode(whole[: len(whole) - len(whole) % 3])
        if len(inner) >= 8:
            yield inner, f"base64 of {of}"
            yield base64.urlsafe_b64encode(base64.b64decode(inner)), f"base64 of {of}"


class ReportRow:
    """One row of a report in progress."""

    def __init__(self, place: str, needles: Sequence[tuple[bytes, str, str]]) -> None:
        self.place, self.checked = place, 0
        self.found: list[Json] = []
        self.unchecked: list[str] = []
        self._needles = needles
        self._longest = max((len(needle) for needle, *_ in needles), default=1)

    def look(self, data: bytes, where: str) -> None:
        """Search one item that is in memory whole."""
        self.checked += 1
        self.search(data, where)

    def look_at_file(self, path: Path, where: str) -> None:
        """Search a file chunk by chunk; chunks overlap, so that nothing is missed at a boundary."""
        self.checked += 1
        with path.open("rb") as file:
            kept = b""
            while piece := file.read(CHUNK_BYTES):
                self.search(kept + piece, where)
                kept = (kept + piece)[-(self._longest - 1) :] if self._longest > 1 else b""

    def cannot(self, what: str, why: object) -> None:
        self.unchecked.append(f"{what}: {why}")

    def note(self, canary: str, form: str, where: str) -> None:
        found = {"canary": canary, "form": form, "where": where}
        if found not in self.found:
            self.found.append(found)

    def search(self, data: bytes, where: str) -> None:
        for needle, canary, form in self._needles:
            if needle in data:
                self.note(canary, form, where)

    def report(self) -> Json:
        return {
            "place": self.place,
            "checked": self.checked,
            "found": self.found,
            "unchecked": self.unchecked,
        }


def probe_folder(folder: Path, canaries: Canaries, *, decrypt: Open | None = None) -> list[Json]:
    """Search every file under a store's folder: its raw bytes, and what can be decoded of it.

    `decrypt` is the `decrypt_any` of a keyring (or of `Keyrings`) with the context of files, so that encrypted
    files are read too.
    """
    needles = canaries.needles()
    names = ("files", "compressed files", "snapshots", "kv blocks", "sealed files")
    rows = {name: ReportRow(name, needles) for name in names}
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        where = str(path.relative_to(folder))
        try:
            rows["files"].look_at_file(path, where)
            for needle, canary, form in needles:
                if needle in where.encode():
                    rows["files"].note(canary, f"{form} in its name", where)
            _decode(path, where, rows, decrypt)
        except FileNotFoundError:  # removed meanwhile by the running store
            continue
        except OSError as error:
            rows["files"].cannot(where, error.strerror)
    return [row.report() for row in rows.values()]


def _decode(path: Path, where: str, rows: Mapping[str, ReportRow], decrypt: Open | None) -> None:
    with path.open("rb") as file:
        head = file.read(16)
    if head[:4] == b"PAR1":
        _look(rows["snapshots"], where, lambda: _parquet_cells(path))
    elif head[:6] == b"ARROW1":
        _look(rows["snapshots"], where, lambda: _arrow_cells(path))
    elif path.name == "manifest.json":
        _look_at_parts(path, where, rows["sealed files"], decrypt)
    elif path.suffix == ".safetensors" and not is_encrypted(path.read_bytes()[:128]):
        _look(rows["kv blocks"], where, lambda: [_safetensors_notes(path)])
    elif head[:2] == b"\x1f\x8b":
        _look(rows["compressed files"], where, lambda: [gzip.decompress(path.read_bytes())])
    elif path.suffix in COMPRESSED:
        rows["compressed files"].cannot(where, f"{COMPRESSED[path.suffix]} is not decoded")
    elif path.suffix == ".safetensors":
        _look_at_sealed(path.read_bytes(), where, rows["sealed files"], decrypt)


def _look(row: ReportRow, where: str, pieces: Callable[[], Iterable[bytes]]) -> None:
    row.checked += 1
    try:
        for piece in pieces():
            row.search(piece, where)
    except (OSError, ValueError, KeyError, EOFError, zlib.error, pa.ArrowException) as error:
        row.cannot(where, error)


def _parquet_cells(path: Path) -> Iterator[bytes]:
    file = pq.ParquetFile(path)
    yield from (repr(file.metadata.metadata).encode(), *_values(file.metadata.metadata or {}))
    for batch in file.iter_batches(batch_size=4096):
        yield from _cells(batch)
    for group in range(file.metadata.num_row_groups):
        for column in range(file.metadata.num_columns):
            statistics = file.metadata.row_group(group).column(column).statistics
            if statistics is not None and statistics.has_min_max:
                yield from _values({statistics.min: statistics.max})


def _arrow_cells(path: Path) -> Iterator[bytes]:
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            yield from _cells(reader.get_batch(number))


def _cells(batch: pa.RecordBatch) -> Iterator[bytes]:
    """The values of all columns, each column joined."""
    for column in batch.columns:
        yield b"\n".join(piece for value in column.to_pylist() for piece in _values({"": value}))


def _values(pairs: Mapping[Any, Any]) -> list[bytes]:
    return [_bytes(part) for pair in pairs.items() for part in pair if part is not None]


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, list) and value and isinstance(value[0], float):
        return np.asarray(value, np.float32).tobytes()
    return value.encode() if isinstance(value, str) else json.dumps(value, default=str).encode()


def _safetensors_notes(path: Path) -> bytes:
    """The text metadata of a block's tensors."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return "\0".join(header.get("__metadata__", {}).values()).encode()


def _look_at_parts(path: Path, where: str, row: ReportRow, decrypt: Open | None) -> None:
    """Search a snapshot's blobs, if they are encrypted."""
    manifest = json.loads(path.read_bytes())
    if not manifest.get("sealed"):
        return
    with (path.parent / "parts.bin").open("rb") as blobs:
        for number, part in enumerate(manifest["parts"]):
            blobs.seek(part["at"])
            _look_at_sealed(blobs.read(part["bytes"]), f"{where} part {number}", row, decrypt)


def _look_at_sealed(data: bytes, where: str, row: ReportRow, decrypt: Open | None) -> None:
    if decrypt is None:
        row.cannot(where, "sealed, and no keyring was given")
        return
    try:
        row.look(decrypt(data), where)
    except NotFound:
        row.checked += 1  # the key was destroyed: nobody can read it
    except SharpwaveError as error:
        row.cannot(where, error.message)
