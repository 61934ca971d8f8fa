"""The half of `Shard` for the episodic store: recall from a partial cue, and what decay leaves of a memory.

Neither costs a write anything: sparse keys are made of the candidates that the dense index gives for a cue,
and strength follows from what an entry knows of its uses.
"""

from collections.abc import Iterable, Mapping, Sequence
from heapq import nsmallest
from typing import Any

from common.config import StoreConfig
from stores import plan
from stores.entry import Entry, describe
from stores.episodic import Episodes
from stores.filters import Predicate, compile_filter
from stores.frozen import vectors_of
from stores.index import Vectors
from stores.locks import ReadWriteLock
from stores.view import Space, View

Json = dict[str, Any]
Page = list[Json]

WIDE = 256  # candidates of the dense index that keys are made of


class Recollect:
    """`Shard` sets these."""

    number: int
    dim: int
    config: StoreConfig
    _view: View
    _viewing: ReadWriteLock

    def complete(
        self,
        namespace: str,
        vector: Vectors,
        k: int,
        *,
        kinds: Iterable[str] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> Page:
        """The memory that the cue (float32 `[dim]`, unit norm) is completed to, then those nearest to the cue
        as given, `k` in all: `{memory, score, scores: {dense, completed, overlap}}`. See `Episodes.recall`."""
        cue = plan.check_vectors([vector], self.dim)
        keep = None if where is None else compile_filter(where)
        allowed = None if kinds is None else [*kinds]
        with self._viewing.read():
            space = self._view.spaces.get(namespace)
            if space is None or k <= 0:
                return []
            _, rows = space.index.search(cue, max(k, WIDE), _admitted(space, allowed, keep))
            places = rows[0].tolist()
            vectors = vectors_of(space.index, places)
            entries = {row: space.by_row[row] for row in places}
        episodes = Episodes(
            self.dim,
            width=self.config.key_width,
            winners=min(self.config.key_winners, self.config.key_width),
            beta=self.config.completion_beta,
        )
        for row, known in zip(places, vectors, strict=True):
            episodes.add(row, known, 0.0)
        held = {row: place for place, row in enumerate(places)}
        recalled = episodes.recall(cue[0], k, lambda some: vectors[[held[row] for row in some]])
        return [
            {
                "memory": describe(entries[each.row], self.number),
                "score": each.cosine,
                "scores": {"dense": each.cosine, "completed": each.completed, "overlap": each.overlap},
            }
            for each in recalled
        ]

    def weakest(self, namespace: str, n: int, *, now: float) -> Page:
        """The `n` episodes of least strength: `{memory, strength}`, weakest first."""
        with self._viewing.read():
            space = self._view.spaces.get(namespace)
            entries = space.entries.values() if space else ()
            found = nsmallest(
                n,
                (
                    (self._strength(entry, now), entry.seq, entry)
                    for entry in entries
                    if entry.memory["kind"] == "episodic"
                ),
            )
            return [{"memory": describe(entry, self.number), "strength": s} for s, _, entry in found]

    def _strength(self, entry: Entry, now: float) -> float:
        return entry.vigour_at(now, self.config.strength_half_life_s)


def _admitted(space: Space, kinds: Sequence[str] | None, keep: Predicate | None) -> list[int] | None:
    """Rows of the entries that may be found; None where all may."""
    if kinds is None and keep is None:
        return None
    return [
        row
        for row, entry in space.by_row.items()
        if (kinds is None or entry.memory["kind"] in kinds) and (keep is None or keep(entry.memory))
    ]
