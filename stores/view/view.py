"""What a shard's log says now: memories, their statistics, their order and their vectors.

The view holds nothing that the log does not: `apply` every record in order and it is here again. Who
changes it holds its lock for writing, who reads it for reading; see `Shard`.
"""

import base64
import binascii
import json
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa

from common.config import StoreConfig
from common.errors import InvalidInput
from stores.index.bm25 import LexicalIndex
from stores.index.serialization import freeze, structure_vectors, thaw, vectors_of
from stores.index.vector_index import IndexPlan, VectorIndex
from stores.index.vectors import Vectors, clip
from stores.log.record import Op, Record
from stores.view.conversations import Turns
from stores.view.graph_views import Facts, Places
from stores.view.keyed import Lines
from stores.view.memory_state import Entry, Version, close, entry_of, vector_of

Content = dict[str, Any]
TOGETHER = 4096  # vectors that go into an index at once: for each call Faiss starts its threads

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


# What a namespace holds beside its vectors, by attribute of `Space`: each class is made of the store's
# configuration and is a function of the records in order. `add(entry, vector)` and `remove(entry)` tell it
# of every memory that comes and goes; `aggregate(entry, content)` and `close(entry, content)`, where it has
# them, of those records. `turns` holds no memories: it has
# `apply(record, content)` for its own records, `seqs`, the numbers of those whose content still matters, and
# a length. A class that has one of the last three, or is dear to build, has `dump() -> bytes` and
# `load(bytes)` for snapshots, unless all that it was told is kept in the entries (`of_entries`).
PARTS: dict[str, Callable[[StoreConfig], Any]] = {
    "lexical": lambda _: LexicalIndex(),
    "facts": Facts,
    "places": Places,
    "lines": lambda _: Lines(),
    "turns": lambda _: Turns(),
}


