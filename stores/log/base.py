"""The protocol of a log, and what all backends share.

A backend keeps four things and changes them together: the records by `seq`; `meta`, one JSON object;
the results of the last `RESULTS_KEPT` operations by `op_id`; and the order of those operations. `BaseLog`
holds `meta` in memory, stages records, computes the `meta` after a batch, and verifies the chain. A backend
adds the storage: it calls `_begin_epoch` when it opens, and in `commit` `_check_writable`, `_after` and, if
the disk fails, `_stopped`.

A failed commit stops the log. What the disk then holds is unknown, and a later successful fsync would prove
nothing about the failed one: reads go on, writes are refused, and reopening reads what the disk holds.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import orjson

from common.errors import Conflict, InvalidInput, NotReady, StoreCorrupt
from stores.crypto.keyring import Keyring
from stores.log import record as records
from stores.log.record import Chain, Op, Record

FORMAT = 2
RESULTS_KEPT = 10_000  # operations whose results are kept for retries
MAX_OP_ID_BYTES = 128
COUNTERS = ("gate_attempts", "gate_accepts", "duplicates")  # present from the start, as 0

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode

Draft = tuple[Op, Any, bytes]  # what a record does, its body as JSON, its vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One caller's request, committed whole or not at all.

    `request` is a digest of the request: the same `op_id` with another one is a `Conflict`; None if what the
    operation wrote has been erased. `records` follow those of the previous operation in the batch. `result`
    (JSON) is returned to a retry. `erase` are numbers of records that lose their content; the operations that
    wrote them lose request and result (see `answer`), and so do the operations in `drop`. `counts` is added to
    the counters.
    """

    op_id: str
    request: str | None
    records: Sequence[Record]
    result: Any
    erase: Sequence[int] = ()
    drop: Sequence[str] = ()
    counts: Mapping[str, int] = field(default_factory=dict)


class Log(Protocol):
    """The append-only log of one shard. One thread may stage and commit at a time; `Shard` ensures this."""

    @property
    def path(self) -> Path: ...

    @property
    def keyring(self) -> Keyring | None:
        """The keys that encrypt contents; None without encryption."""

    @property
    def seq(self) -> int:
        """Number of the last record; 0 in an empty log."""

    @property
    def epoch(self) -> int: ...

    @property
    def anchor(self) -> bytes: ...

    @property
    def failure(self) -> str | None:
        """Why the log refuses writes; None while it accepts them."""

    @property
    def scrub_due(self) -> bool:
        """True if content has been erased that the files may still hold."""

    def state(self) -> dict[str, Any]:
        """`{seq, epoch, anchor}` and the counters, as of the last commit."""

    def seen(self, op_id: str, request: str | None) -> Any:
        """The result of an operation already committed under this id, or None. Raises `Conflict` if the id
        belongs to another request (the result may be another tenant's), and with code "erased" if its result
        was erased with what it wrote. A reshard passes None as `request` and gets `{request, result}`."""

    def results(self) -> Iterator[tuple[str, Any]]:
        """Every operation kept for retries: its id, and its result, None if that was erased."""

    def stage(
        self, op_id: str, drafts: Sequence[Draft], *, now: float, after: Record | None = None
    ) -> list[Record]:
        """The records that `commit` would append after `after`, or after the last committed one; writes
        nothing."""

    def commit(self, operations: Sequence[Operation]) -> None:
        """Make a batch durable with one fsync (or one confirmed transaction): all of it or nothing.

        Raises `NotReady` if the log has stopped, is full, or fails now, `Conflict` if a newer owner wrote.
        """

    def records(self, after: int = 0) -> Iterator[Record]:
        """Every record after number `after`, in order. Raises `StoreCorrupt` naming the first damaged or missing
        one."""

    def verify(self) -> int | None:
        """Verify the anchor chain from the start; the first broken record's number, or None."""

    def examine(self) -> dict[str, Any] | None:
        """As `verify`, as `{seq, op, op_id, reason}`; op and op_id are None if they cannot be read."""

    def scrub(self) -> bool:
        """Remove erased content from the files; False if that is not possible now."""

    def rotate_key(self, namespace: str) -> bool:
        """Encrypt new content under a fresh data key and rewrite existing content. False if the disk has no room:
        then the old key is kept too. Raises `InvalidInput` without encryption."""

    def close(self) -> None:
        """Release the log. Closing twice is allowed."""


