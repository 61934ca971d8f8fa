"""Results of operations done under an earlier layout, kept so that a retry is not performed twice.

A reshard passes to each new shard the last uses (touches and scores) and the last results of operations that one
shard did alone. They are kept in the log under reserved operation ids, `remembered/0`, `remembered/1`, ...,
for as long as the results of the shard's own operations.
"""

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

from common.types import Json
from stores.log.base import RESULTS_KEPT, Log

Place = tuple[str, str, str, str | None]  # of a `Result`: op_id, namespace, name, kind
REQUEST = "remembered"  # stands for the request of the reserved operations


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The answer to an operation that one shard did alone, in either layout: a new version, a keyed memory, a race,
    turns. It belongs to the shard of the memory that it changed (`kind` None: of the conversation). `request` and
    `result` are None if they have been erased."""

    op_id: str
    request: str | None
    result: Any
    namespace: str
    name: str
    kind: str | None

    @property
    def place(self) -> Place:
        return self.op_id, self.namespace, self.name, self.kind


@dataclass(slots=True)
class Uses:
    """The values that the last touches and scores gave to memories, by operation."""

    by_op: dict[str, Json] = field(default_factory=dict)

    def add(self, uses: Iterable[tuple[str, Json]]) -> None:
        """Add pairs of an op_id and `{namespace, method, done: {id: value}}`; the oldest beyond `RESULTS_KEPT` are
        dropped."""
        for op_id, use in uses:
            known = self.by_op.pop(op_id, None)
            done = {**(known["done"] if known else {}), **use["done"]}
            self.by_op[op_id] = {**use, "done": done}
        for op_id in [*islice(self.by_op, max(0, len(self.by_op) - RESULTS_KEPT))]:
            del self.by_op[op_id]

    def done(self, op_id: str, method: str, namespace: str) -> Json:
        """Values by memory id that this operation gave under another layout."""
        use = self.by_op.get(op_id)
        return use["done"] if use and (use["method"], use["namespace"]) == (method, namespace) else {}


class KeptResults:
    """Kept results, read from the log when first needed. Safe for many threads: concurrent reads are equal."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._uses: Uses | None = None

    @property
    def uses(self) -> Uses:
        if self._uses is None:
            uses = Uses()
            for part in self._parts():
                uses.add(part["uses"])
            self._uses = uses
        return self._uses

    def results(self) -> list[Result]:
        return self.results_at(self._places())

    def results_at(self, places: Iterable[Place]) -> list[Result]:
        """The results still kept of the operations at `places`. A put of several memories is left out: no shard did
        all of it, and its result is a list."""
        found = ((place, self._log.seen(place[0], None)) for place in places)
        return [
            Result(op_id=op_id, namespace=namespace, name=name, kind=kind, **kept)
            for (op_id, namespace, name, kind), kept in found
            if kept is not None and not isinstance(kept["result"], list)
        ]

    def operations_on(self, namespace: str, names: Container[str]) -> list[str]:
        """Ids of the kept operations that changed one of these memories or conversations."""
        return [op_id for op_id, space, name, _ in self._places() if space == namespace and name in names]

    def forget_cached(self) -> None:
        """Drop the cache, since more has been written to the log."""
        self._uses = None

    def _places(self) -> Iterator[Place]:
        return (place for part in self._parts() for place in part.get("results", ()))

    def _parts(self) -> Iterator[Json]:
        for number in count():
            if (part := self._log.seen(part_id(number), REQUEST)) is None:
                return
            yield part


def part_id(number: int) -> str:
    return f"remembered/{number}"


def part_of(uses: Sequence[tuple[str, Json]], results: Sequence[Result]) -> Json:
    """The content written under a reserved operation id."""
    return {"uses": [*uses], "results": [result.place for result in results]}