@dataclass(slots=True)
class Space:
    """One namespace. It has an index of its own, so that a search cannot leave it. `parts` are those
    that are told of memories; `waiting` are vectors that the index lacks while records are applied."""

    index: VectorIndex
    entries: dict[str, Entry] = field(default_factory=dict)
    by_row: dict[int, Entry] = field(default_factory=dict)
    order: list[tuple[float, str]] = field(default_factory=list)
    lexical: Any = None
    facts: Any = None
    places: Any = None
    lines: Any = None
    turns: Any = None
    parts: list[Any] = field(init=False)
    waiting: list[tuple[int, Vectors]] = field(default_factory=list)

    def __post_init__(self) -> None:
        found = (self.lexical, self.facts, self.places, self.lines)
        self.parts = [part for part in found if part is not None]

    def __len__(self) -> int:
        return len(self.entries) + (len(self.turns) if self.turns is not None else 0)

    def add(self, entry: Entry, vector: Vectors) -> None:
        self.entries[entry.memory["id"]] = self.by_row[entry.seq] = entry
        insort(self.order, entry.place)
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

    def remove(self, entries: Sequence[Entry]) -> None:
        self.index_waiting()
        for entry in entries:
            del self.entries[entry.memory["id"]], self.by_row[entry.seq]
            del self.order[bisect_left(self.order, entry.place)]
            for part in self.parts:
                part.remove(entry)
        if hasattr(self.facts, "reopened"):
            for by in (entry.memory["id"] for entry in entries):
                for id in self.facts.reopened(by) & self.entries.keys():
                    close(self.entries[id], by, None)
        self.index.remove([entry.seq for entry in entries])

    def dump(self) -> tuple[Callable[[], Vectors], dict[str, Any]]:
        """For a snapshot: how to get the vectors in the order of `entries`, and the parts that are not
        built from memories alone, or dearer to build than to read, as buffers by name. A copy: the space may
        change afterwards."""
        parts = {name: part.dump() for name, part in self._told() if _has_state(name, part)}
        rows = [entry.seq for entry in self.entries.values()]
        index, dim = freeze(self.index), self.index.dim
        if not index:
            vectors = vectors_of(self.index, rows)
            return lambda: vectors, parts
        return lambda: structure_vectors(dim, index, rows), {**index, **parts}

    def restore(
        self, entries: Sequence[Entry], vectors: Callable[[], Vectors], parts: Mapping[str, Any]
    ) -> None:
        """Fill an empty space with what `dump` gave (`parts` as buffers); the rest is built here. Raises
        `KeyError` where a part is missing."""
        self.entries = {entry.memory["id"]: entry for entry in entries}
        self.by_row = {entry.seq: entry for entry in sorted(entries, key=attrgetter("seq"))}
        self.order = sorted(entry.place for entry in entries)
        if "index" in parts:
            thaw(self.index, parts, [*self.by_row])
        else:
            self.index.add([entry.seq for entry in entries], vectors())
        told = self._told()
        for name, part in told:
            if _has_state(name, part):
                part.load(parts[name])
        if built := [part for name, part in told if not _has_state(name, part)]:
            given, places = vectors(), {entry.seq: place for place, entry in enumerate(entries)}
            for row, entry in self.by_row.items():
                for part in built:
                    part.add(entry, given[places[row]])

    def _told(self) -> list[tuple[str, Any]]:
        return [(name, part) for name in PARTS if (part := getattr(self, name)) is not None]

    def after(self, cursor: str | None) -> Iterator[Entry]:
        """Entries in order of (time, id), from behind the cursor on."""
        start = 0 if cursor is None else bisect_right(self.order, read_cursor(cursor))
        return (self.entries[self.order[place][1]] for place in range(start, len(self.order)))


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
        self._behind: list[Space] = []  # their indexes lack what waits
        self._appliers = {op: getattr(self, f"_{op.name.lower()}") for op in Op}

    def start(self) -> None:
        """The log has been replayed: from now on indexes grow in the background as they need."""
        self.live = True
        for space in self.spaces.values():
            space.index.live = True
            space.index.grow()
            if space.lexical is not None:
                space.lexical.start()

    def find(self, namespace: str, id: str) -> Entry | None:
        space = self.spaces.get(namespace)
        return None if space is None else space.entries.get(id)

    def replay(self, records: Iterable[Record]) -> None:
        """Take in the next records of the log, which nobody reads between: vectors go into the indexes
        together."""
        for record in records:
            if not record.erased:
                self._appliers[record.op](record, record.content())
        for space in self._behind:
            space.index_waiting()
        self._behind.clear()

    def apply(self, record: Record) -> None:
        """Take in one more."""
        self.replay([record])

    def _space(self, namespace: str) -> Space:
        if namespace not in self.spaces:
            parts = {name: make(self.config) for name, make in PARTS.items()}
            if "lexical" in parts:
                parts["lexical"].live = self.live
            self.spaces[namespace] = Space(VectorIndex(self.dim, self._plan, live=self.live), **parts)
        return self.spaces[namespace]

    def _add(self, entry: Entry, vector: Vectors) -> None:
        space = self._space(entry.memory["namespace"])
        if not space.waiting:
            self._behind.append(space)
        space.add(entry, vector)

    def restore(
        self,
        namespace: str,
        entries: Sequence[Entry],
        vectors: Callable[[], Vectors],
        parts: Mapping[str, Any],
    ) -> None:
        """Fill a namespace that is not there yet; see `Space.restore`."""
        self._space(namespace).restore(entries, vectors, parts)

    def _named(self, content: Content) -> Entry | None:
        return self.find(content["namespace"], content["id"])

    def _put(self, record: Record, content: Content) -> None:
        self._add(entry_of(record, content), vector_of(record))

    def _supersede(self, record: Record, content: Content) -> None:
        """Statistics stay with the memory; novelty is the new content's."""
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
            tellings=[],
            older=[*old.older, old.version],
        )
        self._add(new, vector_of(record))

    def _import(self, record: Record, content: Content) -> None:
        """A memory of another shard with all that was known of it there."""
        entry = entry_of(record, content)
        for name, value in content["statistics"].items():
            setattr(entry, name, value)
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
        """One more sighting of an episode, or telling of a fact."""
        if entry := self._named(content):
            entry.count += content["count"]
            entry.traces.append(record.seq)
            if "telling" in content:
                entry.tellings.append(content["telling"])
            self._tell("aggregate", entry, content)

    def _close(self, record: Record, content: Content) -> None:
        if entry := self._named(content):
            by = content.get("by", "")
            close(entry, by, content["valid_to"])
            for named in (entry, self.find(content["namespace"], by)):
                if named is not None:  # the record goes with either fact
                    named.traces.append(record.seq)
            self._tell("close", entry, content)

    def _tell(self, what: str, entry: Entry, content: Content) -> None:
        for part in self.spaces[content["namespace"]].parts:
            if hear := getattr(part, what, None):
                hear(entry, content)

    def _race(self, record: Record, content: Content) -> None:
        """Comes behind the winner's own record."""
        if entry := self._named(content):
            entry.strength = content["strength"]
            entry.rivals = content["rivals"]
            entry.traces.append(record.seq)

    def _turns(self, record: Record, content: Content) -> None:
        space = self._space(content["namespace"])
        if space.turns is not None:
            space.turns.apply(record, content)
        self._drop_empty(content["namespace"])

    def _forget(self, record: Record, content: Content) -> None:
        namespace = content["namespace"]
        if content.get("whole"):
            self.spaces.pop(namespace, None)
        elif space := self.spaces.get(namespace):
            space.remove([space.entries[id] for id in content["ids"] if id in space.entries])
            for conversation in content.get("conversations", ()):
                space.turns.forget(conversation)
            self._drop_empty(namespace)

    def _drop_empty(self, namespace: str) -> None:
        if not len(self.spaces[namespace]):
            del self.spaces[namespace]

    def closest(self, namespace: str, vectors: Vectors, k: int) -> list[list[tuple[float, Entry]]]:
        """For each vector up to `k` pairs of cosine and entry, best first."""
        space = self.spaces.get(namespace)
        if space is None:
            return [[] for _ in vectors]
        cosines, rows = space.index.search(vectors, k)
        return [
            [(cosine, space.by_row[row]) for cosine, row in zip(*pair, strict=True)]
            for pair in zip(cosines.tolist(), rows.tolist(), strict=True)
        ]

    def nearest(self, namespace: str, vectors: Vectors) -> list[float]:
        """Highest cosine of each vector to the namespace, in 0 to 1; 0 where it is empty."""
        space = self.spaces.get(namespace)
        if space is None:
            return [0.0] * len(vectors)
        cosines, _ = space.index.search(vectors, 1)
        return [clip(cosine) for cosine in cosines[:, 0]] if cosines.size else [0.0] * len(vectors)

    def entries(self, namespace: str) -> list[Entry]:
        """In order of writing."""
        space = self.spaces.get(namespace)
        return [*space.by_row.values()] if space else []


def statistics(entries: Iterable[Entry]) -> pa.Table:
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


def _has_state(name: str, part: Any) -> bool:
    """Does a snapshot take the part along? One that is told of more than memories cannot be built from
    them, so it must know how."""
    if hasattr(part, "dump"):
        return True
    told = any(hasattr(part, what) for what in ("aggregate", "close", "apply"))
    if told and not getattr(part, "of_entries", False):
        raise NotImplementedError(f"{name}: give {type(part).__name__} dump() -> bytes and load(bytes)")
    return False


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
