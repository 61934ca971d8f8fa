"""Group commit: callers that write at the same time share one batch, and so one fsync.

A write is a `Ticket`. The first caller leads: for each waiting ticket, in order, it looks up the operation
in the log, plans it and stages its records; then it commits the batch once, applies it to the view and
answers every ticket. Of the tickets that arrive meanwhile, the first leads the next batch.

A plan must hold at the ticket's position in the log, but the view shows only committed records. So a ticket
names the `keys` it changes and the `shared` keys it reads (or changes commutatively, like a count); a ticket
that would miss a change of this batch starts the next. Every write shares its namespace's `space_key`; one
that removes memories or changes their content owns it. Memories that a batch adds are no clash: later
tickets see them in `Pending`.

Most plans search for the neighbours of some vectors. A ticket names them (`seeks`), so that the first plan of a
batch searches for all waiting tickets: one pass over the index instead of one a ticket, which would also evict
everything else from the processor's cache (see `lookups.neighbours`).
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from common.errors import NotReady, SharpwaveError
from stores.index.vectors import Vectors
from stores.log.base import Draft, Log, Operation
from stores.log.record import Op, Record
from stores.view.memory_state import MemoryState, state_of, vector_of

Key = tuple[str, ...]
_WITH_MEMORY = (Op.PUT, Op.SUPERSEDE, Op.IMPORT)


def id_key(namespace: str, id: str) -> Key:
    return "id", namespace, id


def space_key(namespace: str) -> Key:
    return "space", namespace


def graph_key(namespace: str) -> Key:
    """Key of a namespace's facts and places: each decision about one depends on all others."""
    return "graph", namespace


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What a ticket would do. The result is JSON and not null, so that a retry finds it. `settle` computes it if it
    depends on the staged records. For `erase` and `drop` see `Operation`."""

    drafts: Sequence[Draft]
    result: Any = None
    settle: Callable[[Sequence[Record]], Any] | None = None
    erase: Sequence[int] = ()
    drop: Sequence[str] = ()
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Sought:
    """Vectors `[n, dim]`, each to be compared with its namespace. Compared by identity."""

    namespaces: Sequence[str]
    vectors: Vectors


class Added:
    """Memories that a batch adds to one namespace, with their vectors `[n, dim]`."""

    def __init__(self, dim: int) -> None:
        self.entries: list[MemoryState] = []
        self._rows = np.empty((16, dim), np.float32)

    @property
    def vectors(self) -> Vectors:
        return self._rows[: len(self.entries)]

    def add(self, entry: MemoryState, vector: Vectors) -> None:
        if len(self.entries) == len(self._rows):
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
        self._rows[len(self.entries)] = vector
        self.entries.append(entry)


class Pending:
    """Records that a batch has staged and the view does not show yet. `foreseen` are neighbours searched for
    before their ticket was planned; see `lookups.neighbours`."""

    def __init__(self, waiting: Callable[[], Sequence["Ticket"]] = tuple) -> None:
        """`waiting` returns the tickets behind the one being planned, in order."""
        self._waiting = waiting
        self.foreseen: dict[Sought, Any] = {}
        self.operations: list[Operation] = []
        self.last: Record | None = None
        self._changed: set[Key] = set()
        self._shared: set[Key] = set()
        self._unread: dict[str, list[Record]] = {}  # by namespace; rarely read
        self._added: dict[str, Added] = {}

    def clash(self, ticket: "Ticket") -> bool:
        """Must the ticket wait for the next batch?"""
        return not (
            self._changed.isdisjoint(ticket.keys)
            and self._changed.isdisjoint(ticket.shared)
            and self._shared.isdisjoint(ticket.keys)
        )

    def sought(self) -> list["Sought"]:
        """`seeks` of the next tickets, up to the first that may have to wait for the next batch."""
        found: list[Sought] = []
        changed: set[Key] = set()
        for ticket in self._waiting():
            if ticket.seeks is None or self.clash(ticket) or not changed.isdisjoint(ticket.keys):
                break
            changed |= ticket.keys
            found.append(ticket.seeks)
        return found

    def added(self, namespace: str) -> Added | None:
        """What the batch adds to the namespace; None if nothing."""
        for record in self._unread.pop(namespace, ()):
            vector = vector_of(record)
            if namespace not in self._added:
                self._added[namespace] = Added(len(vector))
            self._added[namespace].add(state_of(record, record.content()), vector)
        return self._added.get(namespace)

    def add(self, ticket: "Ticket", operation: Operation) -> None:
        self.operations.append(operation)
        self._changed.update(ticket.keys)
        self._shared.update(ticket.shared)
        if operation.records:
            self.last = operation.records[-1]
        for record in operation.records:
            if record.op in _WITH_MEMORY:
                namespace = record.content()["memory"]["namespace"]
                self._unread.setdefault(namespace, []).append(record)


class Ticket:
    """One write: `plan(pending)` returns what it would do."""

    def __init__(
        self,
        op_id: str,
        request: str,
        plan: Callable[[Pending], Planned],
        *,
        now: float,
        keys: Iterable[Key] = (),
        shared: Iterable[Key] = (),
        seeks: Sought | None = None,
    ) -> None:
        self.op_id, self.request, self.plan, self.now = op_id, request, plan, now
        self.keys = {("op", op_id), *keys}
        self.shared = {*shared}
        self.seeks = seeks
        self.done = self.leads = False
        self._result: Any = None
        self._error: Exception | None = None
        self._asleep = threading.Lock()  # held until there is news: a lock is a third of an `Event`'s work
        self._asleep.acquire()

    def wait(self) -> None:
        """Block until the ticket is answered or has to lead."""
        self._asleep.acquire()

    def lead(self) -> None:
        self.leads = True
        self._asleep.release()

    def answer(self, result: Any) -> None:
        self._result, self.done = result, True
        self._asleep.release()

    def fail(self, error: Exception) -> None:
        self._error, self.done = error, True
        self._asleep.release()

    def outcome(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._result


class GroupCommit:
    """The queue of tickets in front of one log. `lock` is held while a batch is written: hold it to keep writes out.
    `failure` is why no more are accepted, if a batch may be on disk that readers do not see; else None.
    """

    def __init__(
        self,
        log: Log,
        show: Callable[[Sequence[Record]], None],
        *,
        at_most: int,
        around: Callable[[Sequence[Operation]], AbstractContextManager[None]] = lambda _: nullcontext(),
    ) -> None:
        """`show` makes committed records visible to readers; `at_most` bounds the tickets of a batch; each
        commit, shown to readers, happens inside `around`."""
        self.lock = threading.Lock()
        self.failure: str | None = None
        self._log, self._show, self._at_most, self._around = log, show, at_most, around
        self._mutex = threading.Lock()
        self._queue: deque[Ticket] = deque()
        self._led = False

    def do(self, ticket: Ticket) -> Any:
        """The ticket's result, once it is on disk and visible. Raises the error of its plan or of the commit; a
        failed commit fails every ticket of the batch."""
        with self._mutex:
            self._queue.append(ticket)
            ticket.leads, self._led = not self._led, True
        try:
            if not ticket.leads:
                ticket.wait()
            while not ticket.done:
                self._write_batch()
        finally:
            self._pass_on(ticket)
        return ticket.outcome()

    def _pass_on(self, ticket: Ticket) -> None:
        """Leave; if this ticket led, the next in the queue leads."""
        if ticket.done and not ticket.leads:
            return
        with self._mutex:
            if not ticket.done and ticket in self._queue:  # the wait was interrupted
                self._queue.remove(ticket)
            if ticket.leads:
                self._led = bool(self._queue)
                if self._queue:
                    self._queue[0].lead()

    def _write_batch(self) -> None:
        with self.lock:
            taken: list[tuple[Ticket, Any]] = []
            try:
                pending = self._stage(taken)
                if pending.operations:
                    with self._around(pending.operations):
                        self._commit(pending.operations)
            except BaseException as error:
                for ticket, _ in taken:
                    if not ticket.done:
                        ticket.fail(self._own_error(error))
                if not isinstance(error, Exception):
                    raise
            for ticket, result in taken:
                if not ticket.done:
                    ticket.answer(result)

    def _stage(self, taken: list[tuple[Ticket, Any]]) -> Pending:
        """Take tickets from the queue into `taken`, with their results, until one must wait."""
        pending = Pending(self._waiting)
        while len(taken) < self._at_most and (ticket := self._next(pending)):
            taken.append((ticket, None))
            try:
                taken[-1] = (ticket, self._stage_one(ticket, pending))
            except Exception as error:
                ticket.fail(error)
        return pending

    def _commit(self, operations: Sequence[Operation]) -> None:
        """Disk first, then memory: what a reader sees can no longer be lost. If this is interrupted between the two,
        memory no longer matches the log, and further writes are refused."""
        whole = False
        try:
            try:
                self._log.commit(operations)
            except Exception:  # not shown to readers; `log.failure` says whether writes go on
                whole = True
                raise
            self._show([record for operation in operations for record in operation.records])
            whole = True
        finally:
            if not whole:
                last = operations[-1].op_id
                self.failure = f"operation {last!r} may be on disk but is not shown; restart the shard"

    def _own_error(self, error: BaseException) -> Exception:
        """A copy of a batch's error for each thread that raises it."""
        if self.failure:
            return NotReady(self.failure, code="shard_failed")
        if isinstance(error, Exception):
            return copy(error) if isinstance(error, SharpwaveError) else error
        return NotReady("the write was interrupted; send it again with the same op_id", code="interrupted")

    def _waiting(self) -> list[Ticket]:
        with self._mutex:
            return [*islice(self._queue, self._at_most)]

    def _next(self, pending: Pending) -> Ticket | None:
        with self._mutex:
            if not self._queue or pending.clash(self._queue[0]):
                return None
            return self._queue.popleft()

    def _stage_one(self, ticket: Ticket, pending: Pending) -> Any:
        """Look up, plan and stage one ticket. Returns its result, valid as soon as the batch is on disk."""
        if self.failure:
            raise NotReady(self.failure, code="shard_failed")
        first = self._log.seen(ticket.op_id, ticket.request)
        if first is not None:
            ticket.answer(first)
            return first
        planned = ticket.plan(pending)
        staged = self._log.stage(ticket.op_id, planned.drafts, now=ticket.now, after=pending.last)
        result = planned.settle(staged) if planned.settle else planned.result
        operation = Operation(
            op_id=ticket.op_id,
            request=ticket.request,
            records=staged,
            result=result,
            erase=planned.erase,
            drop=planned.drop,
            counts=planned.counts,
        )
        pending.add(ticket, operation)
        return result
