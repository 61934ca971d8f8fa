"""The append-only log of a shard, in LMDB. When `commit` returns, the operation is on disk.

One folder has one owner: a file lock keeps others out, and each owner writes under its own epoch, which
is one higher than any before it. One transaction, with one fsync, holds everything an operation changes:
its records, the contents it erases, its result and the counters. So an operation is whole or absent
whatever happens, and sending it again (same `op_id`) returns the first result.

A commit that fails stops the log. What the disk then holds is unknown, and a second fsync that succeeds
would prove nothing about the first: reads go on, writes are refused, and reopening tells the truth.

    folder/data.mdb, lock.mdb   LMDB       folder/owner.lock   who owns it
    log      seq -> record                 meta      one JSON object: seq, anchor, epoch, counters, ...
    results  op_id -> commit number, answer          order    commit number -> op_id
"""

import fcntl
import json
import os
import shutil
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lmdb

from common.errors import Conflict, InvalidInput, NotReady, StoreCorrupt
from common.files import sync_folder
from stores import record as records
from stores.record import GENESIS, Op, Record

FORMAT = 1
RESULTS_KEPT = 10_000  # operations whose result a retry can still get
MAX_OP_ID_BYTES = 128
COUNTERS = ("gate_attempts", "gate_accepts")
_NUMBER = struct.Struct(">Q")
_META = b"meta"


