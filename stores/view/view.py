"""The state of a shard's log in memory: memories, their statistics, their order and their vectors.

The view is a function of the log: applying every record in order rebuilds it. Changes need its lock for writing,
reads for reading; see `Shard`.
"""

import base64
import binascii
import json
import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from common.config import StoreConfig
from common.errors import InvalidInput
from stores.index.bm25 import LexicalIndex
from stores.index.passages import Passages
from stores.index.serialization import deserialize, serialize, structure_vectors
from stores.index.vector_index import IndexPlan, VectorIndex
from stores.index.vectors import Vectors
from stores.log.record import Op, Record
from stores.view.conversations import Conversations
from stores.view.graph_views import FactsView, PlacesView
from stores.view.keyed import KeyedMemories
from stores.view.memory_state import FIELD_OF, MemoryState, Version, close, describe, state_of, vector_of

Content = dict[str, Any]
TOGETHER = 4096  # vectors added to an index at once: Faiss starts its threads for each call

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


CONVERSATIONS = "turns"  # name of their part in a snapshot


class MemoryPart(Protocol):
    """A part of a namespace that follows its memories: a function of the records in order."""

    def add(self, entry: MemoryState, vector: Vectors) -> None: ...

    def remove(self, entry: MemoryState) -> None: ...


class Space:
    """One namespace. It has an index of its own, so that a search cannot leave it.

    `lexical`, `passages`, `facts`, `places` and `keyed` follow the memories; `conversations` holds no memories and has
    records of its own. `order` sorts memories by (time, id); `by_row` is in order of writing. `waiting` are vectors
    that the index lacks while records are applied.
    """

    def __init__(self, index: VectorIndex, config: StoreConfig, *, live: bool = False) -> None:
        """`live`: whether the lexical index flushes in the background by itself."""
        self.index = index
        self.entries: dict[str, MemoryState] = {}
        self.by_row: dict[int, MemoryState] = {}
        self.order: list[tuple[float, str]] = []
        self.told: dict[str, str] = {}  # id of a further telling -> id of its memory
        self.lexical = LexicalIndex(live=live)
        self.passages = Passages(index.dim, index.plan)
        self.facts = FactsView(config)
        self.places = PlacesView(config)
        self.keyed = KeyedMemories()
        self.conversations = Conversations()
        self.parts: tuple[MemoryPart, ...] = (
            self.lexical,
            self.passages,
            self.facts,
            self.places,
            self.keyed,
        )
        self.waiting: list[tuple[int, Vectors]] = []

    def __len__(self) -> int:
        return len(self.entries) + len(self.conversations)

    def start(self) -> None:
        """The log has been replayed: from now on indexes grow in the background as they need."""
        self.index.live = True
        self.index.grow()
        self.lexical.start()

    def add(self, entry: MemoryState, vector: Vectors) -> None:
        self.entries[entry.memory["id"]] = self.by_row[entry.seq] = entry
        insort(self.order, entry.place)
        self.told.update((telling["id"], entry.memory["id"]) for telling in entry.assertions)
        self.waiting.append((entry.seq, vector))
        if len(self.waiting) >= TOGETHER:
            self.index_waiting()
        for part in self.parts:
            part.add(entry, vector)

    def index_waiting(self) -> None:
        if self.waiting:
            rows, vectors = zip(*self.waiting, strict=True)
            self.index.add(rows, np.concatenate(vectors).reshape(len(rows), -1))
            self.waiting.clear()

    def remove(self, entries: Sequence[MemoryState]) -> None:
        self.index_waiting()
        for entry in entries:
            del self.entries[entry.memory["id"]], self.by_row[entry.seq]
            del self.order[bisect_left(self.order, entry.place)]
            for telling in entry.assertions:
                self.told.pop(telling["id"], None)
            for part in self.parts:
                part.remove(entry)
        for by in (entry.memory["id"] for entry in entries):
            for id in self.facts.reopened(by) & self.entries.keys():
                close(self.entries[id], by, None)
        self.index.remove([entry.seq for entry in entries])

    def dump(self) -> tuple[Callable[[], Vectors], dict[str, Any]]:
        """For a snapshot: a function that returns the vectors in the order of `entries`, and by name the buffers that
        cannot be built from memories alone or are slower to build than to read. A copy: the space may change
        afterwards."""
        parts = {CONVERSATIONS: self.conversations.dump()}
        rows = [entry.seq for entry in self.entries.values()]
        index, dim = serialize(self.index), self.index.dim
        if not index:
            vectors = self.index.vectors_of(rows)
            return lambda: vectors, parts
        return lambda: structure_vectors(dim, index, rows), {**index, **parts}

    def restore(
        self, entries: Sequence[MemoryState], vectors: Callable[[], Vectors], parts: Mapping[str, Any]
    ) -> None:
        """Fill an empty space from the output of `dump` (`parts` as buffers); the rest is rebuilt. Raises `KeyError` if
        a part is missing."""
        self.entries = {entry.memory["id"]: entry for entry in entries}
        self.by_row = {entry.seq: entry for entry in sorted(entries, key=attrgetter("seq"))}
        self.order = sorted(entry.place for entry in entries)
        self.told = {telling["id"]: entry.memory["id"] for entry in entries for telling in entry.assertions}
        if "index" in parts:
            deserialize(self.index, parts, [*self.by_row])
        else:
            self.index.add([entry.seq for entry in entries], vectors())
        self.conversations.load(parts[CONVERSATIONS])
        given, index_of = vectors(), {entry.seq: i for i, entry in enumerate(entries)}
        for row, entry in self.by_row.items():
            for part in self.parts:
                part.add(entry, given[index_of[row]])

    def tell(self, entry: MemoryState, telling: Content) -> None:
        """Add a further telling of a memory."""
        entry.assertions.append(telling)
        self.told[telling["id"]] = entry.memory["id"]
        if entry.memory["kind"] == "relational":
            self.facts.aggregate(entry, telling)

    def seen(self, entry: MemoryState, telling: Content | None = None) -> Content:
        """The memory's content (or that of a further `telling`) as answers show it and filters see it: a fact with its
        validity: `valid_to` where it ends, `valid_from` where it began at another time than the memory's. Shared with
        the view."""
        content = entry.memory if telling is None else telling
        valid = self.facts.validity(entry.memory["id"]) if entry.memory["kind"] == "relational" else None
        if valid is None:
            return content
        seen, (start, end) = dict(content), valid
        if telling is None and start != content.get("valid_from", content["time"]):
            seen["valid_from"] = start
        if end < math.inf:
            seen["valid_to"] = end
        return seen

    def describe(self, entry: MemoryState, shard: int, *, shared: bool = False) -> Content:
        """The memory with its validity and statistics; see `memory_state.describe`."""
        return describe(entry, self.seen(entry), shard, shared=shared)

    def after(self, cursor: str | None) -> Iterator[MemoryState]:
        """Memories in order of (time, id) after the cursor."""
        start = 0 if cursor is None else bisect_right(self.order, read_cursor(cursor))
        return (self.entries[self.order[i][1]] for i in range(start, len(self.order)))


