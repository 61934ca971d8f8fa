"""A human-readable log: one JSON object a line, append-only.

    folder/log.jsonl   the log                          folder/owner.lock   who owns it
    folder/synced      how many of its bytes are known to be on disk

    {"record": 7, "op": "put", ..., "body": {...}, "vector": base64, "crc": "1f2e3d4c"}
    {"commit": 5, "op_id": ..., "request": ..., "result": ..., "erase": [2], "drop": [...], "crc": ...}
    {"state": {"seq": 7, "anchor": ..., "epoch": 3, ...}, "crc": ...}

An operation is its records and its commit line; a batch of operations ends with a state line and one
fsync. Bytes after the last state line are the rest of a batch that a crash interrupted: it was never
acknowledged, and opening truncates it. `synced` distinguishes that from damage: it is written after every fsync
and before the acknowledgement, so an unreadable line within that length was once whole.

Erased records and dropped results keep their lines until `scrub` rewrites the file without the content.
"""

import io
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

from common.errors import NotReady, StoreCorrupt
from common.files import sync_folder
from stores.log import base, jsonl_lines
from stores.log import record as records
from stores.log.base import BaseLog, Operation
from stores.log.jsonl_contents import scan
from stores.log.lmdb import lock_file
from stores.log.record import PLAIN, Chain, Record

_COPY_BYTES = 1 << 20