class Backend(Log, Protocol):
    """A log with storage of its own. `scrub` passes each record that it rewrites through `rewrite`, which returns
    the same object if nothing changes."""

    rewrite: Callable[[Record], Record] | None


class BaseLog:
    """The part of a log that does not depend on its storage; see the module docstring."""

    def __init__(self, path: Path, *, identity: Mapping[str, Any], chain: Chain) -> None:
        self.path = path
        self.chain = chain
        self._identity = {**identity, **chain.identity}
        self._meta: dict[str, Any] = {}
        self._failure: str | None = None
        self.rewrite: Callable[[Record], Record] | None = None

    @property
    def keyring(self) -> Keyring | None:
        return None

    def rotate_key(self, namespace: str) -> bool:
        raise InvalidInput("store.master_key: this store is not encrypted", param="store.master_key")

    @property
    def seq(self) -> int:
        return int(self._meta["seq"])

    @property
    def epoch(self) -> int:
        return int(self._meta["epoch"])

    @property
    def anchor(self) -> bytes:
        return bytes.fromhex(self._meta["anchor"])

    @property
    def failure(self) -> str | None:
        return self._failure

    @property
    def scrub_due(self) -> bool:
        return bool(self._meta["scrub_due"])

    def state(self) -> dict[str, Any]:
        counters = {**dict.fromkeys(COUNTERS, 0), **self._meta["counters"]}
        return {"seq": self.seq, "epoch": self.epoch, "anchor": self.anchor.hex(), **counters}

    def stage(
        self, op_id: str, drafts: Sequence[Draft], *, now: float, after: Record | None = None
    ) -> list[Record]:
        seq, anchor = (self.seq, self.anchor) if after is None else (after.seq, after.anchor)
        epoch, staged = self.epoch, []
        for (op, body, vector), salt in zip(drafts, records.salts(len(drafts)), strict=True):
            seq += 1
            record = records.make(
                op,
                seq=seq,
                epoch=epoch,
                time=now,
                op_id=op_id,
                previous=anchor,
                body=encode_json(body),
                vector=vector,
                chain=self.chain,
                parsed=None if isinstance(body, bytes) else body,
                salt=salt,
            )
            staged.append(record)
            anchor = record.anchor
        return staged

    def records(self, after: int = 0) -> Iterator[Record]:
        raise NotImplementedError

    def verify(self) -> int | None:
        broken = self.examine()
        return None if broken is None else int(broken["seq"])

    def examine(self) -> dict[str, Any] | None:
        previous, seq = self.chain.genesis, 0
        try:
            for record in self.records():
                seq = record.seq
                if not records.intact(record):
                    return records.fault(record, "the content does not match its digest")
                if record.anchor != self.chain.link(previous, record.digest):
                    return records.fault(record, "the anchor does not follow from the record before it")
                previous = record.anchor
        except StoreCorrupt as error:
            return error.fault or {"seq": seq + 1, "op": None, "op_id": None, "reason": error.message}
        return None

    def _rewritten(self, record: Record) -> Record:
        return self.rewrite(record) if self.rewrite else record

    def _begin_epoch(self, found: dict[str, Any] | None) -> dict[str, Any]:
        """The `meta` to write at open: that of `found` with the epoch raised by 1."""
        meta = found or {
            "format": FORMAT,
            "identity": self._identity,
            "seq": 0,
            "anchor": self.chain.genesis.hex(),
            "epoch": 0,
            "commits": 0,
            "counters": {},
            "scrub_due": False,
        }
        if (meta["format"], meta["identity"]) != (FORMAT, self._identity):
            raise Conflict(
                f"log {self.path} is format {meta['format']} of {meta['identity']}, "
                f"not format {FORMAT} of {self._identity}; give its own settings or another folder"
            )
        return {**meta, "epoch": meta["epoch"] + 1}

    def _after(self, operations: Sequence[Operation]) -> dict[str, Any]:
        """The `meta` after these operations; `commits` counts operations."""
        meta = {**self._meta, "counters": dict(self._meta["counters"])}
        meta["commits"] += len(operations)
        for operation in operations:
            meta["scrub_due"] = meta["scrub_due"] or bool(operation.erase or operation.drop)
            for name, count in operation.counts.items():
                meta["counters"][name] = meta["counters"].get(name, 0) + count
            if operation.records:
                last = operation.records[-1]
                meta["seq"], meta["anchor"] = last.seq, last.anchor.hex()
        return meta

    def _check_writable(self) -> None:
        if self._failure:
            raise NotReady(self._failure, code="log_failed")

    def _stopped(self, error: Exception) -> NotReady:
        """Refuse writes after a failed one; returns the error to raise."""
        self._failure = (
            f"log {self.path} stopped at record {self.seq}: a write failed ({error}). Reads go on; "
            f"free or repair the disk, then `sharpwave restart-shard {self._identity.get('shard', 'N')}`"
        )
        return NotReady(self._failure, code="log_failed")

    def _fenced(self) -> Conflict:
        """Refuse writes because a newer owner has begun; returns the error to raise."""
        self._failure = f"log {self.path} has a newer owner than epoch {self.epoch}; this one has ended"
        return Conflict(self._failure, code="fenced")