class LmdbLog:
    """`identity` (say shard number and dimension) is written at the first open and must match later.

    One thread may stage and commit at a time; `Shard` sees to that.
    """

    def __init__(
        self, path: Path, *, map_size_bytes: int, identity: Mapping[str, Any], wait_s: float = 0.0
    ) -> None:
        """Own the folder, waiting up to `wait_s` for a former owner to end.

        Raises `NotReady` where another process owns it, `Conflict` where `identity` is another's,
        `StoreCorrupt` where it is no log of ours.
        """
        self.path = path
        self._map_size = map_size_bytes
        self._failure: str | None = None
        path.mkdir(parents=True, exist_ok=True)
        self._owner = _lock(path / "owner.lock", wait_s)
        try:
            shutil.rmtree(path / "scrub", ignore_errors=True)  # a rewrite that a crash cut off
            self._open()
            self._meta = self._begin_epoch(identity)
            if self.scrub_due:
                self.scrub()
        except BaseException:
            self.close()
            raise

    @property
    def seq(self) -> int:
        """Number of the last record; 0 in an empty log."""
        return int(self._meta["seq"])

    @property
    def epoch(self) -> int:
        return int(self._meta["epoch"])

    @property
    def anchor(self) -> bytes:
        return bytes.fromhex(self._meta["anchor"])

    def state(self) -> dict[str, Any]:
        """`{seq, epoch, anchor}` and the counters, as of the last commit."""
        return {
            "seq": self.seq,
            "epoch": self.epoch,
            "anchor": self.anchor.hex(),
            **self._meta["counters"],
        }

    @property
    def scrub_due(self) -> bool:
        """Has content been erased that the file may still hold in freed pages?"""
        return bool(self._meta["scrub_due"])

    @property
    def failure(self) -> str | None:
        """Why the log refuses writes; None while it takes them."""
        return self._failure

    def seen(self, op_id: str, request: str) -> Any:
        """The result of an operation already committed under this id, or None.

        `request` is a digest of what is asked for. Raises `Conflict` where the id belongs to something
        else: the result may be another tenant's.
        """
        key = op_id.encode()
        if not 0 < len(key) <= MAX_OP_ID_BYTES:
            raise InvalidInput(f"op_id {op_id[:64]!r} must have 1 to {MAX_OP_ID_BYTES} bytes", param="op_id")
        if self._owner.closed:
            raise NotReady(f"log {self.path} is closed", code="log_closed")
        with self._env.begin(db=self._results) as txn:
            raw = txn.get(key)
        if raw is None:
            return None
        first = json.loads(records.unseal(raw, f"the result of operation {op_id!r}")[_NUMBER.size :])
        if first["request"] != request:
            raise Conflict(f"op_id {op_id!r} was used for another request; give a fresh one", param="op_id")
        return first["result"]

    def stage(self, op_id: str, drafts: Sequence[tuple[Op, Any, bytes]], *, now: float) -> list[Record]:
        """The records that `commit` would append for drafts `(op, body, vector)`; nothing is written."""
        staged: list[Record] = []
        previous = self.anchor
        for offset, (op, body, vector) in enumerate(drafts, start=1):
            record = records.make(
                op,
                seq=self.seq + offset,
                epoch=self.epoch,
                time=now,
                op_id=op_id,
                previous=previous,
                body=json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(),
                vector=vector,
            )
            staged.append(record)
            previous = record.anchor
        return staged

    def commit(
        self,
        op_id: str,
        request: str,
        staged: Sequence[Record],
        result: Any,
        *,
        erase: Sequence[int] = (),
        counts: Mapping[str, int] | None = None,
    ) -> None:
        """Make one operation durable: all of it or nothing.

        `erase` are numbers of records that lose their content, `counts` is added to `COUNTERS`. Raises
        `NotReady` where the log has stopped, is full, or fails now, `Conflict` where a newer owner wrote.
        """
        if self._failure:
            raise NotReady(self._failure, code="log_failed")
        meta = dict(self._meta)
        meta["commits"] += 1
        meta["scrub_due"] = meta["scrub_due"] or bool(erase)
        meta["counters"] = {name: n + (counts or {}).get(name, 0) for name, n in meta["counters"].items()}
        if staged:
            meta["seq"], meta["anchor"] = staged[-1].seq, staged[-1].anchor.hex()
        answer = json.dumps({"request": request, "result": result}, ensure_ascii=False).encode()
        try:
            with self._env.begin(write=True) as txn:
                self._check_owner(txn)
                for record in staged:
                    txn.put(_NUMBER.pack(record.seq), records.encode(record), db=self._log, append=True)
                for seq in erase:
                    self._erase(txn, seq)
                self._remember(txn, meta["commits"], op_id, answer)
                _write_meta(txn, meta)
        except lmdb.MapFullError as error:  # found before anything reaches the file: the log goes on
            raise NotReady(
                f"{self.path} holds its limit of {self._map_size} bytes; raise store.map_size_bytes",
                code="store_full",
            ) from error
        except (lmdb.Error, OSError) as error:
            self._failure = (
                f"log {self.path} stopped at record {self.seq}: a write failed ({error}). Reads go on; "
                "free or repair the disk and restart the shard"
            )
            raise NotReady(self._failure, code="log_failed") from error
        self._meta = meta

    def records(self) -> Iterator[Record]:
        """Every record in order. Raises `StoreCorrupt` naming the first that is damaged or missing."""
        expected, anchor = 1, GENESIS
        try:
            with self._env.begin(db=self._log) as txn:
                for key, raw in txn.cursor():
                    if key != _NUMBER.pack(expected):
                        break
                    record = records.decode(raw, expected)
                    yield record
                    anchor = record.anchor
                    expected += 1
        except lmdb.Error as error:
            raise StoreCorrupt(f"log {self.path}: record {expected} cannot be read: {error}") from error
        if (expected, anchor) != (self.seq + 1, self.anchor):
            raise StoreCorrupt(f"log {self.path}: record {expected} is missing; the last is {self.seq}")

    def verify(self) -> int | None:
        """Follow the anchor chain from the start; the first broken record's number, or None."""
        previous, seq = GENESIS, 0
        try:
            for record in self.records():
                seq = record.seq
                if not records.intact(record) or record.anchor != records.link(previous, record.digest):
                    return seq
                previous = record.anchor
        except StoreCorrupt:
            return seq + 1
        return None

    def scrub(self) -> bool:
        """Write the file anew from what is alive, so that no page of it holds erased content.

        LMDB's own compacting copy would not do: it takes the unused ends of pages along, and LMDB builds
        pages in memory that held others before. Costs a copy of the live data. A crash leaves the old
        file or the new one. False where the disk has no room: it stays due, and the next erasure or open
        tries again.
        """
        folder, meta = self.path / "scrub", {**self._meta, "scrub_due": False}
        try:
            folder.mkdir(exist_ok=True)
            self._copy_alive(folder, meta)
        except (lmdb.Error, OSError):
            shutil.rmtree(folder, ignore_errors=True)
            return False
        self._env.close()
        os.replace(folder / "data.mdb", self.path / "data.mdb")
        shutil.rmtree(folder)
        self._open()
        self._meta = meta
        return True

    def _copy_alive(self, folder: Path, meta: Mapping[str, Any]) -> None:
        with _environment(folder, self._map_size) as fresh:
            databases = [(old, fresh.open_db(name)) for name, old in self._databases.items()]
            with self._env.begin() as source, fresh.begin(write=True) as target:
                for old, new in databases:
                    target.cursor(new).putmulti(source.cursor(old), append=True)
                _write_meta(target, meta)

    def close(self) -> None:
        """Give the folder back. Closing twice is fine."""
        if hasattr(self, "_env"):
            self._env.close()
        if not self._owner.closed:
            self._owner.close()

    def _open(self) -> None:
        try:
            self._env = _environment(self.path, self._map_size)
            self._databases = {name: self._env.open_db(name) for name in (b"log", b"results", b"order")}
            self._log, self._results, self._order = self._databases.values()
            self._env.reader_check()  # slots of readers that were killed
        except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError) as error:
            raise StoreCorrupt(f"log {self.path} is no LMDB file of ours: {error}") from error
        except (lmdb.Error, OSError) as error:
            raise NotReady(f"log {self.path} cannot be opened: {error}") from error
        sync_folder(self.path)
        sync_folder(self.path.parent)

    def _begin_epoch(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        with self._env.begin(write=True) as txn:
            meta = _read_meta(txn) or {
                "format": FORMAT,
                "identity": dict(identity),
                "seq": 0,
                "anchor": GENESIS.hex(),
                "epoch": 0,
                "commits": 0,
                "counters": dict.fromkeys(COUNTERS, 0),
                "scrub_due": False,
            }
            if (meta["format"], meta["identity"]) != (FORMAT, dict(identity)):
                raise Conflict(
                    f"log {self.path} is format {meta['format']} of {meta['identity']}, "
                    f"not format {FORMAT} of {dict(identity)}; give its own settings or another folder"
                )
            meta["epoch"] += 1
            _write_meta(txn, meta)
        return meta

    def _check_owner(self, txn: lmdb.Transaction) -> None:
        found = _read_meta(txn)
        if found is None or found["epoch"] != self.epoch:
            self._failure = f"log {self.path} has a newer owner than epoch {self.epoch}; this one has ended"
            raise Conflict(self._failure, code="fenced")

    def _erase(self, txn: lmdb.Transaction, seq: int) -> None:
        key = _NUMBER.pack(seq)
        record = records.decode(bytes(txn.get(key, default=b"", db=self._log)), seq)
        txn.put(key, records.encode(records.erase(record)), db=self._log)

    def _remember(self, txn: lmdb.Transaction, commit: int, op_id: str, answer: bytes) -> None:
        """Keep the result for retries, and drop the oldest one."""
        number = _NUMBER.pack(commit)
        txn.put(op_id.encode(), records.seal(number + answer), db=self._results)
        txn.put(number, op_id.encode(), db=self._order, append=True)
        oldest = txn.pop(_NUMBER.pack(max(0, commit - RESULTS_KEPT)), db=self._order)
        if oldest is not None:
            txn.delete(oldest, db=self._results)


def _lock(path: Path, wait_s: float) -> Any:
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


def _environment(folder: Path, map_size_bytes: int) -> lmdb.Environment:
    """Every commit fsyncs. The file format is that of LMDB 0.9, whatever the binding comes to prefer."""
    return lmdb.open(str(folder), map_size=map_size_bytes, max_dbs=3, lib_version=0)


def _read_meta(txn: lmdb.Transaction) -> dict[str, Any] | None:
    raw = txn.get(_META)
    return None if raw is None else json.loads(records.unseal(bytes(raw), "the log's meta page"))


def _write_meta(txn: lmdb.Transaction, meta: Mapping[str, Any]) -> None:
    txn.put(_META, records.seal(json.dumps(meta).encode()))
