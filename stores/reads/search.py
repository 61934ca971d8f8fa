"""The candidates of one shard for a search: dense and lexical, admitted by kinds and filter.

The result is a consistent state: one hold of the view's read lock. The lexical index is flushed before that, since a
flush can take long and must not block others; a memory written in between is found by its vector only. A filter is a
Python predicate, slow over 100,000 memories, so it is first applied to the best candidates only. If too few of those
are admitted, it is applied to all entries without the lock, and one more hold searches exactly among the admitted:

    hold 1: the best WIDE x depth of each channel -> filter -> enough, or no more entries? done
    hold 2: a copy of row -> entry                (about 1 ms for 100,000)
            filter them all, while writers go on; facts, whose validity depends on other facts, a part at a time
    hold 3: drop those forgotten meanwhile, filter those written meanwhile, search among the admitted

Facts are admitted only if they hold at the time asked about (`Ask.period`).
"""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from common.types import Json
from stores.index.bm25 import query_words
from stores.index.passages import merged
from stores.index.terms import text_of
from stores.index.vectors import Vectors
from stores.locks import ReadWriteLock
from stores.memory.filters import Predicate, compile_filter
from stores.memory.period import Period
from stores.view.memory_state import MemoryState
from stores.view.view import Space, View

WIDE = 8  # candidates examined for each one wanted, since a filter may reject some
MARGIN = (
    2  # lexical candidates for each one wanted: the index ranks them by other statistics than the ranking
)
PART = 1024  # facts filtered under one hold of the view's lock
Channels = tuple[dict[int, float], dict[int, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A search. `vector`: `[1, dim]`; `query`: words for the lexical channel, None without it;
    `depth`: candidates wanted of each channel; `period`: first and last second (instants since the epoch) in which a
    fact must hold at some time, None for facts of any time."""

    namespace: str
    vector: Vectors
    query: str | None
    depth: int
    kinds: frozenset[str] | None = None
    keep: Predicate | None = None
    period: Period | None = None

    @property
    def filtered(self) -> bool:
        return self.kinds is not None or self.keep is not None

    def chooses(self, space: Space) -> bool:
        """Whether some memories of the space may not be admitted."""
        return self.filtered or (self.period is not None and len(space.facts) > 0)

    def admits(self, space: Space, entry: MemoryState) -> bool:
        """For a fact, call it while the view's lock is held."""
        if self.kinds is not None and entry.memory["kind"] not in self.kinds:
            return False
        if entry.memory["kind"] != "relational":
            return self.keep is None or self.keep(entry.memory)
        if self.period is not None and not space.facts.holds(entry.memory["id"], self.period):
            return False
        return self.keep is None or self.keep(space.seen(entry))


def ask(
    namespace: str,
    vector: Vectors,
    depth: int,
    *,
    query: str | None,
    kinds: Iterable[str] | None,
    where: Mapping[str, Any] | None,
    period: Period | None,
) -> Ask:
    return Ask(
        namespace=namespace,
        vector=vector,
        query=query,
        depth=depth,
        kinds=None if kinds is None else frozenset(kinds),
        keep=None if where is None else compile_filter(where),
        period=period,
    )


def find(viewing: ReadWriteLock, view: View, wanted: Ask, shard: int) -> Json:
    """`{hits: [{memory, scores: {dense, lexical}, words}], words, ms: {dense, lexical}}`; memories are shared with the
    view and must not be changed. `lexical` is left to the ranking (None), for which `words` are the shard's
    `WordStatistics` and those of a hit what its text has of the query's (`Matched`; None without a query)."""
    clock, words = Clock(), None
    if wanted.query:
        with viewing.read():
            space = view.spaces.get(wanted.namespace)
        if space is not None:
            space.lexical.flush()
            words = space.lexical.statistics(wanted.query)
        clock.took("lexical")
    found = _first(viewing, view, wanted, shard, clock)
    if found is None:
        found = _among(viewing, view, wanted, shard, clock)
    return {"hits": found, "words": words, "ms": clock.ms}


class Clock:
    """Measures the milliseconds of each channel."""

    def __init__(self) -> None:
        self.ms = {"dense": 0.0, "lexical": 0.0}
        self._last = time.perf_counter()

    def start(self) -> None:
        self._last = time.perf_counter()

    def took(self, name: str) -> None:
        self.ms[name] += 1e3 * (time.perf_counter() - self._last)
        self.start()


def _first(viewing: ReadWriteLock, view: View, wanted: Ask, shard: int, clock: Clock) -> list[Json] | None:
    """The hits, or None if too few of the best candidates are admitted."""
    with viewing.read():
        clock.start()
        space = view.spaces.get(wanted.namespace)
        if space is None:
            return []
        chooses = wanted.chooses(space)
        wide = WIDE * wanted.depth if chooses else wanted.depth
        channels = _channels(space, wanted, wide, None, clock)
        if not chooses:
            return _hits(space, wanted, channels, shard)
        rows = {row for channel in channels for row in channel}
        admitted = {row for row in rows if wanted.admits(space, space.by_row[row])}
        left = [{r: s for r, s in channel.items() if r in admitted} for channel in channels]
        for full, few in zip(channels, left, strict=True):
            if len(few) < wanted.depth and len(full) >= min(wide, len(space.entries)) < len(space.entries):
                return None
        dense = {row: left[0][row] for row in [*left[0]][: wanted.depth]}
        lexical = {row: left[1][row] for row in [*left[1]][: MARGIN * wanted.depth]}
        return _hits(space, wanted, (dense, lexical), shard)


def _among(viewing: ReadWriteLock, view: View, wanted: Ask, shard: int, clock: Clock) -> list[Json]:
    with viewing.read():
        space = view.spaces.get(wanted.namespace)
        entries = dict(space.by_row) if space else {}
    clock.start()
    admitted = [] if space is None else [*_admitted(viewing, space, wanted, entries)]
    last = next(reversed(entries), -1)
    with viewing.read():
        space = view.spaces.get(wanted.namespace)
        if space is None:
            return []
        among = [row for row in admitted if row in space.by_row]
        for row in reversed(space.by_row):  # rows ascend: those written meanwhile come last
            if row <= last:
                break
            if wanted.admits(space, space.by_row[row]):
                among.append(row)
        return _hits(space, wanted, _channels(space, wanted, wanted.depth, among, clock), shard)


def _admitted(
    viewing: ReadWriteLock, space: Space, wanted: Ask, entries: Mapping[int, MemoryState]
) -> Iterator[int]:
    """The admitted rows. Other memories are filtered without the lock, facts a part at a time under it."""
    facts: list[int] = []
    for row, entry in entries.items():
        if entry.memory["kind"] == "relational":
            facts.append(row)
        elif wanted.admits(space, entry):
            yield row
    for start in range(0, len(facts), PART):
        with viewing.read():
            part = facts[start : start + PART]
            yield from [r for r in part if r in space.by_row and wanted.admits(space, space.by_row[r])]


def _channels(space: Space, wanted: Ask, depth: int, among: Collection[int] | None, clock: Clock) -> Channels:
    """Row -> score of the best `depth` of each channel, best first."""
    cosines, rows = space.index.search(wanted.vector, depth, None if among is None else [*among])
    dense = dict(zip(rows[0].tolist(), cosines[0].tolist(), strict=True))
    if len(space.passages):
        dense = merged(dense, space.passages.search(wanted.vector, depth, among), depth)
    clock.took("dense")
    lexical: dict[int, float] = {}
    if wanted.query:
        scores, found = space.lexical.find(wanted.query, MARGIN * depth, among)
        lexical = dict(zip(found, scores, strict=True))
        clock.took("lexical")
    return dense, lexical


def _hits(space: Space, wanted: Ask, channels: Channels, shard: int) -> list[Json]:
    dense, lexical = channels
    unmeasured = [row for row in lexical if row not in dense]
    cosines, rows = space.index.search(wanted.vector, len(unmeasured), unmeasured)
    found = dict(zip(rows[0].tolist(), cosines[0].tolist(), strict=True))
    if len(space.passages):
        found = merged(found, space.passages.search(wanted.vector, len(found), unmeasured), len(found))
    asked = frozenset(query_words(wanted.query)) if wanted.query else None
    return [
        {
            "memory": (memory := space.describe(space.by_row[row], shard, shared=True)),
            "scores": {"dense": cosine, "lexical": None},
            "words": None if asked is None else space.lexical.matched(row, asked, text_of(memory)),
        }
        for row, cosine in (dense | found).items()
    ]
