"""The half of `Shard` for the episodic store: recall from a partial cue, and what decay leaves of a memory.

Neither costs a write anything: sparse keys are made of the candidates that the dense index gives for a cue,
and strength follows from what an entry knows of its uses.
"""

from collections.abc import Iterable, Mapping
from heapq import nsmallest
from typing import Any

from common.config import StoreConfig
from stores.index.serialization import vectors_of
from stores.index.vectors import Vectors, check_vectors
from stores.locks import ReadWriteLock
from stores.reads import search
from stores.reads.sparse_keys import Episodes
from stores.view.memory_state import Entry, describe
from stores.view.view import View

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
        cue = check_vectors([vector], self.dim)
        if k <= 0:
            return []
        wanted = search.ask(namespace, cue, max(k, WIDE), query=None, kinds=kinds, where=where)
        near = search.find(self._viewing, self._view, wanted, self.number)["hits"]
        with self._viewing.read():
            space = self._view.spaces.get(namespace)
            found = (hit["memory"]["seq"] for hit in near)
            places = [row for row in found if space and row in space.by_row]  # less what was forgotten since
            if space is None or not places:
                return []
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
            entries = self._view.entries(namespace)
        episodes = (entry for entry in entries if entry.memory["kind"] == "episodic")  # writers go on
        found = nsmallest(n, ((self._strength(entry, now), entry.seq) for entry in episodes))
        with self._viewing.read():
            space = self._view.spaces.get(namespace)
            left = [(s, space.by_row[row]) for s, row in found if space and row in space.by_row]
            return [{"memory": describe(entry, self.number), "strength": s} for s, entry in left]

    def _strength(self, entry: Entry, now: float) -> float:
        return entry.vigour_at(now, self.config.strength_half_life_s)
