"""What a shard's log says now: memories, their statistics, their order and their vectors.

The view holds nothing that the log does not: `apply` every record in order and it is here again. Who
changes it holds its lock for writing, who reads it for reading; see `Shard`.
"""

import base64
import binascii
import json
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from common.errors import InvalidInput
from stores.gate import clip
from stores.index import IndexPlan, VectorIndex, Vectors
from stores.lexical import LexicalIndex
from stores.record import Op, Record

STATISTICS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("kind", pa.string()),
        ("salience", pa.float64()),
        ("usage", pa.int64()),
        ("novelty", pa.float64()),
        ("generation", pa.int64()),
    ]
)


@dataclass(slots=True, kw_only=True)
class Entry:
    """A memory and its statistics. `generation` is the `seq` of the write that made the content, so a
    memory that was forgotten and written again is never taken for the old one."""

    memory: dict[str, Any]
    seq: int
    anchor: str
    written: float
    novelty: float
    usage: int = 0
    salience: float = 0.0
    last_used: float | None = None
    last_scored: float | None = None

    @property
    def place(self) -> tuple[float, str]:
        """Where the memory stands in lists."""
        return self.memory["time"], self.memory["id"]

    def salience_after(self, divergence: float, rate: float) -> float:
        """Moving average of divergence, never below 0; the first measurement starts it."""
        measured = max(0.0, divergence)
        return measured if self.last_scored is None else (1.0 - rate) * self.salience + rate * measured


@dataclass(slots=True)
class Space:
    """One namespace. It has an index of its own, so that a search cannot leave it."""

    index: VectorIndex
    lexical: LexicalIndex = field(default_factory=LexicalIndex)
    entries: dict[str, Entry] = field(default_factory=dict)
    by_row: dict[int, Entry] = field(default_factory=dict)
    order: list[tuple[float, str]] = field(default_factory=list)

    def after(self, cursor: str | None) -> Iterator[Entry]:
        """Entries in order of (time, id), from behind the cursor on."""
        start = 0 if cursor is None else bisect_right(self.order, read_cursor(cursor))
        return (self.entries[self.order[place][1]] for place in range(start, len(self.order)))


class View:
    """All namespaces of one shard."""

    def __init__(self, dim: int, plan: IndexPlan | None = None) -> None:
        self.dim = dim
        self.plan = plan
        self.live = False
        self.spaces: dict[str, Space] = {}

    def start(self) -> None:
        """The log has been replayed: from now on indexes grow in the background as they need."""
        self.live = True
        for space in self.spaces.values():
            space.index.live = True
            space.index.grow()

    def find(self, namespace: str, id: str) -> Entry | None:
        space = self.spaces.get(namespace)
        return space.entries.get(id) if space else None

    def apply(self, record: Record) -> None:
        if record.erased:
            return
        content = record.content()
        if record.op is Op.PUT:
            self._put(record, content)
        elif record.op is Op.TOUCH:
            self._touch(record, content)
        elif record.op is Op.SCORE:
            self._score(record, content)
        else:
            self._forget(content)

    def _put(self, record: Record, content: dict[str, Any]) -> None:
        memory = content["memory"]
        if memory["namespace"] not in self.spaces:
            self.spaces[memory["namespace"]] = Space(VectorIndex(self.dim, self.plan, live=self.live))
        space = self.spaces[memory["namespace"]]
        entry = Entry(
            memory=memory,
            seq=record.seq,
            anchor=record.anchor.hex(),
            written=record.time,
            novelty=content["novelty"],
        )
        space.entries[memory["id"]] = space.by_row[record.seq] = entry
        insort(space.order, entry.place)
        space.index.add([record.seq], np.frombuffer(record.vector, "<f4").reshape(1, -1))
        space.lexical.add(entry)

    def _touch(self, record: Record, content: dict[str, Any]) -> None:
        for id in content["ids"]:
            if entry := self.find(content["namespace"], id):
                entry.usage += 1
                entry.last_used = record.time

    def _score(self, record: Record, content: dict[str, Any]) -> None:
        for id, _, salience in content["scores"]:
            if entry := self.find(content["namespace"], id):
                entry.salience = salience
                entry.last_scored = record.time

    def _forget(self, content: dict[str, Any]) -> None:
        space = self.spaces.get(content["namespace"])
        gone = [space.entries.pop(id) for id in content["ids"] if id in space.entries] if space else []
        if not space or not gone:
            return
        for entry in gone:
            del space.by_row[entry.seq]
            del space.order[bisect_left(space.order, entry.place)]
            space.lexical.remove(entry)
        space.index.remove([entry.seq for entry in gone])
        if not space.entries:
            del self.spaces[content["namespace"]]

    def nearest(self, namespace: str, vectors: Vectors) -> list[float]:
        """Highest cosine of each vector to the namespace, in 0 to 1; 0 where it is empty."""
        space = self.spaces.get(namespace)
        if space is None:
            return [0.0] * len(vectors)
        cosines, _ = space.index.search(vectors, 1)
        return [clip(cosine) for cosine in cosines[:, 0]]

    def statistics(self, namespace: str) -> pa.Table:
        space = self.spaces.get(namespace)
        rows = [
            {
                "id": entry.memory["id"],
                "kind": entry.memory["kind"],
                "salience": entry.salience,
                "usage": entry.usage,
                "novelty": entry.novelty,
                "generation": entry.seq,
            }
            for entry in (space.by_row.values() if space else ())
        ]
        return pa.Table.from_pylist(rows, schema=STATISTICS_SCHEMA)


def describe(entry: Entry, shard: int, *, shared: bool = False) -> dict[str, Any]:
    """A memory with what the shard knows of it; the caller may change the answer, unless its content is
    `shared` with the view."""
    return {
        **(entry.memory if shared else deepcopy(entry.memory)),
        "statistics": {
            "usage": entry.usage,
            "salience": entry.salience,
            "novelty": entry.novelty,
            "generation": entry.seq,
            "last_used": entry.last_used,
            "last_scored": entry.last_scored,
        },
        "anchor": entry.anchor,
        "shard": shard,
        "seq": entry.seq,
        "versions": [{"seq": entry.seq, "anchor": entry.anchor, "written": entry.written}],
    }


def cursor_of(memory: dict[str, Any]) -> str:
    """Text that makes a list go on behind this memory."""
    return base64.urlsafe_b64encode(json.dumps([memory["time"], memory["id"]]).encode()).decode()


def read_cursor(cursor: str) -> tuple[float, str]:
    try:
        time, id = json.loads(base64.urlsafe_b64decode(cursor))
        return float(time), str(id)
    except (binascii.Error, ValueError, TypeError):
        raise InvalidInput(
            f"cursor {cursor[:64]!r} is not one of ours; give `next` of the page before", param="cursor"
        ) from None
