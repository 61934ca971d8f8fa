"""The protocol of a log, and what every backend does alike.

A backend keeps four things and changes them together: the records by `seq`; `meta`, one JSON object;
the results of the last `RESULTS_KEPT` operations by `op_id`; and the order those came in. `BaseLog` holds
`meta` in memory, stages records, works out the `meta` that a batch leaves, and follows the chain. A
backend adds how things reach the disk: it calls `_begin_epoch` when it opens, and in `commit`
`_check_writable`, `_after` and, where the disk fails, `_stopped`.

A commit that fails stops the log. What the disk then holds is unknown, and a second fsync that succeeds
would prove nothing about the first: reads go on, writes are refused, and reopening tells the truth.
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
RESULTS_KEPT = 10_000  # operations whose result a retry can still get
MAX_OP_ID_BYTES = 128
COUNTERS = ("gate_attempts", "gate_accepts", "duplicates")  # told from the start, though they are 0

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode

Draft = tuple[Op, Any, bytes]  # what a record does, its body as JSON, its vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One caller's request, all of it or nothing.

    `request` is a digest of what is asked for: the same `op_id` with another one is a `Conflict`; None
    where what it wrote has been erased. `records` follow those of the operation before it in the batch.
    `result` (JSON) is what a retry gets. `erase` are numbers of records that lose their content, and with
    them the operations that wrote them their request and result (see `answer`); so do those in `drop`.
    `counts` is added to the counters.
    """

    op_id: str
    request: str | None
    records: Sequence[Record]
    result: Any
    erase: Sequence[int] = ()
    drop: Sequence[str] = ()
    counts: Mapping[str, int] = field(default_factory=dict)


class Log(Protocol):
    """One thread may stage and commit at a time; `Shard` sees to that."""

    @property
    def path(self) -> Path: ...

    @property
    def keyring(self) -> Keyring | None:
        """The keys that contents are sealed with; None where there is no encryption."""

    @property
    def seq(self) -> int:
        """Number of the last record; 0 in an empty log."""

    @property
    def epoch(self) -> int: ...

    @property
    def anchor(self) -> bytes: ...

    @property
    def failure(self) -> str | None:
        """Why the log refuses writes; None while it takes them."""

    @property
    def scrub_due(self) -> bool:
        """Has content been erased that the files may still hold?"""

    def state(self) -> dict[str, Any]:
        """`{seq, epoch, anchor}` and the counters, as of the last commit."""

    def seen(self, op_id: str, request: str | None) -> Any:
        """The result of an operation already committed under this id, or None. Raises `Conflict` where
        the id belongs to another request (the result may be another tenant's), and with code "erased" where
        its result went with what it wrote. A reshard asks with None for `request`, and gets `{request,
        result}` to take along."""

    def results(self) -> Iterator[tuple[str, Any]]:
        """Every operation that is kept for retries: its id, and its result, None where that is gone."""

    def stage(
        self, op_id: str, drafts: Sequence[Draft], *, now: float, after: Record | None = None
    ) -> list[Record]:
        """The records that `commit` would append behind `after`, else behind the last one committed;
        nothing is written."""

    def commit(self, operations: Sequence[Operation]) -> None:
        """Make a batch durable with one fsync (or one confirmed transaction): all of it or nothing.

        Raises `NotReady` where the log has stopped, is full, or fails now, `Conflict` where a newer owner
        wrote.
        """

    def records(self, after: int = 0) -> Iterator[Record]:
        """Every record behind number `after`, in order. Raises `StoreCorrupt` naming the first that is
        damaged or missing."""

    def verify(self) -> int | None:
        """Follow the anchor chain from the start; the first broken record's number, or None."""

    def examine(self) -> dict[str, Any] | None:
        """The same as `{seq, op, op_id, reason}`; op and op_id are None where they cannot be read."""

    def scrub(self) -> bool:
        """See that no erased content remains in the files; False where that could not be done now."""

    def rotate_key(self, namespace: str) -> bool:
        """Seal what comes under a fresh data key and rewrite what is there; False where the disk had no
        room: then the old key stays too. Raises `InvalidInput` where there is no encryption."""

    def close(self) -> None:
        """Give the log back. Closing twice is fine."""


class Backend(Log, Protocol):
    """A log that keeps things itself. `rewrite` is what `scrub` makes of each record that it writes anew:
    the same object where nothing changes."""

    rewrite: Callable[[Record], Record] | None


class BaseLog:
    """The part of a log that does not depend on where it is kept; see the top of this page."""

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
        """The `meta` to write at open, from what is `found` there: one epoch higher."""
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
        """The `meta` that these operations leave; `commits` counts operations."""
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
        """Take no more writes after a failed one; the error to raise."""
        self._failure = (
            f"log {self.path} stopped at record {self.seq}: a write failed ({error}). Reads go on; "
            f"free or repair the disk, then `sharpwave restart-shard {self._identity.get('shard', 'N')}`"
        )
        return NotReady(self._failure, code="log_failed")

    def _fenced(self) -> Conflict:
        """Take no more writes since a newer owner has begun; the error to raise."""
        self._failure = f"log {self.path} has a newer owner than epoch {self.epoch}; this one has ended"
        return Conflict(self._failure, code="fenced")


def encode_json(body: Any) -> bytes:
    """A record's body: JSON, or bytes as they are. Numbers are finite: what comes from outside is checked
    where it comes in, and orjson would write null."""
    if isinstance(body, bytes):
        return body
    try:
        return orjson.dumps(body)
    except TypeError:  # what orjson does not take: whole numbers beyond 64 bits, deep nesting
        return _encode(body).encode()


def op_key(op_id: str) -> bytes:
    """The operation's key among the results. Raises `InvalidInput` where it is too long or empty."""
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
    """See `answer`."""
    return answer(json.loads(raw), op_id, request)


def result_of(raw: bytes) -> Any:
    """What is kept as the result, whoever asked for it."""
    return json.loads(raw)["result"]


def tells(record: Record) -> bool:
    """Could who has the result of the record's operation test a guess of the record's content against it? The
    end of a fact names ids only, and belongs to an operation that wrote another fact."""
    return record.op is not Op.CLOSE


GONE = {"request": None, "result": None}  # what is kept of an operation when what it wrote is erased


def answer(first: Mapping[str, Any], op_id: str, request: str | None) -> Any:
    """The result in what is kept, for the request that it was the answer to; for None `{request, result}`.

    Both are told from content without a salt: a digest of the request, and in the result names and digests.
    So they go with the content, and who sends the operation again learns that it was done, not how."""
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
