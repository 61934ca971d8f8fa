"""A log in one LMDB file: the default.

One folder has one owner, enforced by a file lock. One transaction, with one fsync, holds everything that a
batch changes: records, erased contents, results and the counters.

    folder/data.mdb, lock.mdb   LMDB       folder/owner.lock   who owns it
    log      seq -> record                 meta      one JSON object: seq, anchor, epoch, counters, ...
    results  op_id -> operation number, answer       order    operation number -> op_id
"""

import fcntl
import json
import os
import shutil
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lmdb

from common.errors import NotReady, StoreCorrupt
from common.files import sync_folder
from stores.log import base
from stores.log import record as records
from stores.log.base import BaseLog, Operation
from stores.log.migrations import migration
from stores.log.record import PLAIN, Chain, Record

_NUMBER = struct.Struct(">Q")
_META = b"meta"
_PART_BYTES = 1 << 20  # of records that are read at once


class LmdbLog(BaseLog):
    """The LMDB backend; see `Log` for the methods."""

    def __init__(
        self,
        path: Path,
        *,
        map_size_bytes: int,
        identity: Mapping[str, Any],
        chain: Chain = PLAIN,
        wait_s: float = 0.0,
    ) -> None:
        """Lock the folder; see `open_log` for the arguments and errors."""
        super().__init__(path, identity=identity, chain=chain)
        self._map_size = map_size_bytes
        self._replacing = threading.Lock()  # a writer may replace the file while others read
        path.mkdir(parents=True, exist_ok=True)
        self._owner = lock_file(path / "owner.lock", wait_s)
        try:
            shutil.rmtree(path / "scrub", ignore_errors=True)  # a rewrite that a crash interrupted
            self._open()
            self._migrate()
            with self._env.begin(write=True) as txn:
                self._meta = self._begin_epoch(_read_meta(txn))
                _write_meta(txn, self._meta)
            if self.scrub_due:
                self.scrub()
        except BaseException:
            self.close()
            raise

    def seen(self, op_id: str, request: str | None) -> Any:
        key = base.op_key(op_id)
        self._opened()
        if key not in self._kept:
            return None
        with self._replacing, self._opened().begin(db=self._results) as txn:
            raw = txn.get(key)
        kept = records.check_crc(raw or b"", f"the result of operation {op_id!r}")[_NUMBER.size :]
        return base.unpack_result(kept, op_id, request)

    def results(self) -> Iterator[tuple[str, Any]]:
        with self._replacing, self._opened().begin(db=self._results) as txn:
            found = [*txn.cursor()]
        for key, raw in found:
            op_id = key.decode()
            kept = records.check_crc(raw, f"the result of operation {op_id!r}")[_NUMBER.size :]
            yield op_id, base.result_of(kept)

    def commit(self, operations: Sequence[Operation]) -> None:
        self._check_writable()
        meta, keys = self._after(operations), [operation.op_id.encode() for operation in operations]
        try:
            with self._env.begin(write=True) as txn:
                self._check_owner(txn)
                self._append(txn, [record for operation in operations for record in operation.records])
                dropped = self._remember(txn, keys, operations)
                for operation in operations:
                    erased = [self._erase(txn, seq) for seq in operation.erase]
                    for op_id in {*operation.drop, *(r.op_id for r in erased if base.reveals_content(r))}:
                        self._drop_result(txn, op_id)
                _write_meta(txn, meta)
        except lmdb.MapFullError as error:  # raised before anything reaches the file: the log stays usable
            raise NotReady(
                f"{self.path} holds its limit of {self._map_size} bytes; raise store.map_size_bytes",
                code="store_full",
            ) from error
        except (lmdb.Error, OSError) as error:
            raise self._stopped(error) from error
        self._meta = meta
        self._kept.update(keys)
        self._kept.difference_update(dropped)

    def records(self, after: int = 0) -> Iterator[Record]:
        meta = self._meta  # read once: a writer may replace it
        last, last_anchor = meta["seq"], bytes.fromhex(meta["anchor"])
        expected, anchor = after + 1, None
        while expected <= last and (part := self._part(expected, last)):
            for raw in part:
                record = records.decode(raw, expected)
                yield record
                anchor = record.anchor
                expected += 1
        if expected != last + 1 or anchor not in (None, last_anchor):
            raise StoreCorrupt(f"log {self.path}: record {expected} is missing; the last is {last}")

    def _part(self, first: int, last: int) -> list[bytes]:
        """The next records of `first` to `last` as bytes. Committed records change only by erasures, so a reader
        needs no long transaction, which would keep old pages in the file."""
        found: list[bytes] = []
        size = 0
        try:
            with self._replacing, self._opened().begin(db=self._log) as txn:
                cursor = txn.cursor()
                for key, raw in cursor if cursor.set_range(_NUMBER.pack(first)) else ():
                    number = first + len(found)
                    if key != _NUMBER.pack(number) or number > last or size > _PART_BYTES:
                        break
                    found.append(raw)
                    size += len(raw)
        except lmdb.Error as error:
            if not found:
                raise StoreCorrupt(f"log {self.path}: record {first} cannot be read: {error}") from error
        return found

    def scrub(self) -> bool:
        """Rewrite the file from the live data, so that no page of it holds erased content.

        LMDB's own compacting copy is not enough: it copies the unused ends of pages, and LMDB builds pages in
        memory that held others before. Costs a copy of the live data. A crash leaves the old file or the new
        one. False if the disk has no room: the scrub stays due, and the next erasure or open tries again.
        """
        try:
            self._rewrite({**self._meta, "scrub_due": False}, self._changed if self.rewrite else _same)
        except (lmdb.Error, OSError):
            return False
        return True

    def _migrate(self) -> None:
        """Convert a log of the previous format to the current one."""
        with self._env.begin() as txn:
            meta = _read_meta(txn)
        while meta and (found := migration(meta)):
            meta = found.meta(meta)
            try:
                self._rewrite(meta, found.record)
            except (lmdb.Error, OSError) as error:
                raise NotReady(f"log {self.path} has no room to be brought up to date: {error}") from error

    def _rewrite(self, meta: dict[str, Any], change: Callable[[bytes, int], bytes]) -> None:
        """Replace the file by one with every record rewritten. The old one stays if that fails or a crash
        interrupts it."""
        folder = self.path / "scrub"
        try:
            folder.mkdir(exist_ok=True)
            self._copy_alive(folder, meta, change)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        with self._replacing:
            self._env.close()
            os.replace(folder / "data.mdb", self.path / "data.mdb")
            shutil.rmtree(folder)
            self._open()
            self._meta = meta

    def _copy_alive(
        self, folder: Path, meta: Mapping[str, Any], change: Callable[[bytes, int], bytes]
    ) -> None:
        with _environment(folder, self._map_size) as fresh:
            databases = [(old, fresh.open_db(name)) for name, old in self._databases.items()]
            with self._env.begin() as source, fresh.begin(write=True) as target:
                if "epoch" in self._meta:  # not before our epoch began: a migration, under the folder's lock
                    self._check_owner(source)  # else our file would replace the new owner's
                for old, new in databases:
                    rows: Iterator[tuple[bytes, bytes]] = iter(source.cursor(old))
                    if old is self._log and change is not _same:
                        rows = ((key, change(raw, *_NUMBER.unpack(key))) for key, raw in rows)
                    target.cursor(new).putmulti(rows, append=True)
                _write_meta(target, meta)

    def _changed(self, raw: bytes, seq: int) -> bytes:
        return records.encode(self._rewritten(records.decode(raw, seq)))

    def close(self) -> None:
        """Release the folder. Closing twice is allowed."""
        with self._replacing:
            if hasattr(self, "_env"):
                self._env.close()
            if not self._owner.closed:
                self._owner.close()

    def _opened(self) -> lmdb.Environment:
        if self._owner.closed:
            raise NotReady(f"log {self.path} is closed", code="log_closed")
        return self._env

    def _open(self) -> None:
        try:
            self._env = _environment(self.path, self._map_size)
            self._databases = {name: self._env.open_db(name) for name in (b"log", b"results", b"order")}
            self._log, self._results, self._order = self._databases.values()
            self._env.reader_check()  # slots of readers that were killed
            with self._env.begin(db=self._results) as txn:  # most operations are new: no lookup needed
                self._kept = {*txn.cursor().iternext(keys=True, values=False)}
        except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError) as error:
            raise StoreCorrupt(f"log {self.path} is no LMDB file of ours: {error}") from error
        except (lmdb.Error, OSError) as error:
            raise NotReady(f"log {self.path} cannot be opened: {error}") from error
        sync_folder(self.path)
        sync_folder(self.path.parent)

    def _check_owner(self, txn: lmdb.Transaction) -> None:
        """If the file lock fails, for example on a network disk, the epoch still shows a newer owner."""
        found = _read_meta(txn)
        if found is None or found["epoch"] != self.epoch:
            raise self._fenced()

    def _append(self, txn: lmdb.Transaction, staged: Sequence[Record]) -> None:
        rows = ((_NUMBER.pack(record.seq), records.encode(record)) for record in staged)
        _, added = txn.cursor(self._log).putmulti(rows, append=True)
        if added != len(staged):
            raise lmdb.Error(f"{added} of {len(staged)} records were taken")

    def _erase(self, txn: lmdb.Transaction, seq: int) -> Record:
        key = _NUMBER.pack(seq)
        record = records.decode(bytes(txn.get(key, default=b"", db=self._log)), seq)
        txn.put(key, records.encode(records.erase(record)), db=self._log)
        return record

    def _remember(
        self, txn: lmdb.Transaction, keys: Sequence[bytes], operations: Sequence[Operation]
    ) -> list[bytes]:
        """Keep the results for retries and drop as many of the oldest; returns the keys of those dropped."""
        first = self._meta["commits"] + 1
        numbers = range(first, first + len(operations))
        order = [*zip(map(_NUMBER.pack, numbers), keys, strict=True)]
        results = (
            (key, records.add_crc(place + base.pack_result(operation)))
            for (place, key), operation in zip(order, operations, strict=True)
        )
        txn.cursor(self._results).putmulti(results)
        txn.cursor(self._order).putmulti(order, append=True)
        full = numbers[max(0, base.RESULTS_KEPT + 1 - first) :]
        oldest = (txn.pop(_NUMBER.pack(number - base.RESULTS_KEPT), db=self._order) for number in full)
        dropped = [bytes(key) for key in oldest if key is not None]
        for key in dropped:
            txn.delete(key, db=self._results)
        return dropped

    def _drop_result(self, txn: lmdb.Transaction, op_id: str) -> None:
        key = op_id.encode()
        if raw := txn.get(key, db=self._results):
            place = records.check_crc(bytes(raw), f"the result of operation {op_id!r}")[: _NUMBER.size]
            txn.put(key, records.add_crc(place + base.pack_result(None)), db=self._results)


def lock_file(path: Path, wait_s: float) -> Any:
    """An open file that holds the lock until it is closed or the process dies."""
    file = path.open("a+")
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            file.seek(0)
            owner = file.read() or "another process"
            file.close()
            raise NotReady(f"log {path.parent} is owned by {owner}", code="owned") from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def _same(raw: bytes, seq: int) -> bytes:
    return raw


def _environment(folder: Path, map_size_bytes: int) -> lmdb.Environment:
    """An environment in which every commit fsyncs, in the file format of LMDB 0.9 whatever the binding's default."""
    return lmdb.open(str(folder), map_size=map_size_bytes, max_dbs=3, lib_version=0)


def _read_meta(txn: lmdb.Transaction) -> dict[str, Any] | None:
    raw = txn.get(_META)
    return None if raw is None else json.loads(records.check_crc(bytes(raw), "the log's meta page"))


def _write_meta(txn: lmdb.Transaction, meta: Mapping[str, Any]) -> None:
    txn.put(_META, records.add_crc(base.encode_json(meta)))