class JsonlLog(BaseLog):
    """The JSON lines backend; see `Log` for the methods."""

    def __init__(
        self, path: Path, *, identity: Mapping[str, Any], chain: Chain = PLAIN, wait_s: float = 0.0
    ) -> None:
        """Lock the folder; see `open_log` for the arguments and errors."""
        super().__init__(path, identity=identity, chain=chain)
        self._file, self._draft = path / "log.jsonl", path / "log.jsonl.new"
        self._log: BinaryIO | None = None
        self._changing = threading.Lock()  # readers need file, contents and meta of one state
        path.mkdir(parents=True, exist_ok=True)
        self._owner = lock_file(path / "owner.lock", wait_s)
        try:
            self._draft.unlink(missing_ok=True)  # a rewrite that a crash interrupted
            self._open()
            self._append([jsonl_lines.state(self._begin_epoch(self._contents.meta))])
            if self.scrub_due:
                self.scrub()
        except OSError as error:
            self.close()
            raise NotReady(f"log {path} cannot be opened: {error}") from error
        except BaseException:
            self.close()
            raise

    def seen(self, op_id: str, request: str | None) -> Any:
        base.op_key(op_id)
        with self._changing:
            log, found = self._opened(), self._contents.results.get(op_id)
            if found is None:
                return None
            if op_id in self._contents.dropped:
                return base.answer(base.GONE, op_id, request)
            line = _commit_line(log.fileno(), op_id, found)
        return base.unpack_result(line, op_id, request)

    def results(self) -> Iterator[tuple[str, Any]]:
        with self._changing:
            log, found = self._opened().fileno(), self._contents
            lines = {
                op_id: None if op_id in found.dropped else _commit_line(log, op_id, place)
                for op_id, place in found.results.items()
            }
        for op_id, line in lines.items():
            yield op_id, None if line is None else base.result_of(line)

    def commit(self, operations: Sequence[Operation]) -> None:
        self._check_writable()
        self._opened()
        first, lines = self._meta["commits"] + 1, []
        staged: dict[int, Record] = {}
        for number, operation in enumerate(operations, start=first):
            lines += [jsonl_lines.encode(record) for record in operation.records]
            staged.update((record.seq, record) for record in operation.records)
            erased = (staged.get(seq) or self._record(seq) for seq in operation.erase)
            dropped = {*operation.drop, *(record.op_id for record in erased if base.reveals_content(record))}
            lines.append(jsonl_lines.commit(number, operation, dropped))
        lines.append(jsonl_lines.state(self._after(operations)))
        if not self._owns_file():
            raise self._fenced()
        try:
            self._append(lines)
        except OSError as error:
            raise self._stopped(error) from error

    def records(self, after: int = 0) -> Iterator[Record]:
        with self._changing:
            meta, erased, offsets = self._meta, self._contents.erased, self._contents.offsets
            known = 0 < after <= len(offsets) and not self._contents.damaged
            file = self._reader(offsets[after - 1] if known else 0)
        last, expected, anchor = meta["seq"], after if known else 1, self.chain.genesis
        with file:
            for line in file:
                kind = jsonl_lines.kind(line)
                if kind is None:
                    raise jsonl_lines.broken(line, expected, f"log {self.path}")
                if kind != "record":
                    continue
                record = jsonl_lines.decode(line)
                if record.seq != expected:
                    break
                anchor, expected = record.anchor, expected + 1
                if record.seq > after:
                    yield records.erase(record) if record.seq in erased else record
        if (expected, anchor.hex()) != (last + 1, meta["anchor"]) or after > last:
            missing = max(expected, after + 1)
            raise StoreCorrupt(f"log {self.path}: record {missing} is missing; the last is {last}")

    def scrub(self) -> bool:
        """Rewrite the file without erased content and results that are no longer kept. A crash leaves the old file
        or the new one. False if the disk has no room: the scrub stays due."""
        self._check_writable()
        if not self._owns_file():
            raise self._fenced()
        meta = {**self._meta, "scrub_due": False}
        try:
            with self._draft.open("wb") as fresh:
                for line in self._alive():
                    fresh.write(line)
                fresh.write(jsonl_lines.state(meta))
                fresh.flush()
                os.fsync(fresh.fileno())
                self._note_synced(fresh.fileno(), fresh.tell())
        except OSError:
            self._draft.unlink(missing_ok=True)
            return False
        try:
            os.replace(self._draft, self._file)
            self._open()
        except OSError as error:
            raise self._stopped(error) from error
        return True

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
        if not self._owner.closed:
            self._owner.close()

    # The file

    def _open(self) -> None:
        """Read the file, truncate what a crash left at its end, and sync the rest."""
        log = os.fdopen(os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        synced = self._synced()
        with _reader(log.fileno(), os.fstat(log.fileno()).st_size) as file:
            contents = scan(file, synced, self.path)
        with self._changing:
            if self._log is not None:
                self._log.close()
            self._log, self._contents, self._meta = log, contents, contents.meta or {}
        log.truncate(contents.end)
        self._write_again(min(synced, contents.end))
        sync_folder(self.path)
        sync_folder(self.path.parent)

    def _write_again(self, start: int) -> None:
        """Overwrite the bytes from `start` on with themselves: if a former owner's fsync failed, ours would succeed
        without writing them."""
        log = self._opened().fileno()
        for offset in range(start, self._contents.end, _COPY_BYTES):
            piece = os.pread(log, min(_COPY_BYTES, self._contents.end - offset), offset)
            _write(log, piece, offset)
        self._sync(self._contents.end)

    def _append(self, lines: Sequence[bytes]) -> None:
        """Append one batch; on return it is on disk and in `contents`."""
        start = self._contents.end
        _write(self._opened().fileno(), b"".join(lines), start)
        offsets = [*accumulate(map(len, lines), initial=start)]
        self._sync(offsets[-1])
        with self._changing:
            self._contents.take_all(zip(map(jsonl_lines.kind, lines), lines, offsets, strict=False))
            assert self._contents.meta is not None, "a batch ends with a state line"
            self._meta = self._contents.meta

    def _sync(self, end: int) -> None:
        log = self._opened()
        os.fsync(log.fileno())
        self._note_synced(log.fileno(), end)

    def _note_synced(self, log: int, size: int) -> None:
        """Record that so many bytes are on disk. The file itself is not synced: an older value is still true."""
        note = b"file %020d bytes %020d\n" % (os.fstat(log).st_ino, size)
        handle = os.open(self.path / "synced", os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.pwrite(handle, note, 0)
        finally:
            os.close(handle)

    def _synced(self) -> int:
        """How many bytes of this file are known to have been synced."""
        try:
            _, inode, _, size = (self.path / "synced").read_bytes().split()
            return int(size) if int(inode) == self._file.stat().st_ino else 0
        except (OSError, ValueError):
            return 0

    def _owns_file(self) -> bool:
        """If the file lock fails, for example on a network disk, a newer owner's lines still show it."""
        try:
            now, ours = self._file.stat(), os.fstat(self._opened().fileno())
        except FileNotFoundError:
            return False
        return (now.st_ino, now.st_size) == (ours.st_ino, self._contents.end)

    def _opened(self) -> BinaryIO:
        if self._log is None or self._log.closed:
            raise NotReady(f"log {self.path} is closed", code="log_closed")
        return self._log

    def _reader(self, start: int = 0) -> BinaryIO:
        return _reader(self._opened().fileno(), self._contents.end, start)

    def _record(self, seq: int) -> Record:
        """One record, read from its line."""
        found = self._contents
        if found.damaged:
            return next(self.records(seq - 1))
        start = found.offsets[seq - 1]
        end = found.offsets[seq] if seq < len(found.offsets) else found.end
        line = os.pread(self._opened().fileno(), end - start, start).splitlines(keepends=True)[0]
        if jsonl_lines.kind(line) != "record":
            raise jsonl_lines.broken(line, seq, f"log {self.path}")
        return jsonl_lines.decode(line)

    def _alive(self) -> Iterator[bytes]:
        """The lines of a rewritten file."""
        found = self._contents
        offset, kept = 0, {place for op_id, place in found.results.items() if op_id not in found.dropped}
        with self._reader() as file:
            for line in file:
                kind, place = jsonl_lines.kind(line), (offset, len(line))
                if kind is None:
                    raise StoreCorrupt(f"log {self.path}: the line at byte {offset} fails its checksum")
                if kind == "record":
                    record = jsonl_lines.decode(line)
                    gone = record.seq in self._contents.erased
                    alive = records.erase(record) if gone else self._rewritten(record)
                    yield line if alive is record else jsonl_lines.encode(alive)
                elif kind == "commit" and place not in kept:
                    yield jsonl_lines.without_result(line)
                else:
                    yield line
                offset += len(line)


class _Span(io.RawIOBase):
    """An open file up to `end` with a read position of its own: others read, append and rewrite meanwhile."""

    def __init__(self, file: int, start: int, end: int) -> None:
        self._handle, self._place, self._end = os.dup(file), start, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = os.pread(self._handle, min(len(buffer), self._end - self._place), self._place)
        buffer[: len(piece)] = piece
        self._place += len(piece)
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            os.close(self._handle)
        super().close()


def _reader(file: int, end: int, start: int = 0) -> BinaryIO:
    return io.BufferedReader(_Span(file, start, end), _COPY_BYTES)


def _commit_line(file: int, op_id: str, place: tuple[int, int]) -> bytes:
    offset, size = place
    line = os.pread(file, size, offset)
    if jsonl_lines.kind(line) != "commit":
        raise StoreCorrupt(f"the result of operation {op_id!r} fails its checksum: restore this shard")
    return line


def _write(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written