class View:
    """All namespaces of one shard."""

    def __init__(self, dim: int, config: StoreConfig | None = None) -> None:
        self.dim = dim
        self.config = config or StoreConfig()
        self.live = False
        self._plan = IndexPlan(
            kind=self.config.index, flat_max=self.config.index_flat_max, recall=self.config.index_recall
        )
        self.spaces: dict[str, Space] = {}
        self._behind: list[Space] = []  # their indexes lack the waiting vectors
        self._appliers = {op: getattr(self, f"_{op.name.lower()}") for op in Op}

    def start(self) -> None:
        """The log has been replayed: from now on indexes grow in the background as they need."""
        self.live = True
        for space in self.spaces.values():
            space.start()

    def find(self, namespace: str, id: str) -> MemoryState | None:
        space = self.spaces.get(namespace)
        return None if space is None else space.entries.get(id)

    def replay(self, records: Iterable[Record]) -> None:
        """Apply the next records of the log without reads in between: vectors are added to the indexes together."""
        for record in records:
            if not record.erased:
                self._appliers[record.op](record, record.content())
        for space in self._behind:
            space.index_waiting()
        self._behind.clear()

    def apply(self, record: Record) -> None:
        """Apply one record."""
        self.replay([record])

    def _space(self, namespace: str) -> Space:
        if namespace not in self.spaces:
            index = VectorIndex(self.dim, self._plan, live=self.live)
            self.spaces[namespace] = Space(index, self.config, live=self.live)
        return self.spaces[namespace]

    def _add(self, entry: MemoryState, vector: Vectors) -> None:
        space = self._space(entry.memory["namespace"])
        if not space.waiting:
            self._behind.append(space)
        space.add(entry, vector)

    def restore(
        self,
        namespace: str,
        entries: Sequence[MemoryState],
        vectors: Callable[[], Vectors],
        parts: Mapping[str, Any],
    ) -> None:
        """Fill a namespace that does not exist yet; see `Space.restore`."""
        self._space(namespace).restore(entries, vectors, parts)

    def _named(self, content: Content) -> MemoryState | None:
        return self.find(content["namespace"], content["id"])

    def _put(self, record: Record, content: Content) -> None:
        self._add(state_of(record, content), vector_of(record))

    def _supersede(self, record: Record, content: Content) -> None:
        """A new version: the memory keeps its statistics; novelty is that of the new content."""
        memory = content["memory"]
        space = self.spaces[memory["namespace"]]
        old = space.entries[memory["id"]]
        space.remove([old])
        new = replace(
            old,
            memory=memory,
            seq=record.seq,
            anchor=record.anchor.hex(),
            written=record.time,
            novelty=content["novelty"],
            closed=None,
            closings={},
            assertions=[],
            telling_vectors={},
            told_at={},
            passages=content.get("passages", []),
            older=[*old.older, old.version],
        )
        self._add(new, vector_of(record))

    def _import(self, record: Record, content: Content) -> None:
        """A memory of another shard with its versions and statistics."""
        entry = state_of(record, content)
        for name, value in content["statistics"].items():
            setattr(entry, FIELD_OF.get(name, name), value)
        entry.origin = content["origin"]
        entry.older = [Version(**{**version, "foreign": True}) for version in content["older"]]
        self._add(entry, vector_of(record))

    def _touch(self, record: Record, content: Content) -> None:
        for id in content["ids"]:
            if entry := self.find(content["namespace"], id):
                entry.use(record.time, self.config.strength_half_life_s, self.config.strength_refresh)

    def _score(self, record: Record, content: Content) -> None:
        for id, _, salience in content["scores"]:
            if entry := self.find(content["namespace"], id):
                entry.salience = salience
                entry.last_scored = record.time

    def _aggregate(self, record: Record, content: Content) -> None:
        """One more sighting of an episode, or assertion of a fact."""
        if entry := self._named(content):
            entry.count += content["count"]
            entry.traces.append(record.seq)
            if telling := content.get("telling"):
                self.spaces[content["namespace"]].tell(entry, telling)
                entry.told_at[telling["id"]] = content.get("told_at", record.time)
                if "vector" in content:
                    entry.telling_vectors[telling["id"]] = content["vector"]

    def _close(self, record: Record, content: Content) -> None:
        if entry := self._named(content):
            by = content.get("by", "")
            close(entry, by, content["valid_to"])
            for named in (entry, self.find(content["namespace"], by)):
                if named is not None:  # the record is erased with either fact
                    named.traces.append(record.seq)
            self.spaces[content["namespace"]].facts.close(entry, by)

    def _race(self, record: Record, content: Content) -> None:
        """The outcome of a race; follows the winner's own record."""
        if entry := self._named(content):
            entry.strength = content["strength"]
            entry.rivals = content["rivals"]
            entry.traces.append(record.seq)

    def _turns(self, record: Record, content: Content) -> None:
        self._space(content["namespace"]).conversations.apply(record, content)
        self._drop_empty(content["namespace"])

    def _forget(self, record: Record, content: Content) -> None:
        namespace = content["namespace"]
        if content.get("whole"):
            self.spaces.pop(namespace, None)
        elif space := self.spaces.get(namespace):
            space.remove([space.entries[id] for id in content["ids"] if id in space.entries])
            for conversation in content.get("conversations", ()):
                space.conversations.forget(conversation)
            self._drop_empty(namespace)

    def _drop_empty(self, namespace: str) -> None:
        if not len(self.spaces[namespace]):
            del self.spaces[namespace]

    def closest(self, namespace: str, vectors: Vectors, k: int) -> list[list[tuple[float, MemoryState]]]:
        """For each vector up to `k` pairs of cosine and entry, best first."""
        space = self.spaces.get(namespace)
        if space is None:
            return [[] for _ in vectors]
        cosines, rows = space.index.search(vectors, k)
        return [
            [(cosine, space.by_row[row]) for cosine, row in zip(*pair, strict=True)]
            for pair in zip(cosines.tolist(), rows.tolist(), strict=True)
        ]

    def entries(self, namespace: str) -> list[MemoryState]:
        """The memories of a namespace in order of writing."""
        space = self.spaces.get(namespace)
        return [*space.by_row.values()] if space else []


def statistics(entries: Iterable[MemoryState]) -> pa.Table:
    rows = [
        {
            "id": entry.memory["id"],
            "kind": entry.memory["kind"],
            "salience": entry.salience,
            "usage": entry.usage,
            "novelty": entry.novelty,
            "generation": entry.seq,
        }
        for entry in entries
    ]
    return pa.Table.from_pylist(rows, schema=STATISTICS_SCHEMA)


def cursor_of(memory: dict[str, Any]) -> str:
    """A cursor: with it a list continues after this memory."""
    return base64.urlsafe_b64encode(json.dumps([memory["time"], memory["id"]]).encode()).decode()


def read_cursor(cursor: str) -> tuple[float, str]:
    try:
        time, id = json.loads(base64.urlsafe_b64decode(cursor))
        return float(time), str(id)
    except (binascii.Error, ValueError, TypeError):
        raise InvalidInput(
            f"cursor {cursor[:64]!r} is not one of ours; give `next` of the page before", param="cursor"
        ) from None