def encode_json(body: Any) -> bytes:
    """A record's body: JSON, or bytes unchanged. Numbers are finite: input is checked on entry, and orjson would
    write null."""
    if isinstance(body, bytes):
        return body
    try:
        return orjson.dumps(body)
    except TypeError:  # not supported by orjson: integers beyond 64 bits, deep nesting
        return _encode(body).encode()


def op_key(op_id: str) -> bytes:
    """The operation's key among the results. Raises `InvalidInput` if it is too long or empty."""
    key = op_id.encode()
    if not 0 < len(key) <= MAX_OP_ID_BYTES:
        raise InvalidInput(f"op_id {op_id[:64]!r} must have 1 to {MAX_OP_ID_BYTES} bytes", param="op_id")
    return key


def pack_result(operation: Operation | None) -> bytes:
    """What is kept of an operation for retries; None for one whose content is erased."""
    return encode_json(
        GONE if operation is None else {"request": operation.request, "result": operation.result}
    )


def unpack_result(raw: bytes, op_id: str, request: str | None) -> Any:
    """The inverse of `pack_result`; see `answer`."""
    return answer(json.loads(raw), op_id, request)


def result_of(raw: bytes) -> Any:
    """The kept result, whatever the request was."""
    return json.loads(raw)["result"]


def reveals_content(record: Record) -> bool:
    """True if the stored result of the record's operation could confirm a guess of erased content. The closing of a
    fact holds ids only, and belongs to an operation that wrote another fact."""
    return record.op is not Op.CLOSE


GONE = {"request": None, "result": None}  # what is kept of an operation when what it wrote is erased


def answer(first: Mapping[str, Any], op_id: str, request: str | None) -> Any:
    """The kept result, for the request that produced it; for None `{request, result}`.

    Both derive from content without a salt: a digest of the request, and names and digests in the result. So
    they are erased with the content, and a retry then learns that the operation was done, not its result."""
    if request is None:
        return {"request": first["request"], "result": first["result"]}
    if first["request"] is None:
        raise Conflict(
            f"op_id {op_id!r} has been done; its result is no longer kept, since content that it concerned has "
            "been erased. Read what is there, and give a fresh op_id to write again",
            param="op_id",
            code="erased",
        )
    if first["request"] != request:
        raise Conflict(f"op_id {op_id!r} was used for another request; give a fresh one", param="op_id")
    return first["result"]
