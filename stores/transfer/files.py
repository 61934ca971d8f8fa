"""Export and import: memories with statistics, versions and vectors, as JSON lines, Parquet, or rows.

A row is made by `memory_state.row_of` and read by `Memories.import_rows`. A file holds the
rows of one namespace or of all:

    .jsonl     first line a header {format, schema, memories, dim, digest, ...}, then one row a line, its
               vector as base64 of little-endian float32
    .parquet   the columns of `arrow.SCHEMA` and `vector`, a list of float32; the header is in the metadata

Files are written and read as streams, in bounded memory, and appear whole or not at all. Rows are
validated like any input from outside. Importing twice adds nothing.
"""

import base64
import binascii
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import InvalidInput, SharpwaveError
from common.files import sync_folder
from common.types import Json
from stores.index.vectors import Vectors
from stores.locks import ReadWriteLock
from stores.memory.memory import canonical
from stores.snapshots import arrow as columns
from stores.transfer.row_schema import check_row
from stores.view.memory_state import MemoryState, row_of
from stores.view.view import View

FORMAT = "sharpwave-export"
SCHEMA_VERSION = 1
SUFFIXES = (".jsonl", ".parquet")
BATCH = 512  # rows in memory at once, and in one operation of an import
_HEADER_BYTES = 512  # the header's line is padded to this, so that counts can be put in at the end

Embed = Callable[[Sequence[str]], Vectors]


class Take(Protocol):
    """`Memories.import_rows`: all rows of a call or none, and none twice."""

    def __call__(self, rows: Sequence[Json], *, op_id: str, now: float) -> Any: ...


def export_rows(
    view: View,
    viewing: ReadWriteLock,
    shard: int,
    namespace: str | None = None,
    *,
    conversation: str | None = None,
) -> Iterator[Json]:
    """The rows of a namespace, or of all, as of the first step. Writers wait while references
    are copied, then for `BATCH` vectors at a time. What is erased meanwhile is left out."""
    with viewing.read():
        spaces = {name: space for name, space in view.spaces.items() if namespace in (None, name)}
        found = [
            (name, columns.captured(entry for entry in space.after(None) if _of(entry, conversation)))
            for name, space in spaces.items()
        ]
    for name, captured in found:
        for start in range(0, len(captured), BATCH):
            entries = [columns.state_of(each) for each in captured[start : start + BATCH]]
            with viewing.read():
                present = [*_present(view, name, entries)]
                seqs = [entry.seq for entry in present]
                vectors: Sequence[Vectors] = [*view.spaces[name].index.vectors_of(seqs)] if seqs else []
            for entry, vector in zip(present, vectors, strict=True):
                yield row_of(entry, vector, shard)


def _of(entry: MemoryState, conversation: str | None) -> bool:
    return conversation in (None, entry.memory["conversation"])


def _present(view: View, namespace: str, entries: Iterable[MemoryState]) -> Iterator[MemoryState]:
    """Those that still exist, each with its present version."""
    for entry in entries:
        now = view.find(namespace, entry.memory["id"])
        if now is not None:
            yield entry if now.seq == entry.seq else columns.state_of(*columns.captured([now]))


def import_rows(
    rows: Iterable[Json], take: Take, *, op_id: str, now: float, embed: Embed | None = None
) -> int:
    """Pass rows to `Memories.import_rows`, `BATCH` at a time under `op_id.number`; returns their number. Repeated after
    a failure with the same rows, it continues where it stopped.

    `embed` makes the vectors of rows without one, in the same way as the store's own. Raises `InvalidInput` if one
    is needed and `embed` is None.
    """
    fed, rest = 0, iter(rows)
    for number in range(1 << 62):
        batch = [*islice(rest, BATCH)]
        if not batch:
            break
        take(_embedded(batch, embed), op_id=f"{op_id}.{number}", now=now)
        fed += len(batch)
    return fed


def _embedded(batch: Sequence[Json], embed: Embed | None) -> list[Json]:
    bare = [row for row in batch if row["vector"] is None]
    if not bare:
        return [*batch]
    if embed is None:
        raise InvalidInput(
            f"vector is absent from {len(bare)} rows, the first {bare[0]['memory']['id']!r}: give an embedder",
            param="vector",
        )
    made = iter(embed([row["memory"]["text"] for row in bare]))
    return [{**row, "vector": next(made)} if row["vector"] is None else row for row in batch]


# Files


def save(path: Path, rows: Iterable[Json], *, now: float, vectors: bool = True) -> Json:
    """Write rows to `path`, in the format of its suffix; returns the header. An existing file
    is replaced when the new one is whole and on disk."""
    write = {".jsonl": _write_lines, ".parquet": _write_parquet}[_suffix(path)]
    kept = rows if vectors else ({**row, "vector": None} for row in rows)
    with _replacing(path) as file:
        return write(file, kept, {"format": FORMAT, "schema": SCHEMA_VERSION, "made": now})


def load(path: Path, *, max_text_bytes: int, into: str | None = None) -> tuple[Json, Iterator[Json]]:
    """The header of a file that `save` wrote, and its rows as a stream, each checked; `into`: another
    namespace than that of the file.

    The digest is checked before the first row comes. Raises `InvalidInput(param="file")` if the file
    was changed, truncated, or written by a newer version.
    """
    read = {".jsonl": _read_lines, ".parquet": _read_parquet}[_suffix(path)]
    try:
        header, found = read(path)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise _bad(path, f"is no export of ours, or damaged ({type(error).__name__})") from error
    return header, _checked(path, header, found, max_text_bytes, into)


