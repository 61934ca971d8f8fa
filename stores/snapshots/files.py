"""One snapshot: the state of a shard's log at one record, in files that open faster than the log.

    <seq>/memories.parquet   a row a memory: every field, statistics, seq, anchor; nested values as JSON
          vectors.parquet    the vector of each of those rows
          parts.bin          blobs: indexes that are slow to build, and everything of encrypted namespaces
          manifest.json      written last: schema version, seq, anchor, epoch, counts, digests

A snapshot is a cache of the log, used only if its checks pass: `load` checks schema version and digests, and
`check_log` that the log's own record `seq` has the same anchor. Files are written into
a temporary folder, fsynced and renamed, so a crash leaves a whole snapshot or none.
"""

import os
import shutil
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import NotFound
from common.files import sync_folder
from common.types import Json
from stores.index.vectors import Vectors
from stores.log.base import Log
from stores.snapshots import arrow
from stores.snapshots.manifest import (
    FORMAT,
    SCHEMA_VERSION,
    check_files,
    file_digest,
    read_manifest,
    refused,
    write_manifest,
)
from stores.view.memory_state import MemoryState
from stores.view.view import View

LONG_NAME = 255  # in place of a length: it follows in two bytes
TABLE, RAW_VECTORS = "table", "vectors"  # parts that replace the Parquet files for encrypted namespaces
MEMORIES, VECTORS, PARTS = "memories.parquet", "vectors.parquet", "parts.bin"
TEMPORARY = ".tmp-"
GROUP_ROWS = 16_384  # of a Parquet row group, and of one encrypted blob

CONTEXT = b"file"  # context that a keyring binds pieces of files to

Parts = list[tuple[str, memoryview]]


class Decryptor(Protocol):
    """Decryption as by a `Keyring`, or `Keyrings`."""

    def decrypt_any(self, sealed: bytes, context: bytes = b"") -> bytes: ...