def _suffix(path: Path) -> str:
    if path.suffix not in SUFFIXES:
        raise InvalidInput(f"file {path.name!r} must end in {' or '.join(SUFFIXES)}", param="file")
    return path.suffix


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            yield file  # type: ignore[misc]
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    sync_folder(path.parent)


def _line(row: Json) -> bytes:
    """The row as one line of JSON; digests in both formats are over these."""
    vector = row["vector"]
    packed = None if vector is None else base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return canonical({**row, "vector": packed}) + b"\n"


def _write_lines(file: BinaryIO, rows: Iterable[Json], header: Json) -> Json:
    file.write(bytes(_HEADER_BYTES))
    digest, count, dim = blake2b(digest_size=32), 0, None
    for row in rows:
        dim = dim if row["vector"] is None else len(row["vector"])
        line = _line(row)
        digest.update(line)
        file.write(line)
        count += 1
    header |= {"memories": count, "dim": dim, "digest": digest.hexdigest()}
    file.seek(0)
    file.write(json.dumps(header).encode().ljust(_HEADER_BYTES - 1) + b"\n")
    file.seek(0, os.SEEK_END)
    return header


def _read_lines(path: Path) -> tuple[Json, Iterator[Json]]:
    digest, count = blake2b(digest_size=32), 0
    with path.open("rb") as file:
        header = _known(path, json.loads(file.readline()))
        for line in file:
            digest.update(line)
            count += 1
    _same(path, header, count, digest.hexdigest())
    return header, _rows_of_lines(path)


def _rows_of_lines(path: Path) -> Iterator[Json]:
    with path.open("rb") as file:
        file.readline()
        for line in file:
            row = json.loads(line)
            if row["vector"] is not None:
                row["vector"] = np.frombuffer(base64.b64decode(row["vector"], validate=True), "<f4")
            yield row


def _write_parquet(file: BinaryIO, rows: Iterable[Json], header: Json) -> Json:
    """The digest is over the values as read back, so a number that a column changes (3 to 3.0) does not break it."""
    rest, count, digest = iter(rows), 0, blake2b(digest_size=32)
    batch = [*islice(rest, BATCH)]
    dim = next((len(row["vector"]) for row in batch if row["vector"] is not None), None)
    vector = pa.field("vector", pa.list_(pa.float32(), dim or 1))
    with pq.ParquetWriter(file, columns.SCHEMA.append(vector), compression="zstd") as writer:
        while batch:
            packed = pa.array([row["vector"] for row in batch], vector.type)
            table = columns.carried_table(batch).append_column(vector, packed)
            writer.write_table(table)
            for row in _rows_of_table(table):
                digest.update(_line(row))
            count += len(batch)
            batch = [*islice(rest, BATCH)]
        header |= {"memories": count, "dim": dim, "digest": digest.hexdigest()}
        writer.add_key_value_metadata({FORMAT: json.dumps(header)})
    return header


def _read_parquet(path: Path) -> tuple[Json, Iterator[Json]]:
    with pq.ParquetFile(path) as file:
        header = _known(path, json.loads(file.metadata.metadata[FORMAT.encode()]))
    digest, count = blake2b(digest_size=32), 0
    for row in _rows_of_parquet(path):
        digest.update(_line(row))
        count += 1
    _same(path, header, count, digest.hexdigest())
    return header, _rows_of_parquet(path)


def _rows_of_parquet(path: Path) -> Iterator[Json]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH):
            yield from _rows_of_table(pa.Table.from_batches([batch]))


def _rows_of_table(table: pa.Table) -> Iterator[Json]:
    vectors = table["vector"].to_pylist()
    for row, vector in zip(columns.carried_of(table), vectors, strict=True):
        yield {**row, "vector": None if vector is None else np.asarray(vector, np.float32)}


def _same(path: Path, header: Json, count: int, digest: str) -> None:
    if (count, digest) != (header["memories"], header["digest"]):
        raise _bad(path, "was changed or cut off: its digest does not match")


def _known(path: Path, header: Json) -> Json:
    if header["format"] != FORMAT:
        raise _bad(path, "is no export of ours")
    if header["schema"] > SCHEMA_VERSION:
        raise _bad(path, f"has schema {header['schema']}, this version reads {SCHEMA_VERSION}: upgrade first")
    return header


def _checked(
    path: Path, header: Json, found: Iterator[Json], max_text_bytes: int, into: str | None
) -> Iterator[Json]:
    number = 0
    try:
        for row in found:
            number += 1
            yield _check(row, header["dim"], max_text_bytes, into)
    except SharpwaveError as error:
        raise _bad(path, f"row {number}: {error.message}") from error
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error, pa.ArrowException) as error:
        raise _bad(path, f"row {number} is malformed ({type(error).__name__})") from error


def _check(row: Json, dim: int | None, max_text_bytes: int, into: str | None) -> Json:
    """The row, validated as one of our own."""
    vector = row["vector"]
    if vector is not None and vector.shape != (dim,):
        raise InvalidInput(f"vector has shape {vector.shape}, the file's dim is {dim}", param="vector")
    return check_row(row, max_text_bytes=max_text_bytes, into=into)


def _bad(path: Path, what: str) -> InvalidInput:
    return InvalidInput(f"file {path.name!r} {what}", param="file")