class Encryptor(Decryptor, Protocol):
    """Encryption of namespaces as by a `Keyring`. With one, everything of every namespace is encrypted, names
    included."""

    def encrypt_bytes(self, namespace: str, data: bytes) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """A shard's view at one record. `spaces` are `(namespace, output of arrow.captured, vectors, parts)`,
    vectors `[n, dim]` in the order of the rows."""

    seq: int
    anchor: str
    epoch: int
    shard: int
    dim: int
    spaces: Sequence[tuple[str, list[arrow.Captured], Callable[[], Vectors], Mapping[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSpace:
    """One namespace of a snapshot; `vectors()` reads `[n, dim]` in the order of `table`'s rows."""

    namespace: str
    table: pa.Table
    vectors: Callable[[], Vectors]
    parts: Mapping[str, memoryview]

    def entries(self) -> list[MemoryState]:
        return arrow.entries_of(self.table)


def capture(view: View, state: Mapping[str, Any], shard: int) -> Capture:
    """The state of the view, to be written later. The caller holds the view's lock for reading: this takes
    about a microsecond a memory and one copy of the vectors. `state` is the log's at the same record."""
    spaces = []
    for namespace, space in view.spaces.items():
        found = arrow.captured(space.entries.values())
        spaces.append((namespace, found, *space.dump()))
    return Capture(
        seq=state["seq"],
        anchor=state["anchor"],
        epoch=state["epoch"],
        shard=shard,
        dim=view.dim,
        spaces=spaces,
    )


def write(
    root: Path, captured: Capture, *, now: float, encryptor: Encryptor | None, go_on: Callable[[], None]
) -> Path:
    """Write the snapshot into `root/<seq>` and return that folder; a damaged one there is replaced.

    `go_on` is called between steps and before the snapshot appears; if it raises, nothing is left.
    """
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f"{TEMPORARY}{captured.seq}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        parts = _write_spaces(folder, captured, encryptor, go_on)
        manifest = {
            "format": FORMAT,
            "schema": SCHEMA_VERSION,
            "seq": captured.seq,
            "anchor": captured.anchor,
            "epoch": captured.epoch,
            "shard": captured.shard,
            "dim": captured.dim,
            "made": now,
            "counts": {
                "memories": sum(len(found) for _, found, _, _ in captured.spaces),
                "namespaces": len(captured.spaces),
            },
            "sealed": encryptor is not None,
            "parts": parts,
            "files": {name: file_digest(folder / name) for name in (MEMORIES, VECTORS, PARTS)},
        }
        write_manifest(folder, manifest)
        sync_folder(folder)
        go_on()
        final = root / f"{captured.seq:020d}"
        shutil.rmtree(final, ignore_errors=True)
        os.replace(folder, final)
        sync_folder(root)
        return final
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write_spaces(
    folder: Path, captured: Capture, encryptor: Encryptor | None, go_on: Callable[[], None]
) -> list[Json]:
    """Returns the position of each blob in `parts.bin`."""
    parts: list[Json] = []
    with (folder / PARTS).open("wb") as blobs, _tables(folder, captured.dim) as write_rows:
        for namespace, table, found, dumped in _batches(captured):
            go_on()
            if encryptor is not None:
                dumped = {TABLE: _ipc(table), RAW_VECTORS: found.tobytes(), **dumped}
            elif table.num_rows:
                write_rows(table, found)
            for part, data in dumped.items():
                parts.append({"part": part, "at": blobs.tell()})
                for piece in _blob(namespace, data, encryptor):
                    blobs.write(piece)
                parts[-1]["bytes"] = blobs.tell() - parts[-1]["at"]
    for name in (MEMORIES, VECTORS, PARTS):
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
    return parts


@contextmanager
def _tables(folder: Path, dim: int) -> Iterator[Callable[[pa.Table, Vectors], None]]:
    """A function that appends rows to the Parquet files; small namespaces share row groups."""
    schema = pa.schema([("vector", pa.binary(dim * 4))])
    raw = {"use_dictionary": False, "compression": "none", "write_statistics": False}
    held: list[tuple[pa.Table, Vectors]] = []
    count = 0
    with (
        pq.ParquetWriter(
            folder / MEMORIES, arrow.SCHEMA, compression="zstd", compression_level=1
        ) as memories,
        pq.ParquetWriter(folder / VECTORS, schema, **raw) as vectors,
    ):

        def flush() -> None:
            nonlocal count
            if held:
                tables, found = zip(*held, strict=True)
                memories.write_table(pa.concat_tables(tables))
                vectors.write_table(pa.table([arrow.vector_bytes(np.concatenate(found))], schema=schema))
                held.clear()
                count = 0

        def write(table: pa.Table, found: Vectors) -> None:
            nonlocal count
            held.append((table, found))
            count += table.num_rows
            if count >= GROUP_ROWS:
                flush()

        yield write
        flush()


def _blob(namespace: str, data: Any, encryptor: Encryptor | None) -> Sequence[Any]:
    """Length and name of the namespace, then the data; the name is inside, so it is encrypted too. The length is one
    byte, or `LONG_NAME` and two bytes, big endian."""
    name = namespace.encode()
    size = bytes([len(name)]) if len(name) < LONG_NAME else bytes([LONG_NAME]) + len(name).to_bytes(2, "big")
    pieces = [size, name, data]
    return pieces if encryptor is None else [encryptor.encrypt_bytes(namespace, b"".join(pieces))]


def _batches(captured: Capture) -> Iterator[tuple[str, pa.Table, Vectors, Mapping[str, Any]]]:
    """Namespace by namespace, at most `GROUP_ROWS` rows at a time; parts come with the first."""
    for namespace, found, read_vectors, parts in captured.spaces:
        vectors = read_vectors()
        for start in range(0, max(1, len(found)), GROUP_ROWS):
            chosen = slice(start, start + GROUP_ROWS)
            yield namespace, arrow.captured_table(found[chosen]), vectors[chosen], {} if start else parts


def _ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def check_log(folder: Path, manifest: Mapping[str, Any], log: Log) -> None:
    """Raises `StoreCorrupt` with the code `log` if the snapshot was not made from this log."""
    seq = manifest["seq"]
    if seq > log.seq:
        raise refused(folder, "log", f"it covers record {seq}, the log ends at {log.seq}")
    if next(iter(log.records(after=seq - 1))).anchor.hex() != manifest["anchor"]:
        raise refused(folder, "log", f"record {seq} of the log has another anchor")


def load(
    folder: Path, *, encryptor: Decryptor | None = None, only: Container[str] | None = None
) -> tuple[Json, list[LoadedSpace]]:
    """The manifest and the namespaces in `only` (None: all), all checked, except vectors that are never read.

    Raises `StoreCorrupt` whose code is the reason: `manifest`, `schema`, `digest`, `sealed` or
    `unreadable`.
    """
    manifest = read_manifest(folder)
    if manifest["sealed"] and encryptor is None:
        raise refused(folder, "sealed", "it is encrypted; open it with the keyring of its store")
    check_files(folder, manifest, (MEMORIES, PARTS))
    try:
        found = [*_open_spaces(folder, manifest), *_sealed_spaces(folder, manifest, encryptor)]
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise refused(folder, "unreadable", f"it cannot be decoded ({type(error).__name__})") from error
    return manifest, [space for space in found if only is None or space.namespace in only]


def _open_spaces(folder: Path, manifest: Json) -> Iterator[LoadedSpace]:
    """Namespaces with rows in the Parquet files, and those that have parts only."""
    if manifest["sealed"]:
        return
    table = pq.read_table(folder / MEMORIES, memory_map=True)
    read_vectors, blobs = _vectors_reader(folder, manifest), _read_parts(folder, manifest, None)
    for namespace, start, end in _runs(table["namespace"]):
        yield LoadedSpace(
            namespace=namespace,
            table=table.slice(start, end - start),
            vectors=lambda start=start, end=end: read_vectors()[start:end],  # type: ignore[misc]
            parts=dict(blobs.pop(namespace, ())),
        )
    for namespace, parts in blobs.items():
        yield _space_of_parts(namespace, parts, manifest["dim"])


def _sealed_spaces(folder: Path, manifest: Json, encryptor: Decryptor | None) -> Iterator[LoadedSpace]:
    if manifest["sealed"]:
        for namespace, parts in _read_parts(folder, manifest, encryptor).items():
            yield _space_of_parts(namespace, parts, manifest["dim"])


def _space_of_parts(namespace: str, parts: Parts, dim: int) -> LoadedSpace:
    tables = [pa.ipc.open_stream(data).read_all() for part, data in parts if part == TABLE]
    vectors = b"".join(data for part, data in parts if part == RAW_VECTORS)
    return LoadedSpace(
        namespace=namespace,
        table=pa.concat_tables(tables) if tables else arrow.SCHEMA.empty_table(),
        vectors=lambda: arrow.vectors_from(vectors, dim),
        parts={part: data for part, data in parts if part not in (TABLE, RAW_VECTORS)},
    )


def _runs(column: pa.ChunkedArray) -> Iterator[tuple[str, int, int]]:
    """`(namespace, start, end)`: a namespace's rows are contiguous."""
    start = 0
    for namespace, run in groupby(column.to_pylist()):
        end = start + sum(1 for _ in run)
        yield namespace, start, end
        start = end


def _vectors_reader(folder: Path, manifest: Json) -> Callable[[], Vectors]:
    """A function that reads and checks the vectors on its first call only."""
    kept: list[Vectors] = []

    def read() -> Vectors:
        if not kept:
            check_files(folder, manifest, [VECTORS])
            column = pq.read_table(folder / VECTORS, memory_map=True)["vector"]
            kept.append(arrow.vectors_of(column, manifest["dim"]))
        return kept[0]

    return read


def _read_parts(folder: Path, manifest: Json, encryptor: Decryptor | None) -> dict[str, Parts]:
    """`(part, data)` by namespace. Those whose key was destroyed are left out, as intended."""
    found: dict[str, Parts] = {}
    if not manifest["parts"]:
        return found
    with (folder / PARTS).open("rb") as file:
        every = memoryview(mmap(file.fileno(), 0, access=ACCESS_READ))
    for place in manifest["parts"]:
        blob = every[place["at"] : place["at"] + place["bytes"]]
        try:
            opened = blob if encryptor is None else memoryview(encryptor.decrypt_any(bytes(blob), CONTEXT))
        except NotFound:
            continue
        first = 1 if opened[0] < LONG_NAME else 3
        start = first + (opened[0] if first == 1 else int.from_bytes(opened[1:3], "big"))
        found.setdefault(str(opened[first:start], "utf-8"), []).append((place["part"], opened[start:]))
    return found
