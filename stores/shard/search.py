"""Searches of a shard: by meaning and words, and completion of a partial cue."""

from collections.abc import Iterable, Mapping
from typing import Any

from common.types import Json, Page
from stores.index.vectors import Vectors, check_vectors
from stores.memory.period import Period
from stores.ranking import ranking
from stores.reads import cue_recall, search
from stores.shard.core import ShardCore
from stores.view.memory_state import unshared


class Search:
    def __init__(self, core: ShardCore) -> None:
        self._core = core

    def find(
        self,
        namespace: str,
        vector: Vectors,
        k: int,
        *,
        query: str | None = None,
        retrieval: str = "full",
        kinds: Iterable[str] | None = None,
        where: Mapping[str, Any] | None = None,
        period: Period | None = None,
        now: float | None = None,
        offset: int | None = None,
    ) -> Page:
        """The `k` best memories admitted by kinds and filter, best first: `{memory, score, scores: {dense, lexical,
        concert}}`. `vector`: float32 `[dim]`, unit norm. `retrieval`: `flat` (cosine) or `full` (see
        `stores.ranking.ranking`). Of facts, those that hold at some time of `period` (first and last second), or with
        None those of any time. Recency counts from `now`. With `offset`, the page after that many results.
        Raises `InvalidInput` for a vector of another shape or norm."""
        found = self.candidates(
            namespace,
            vector,
            ranking.reach(k, offset),
            query=query,
            retrieval=retrieval,
            kinds=kinds,
            where=where,
            period=period,
        )
        words = ranking.words_of([found])
        results, _ = ranking.ranked(retrieval, query, found["hits"], k, now=now, offset=offset, words=words)
        return [{**hit, "memory": unshared(hit["memory"])} for hit in results]

    def candidates(
        self,
        namespace: str,
        vector: Vectors,
        k: int,
        *,
        query: str | None = None,
        retrieval: str = "full",
        kinds: Iterable[str] | None = None,
        where: Mapping[str, Any] | None = None,
        period: Period | None = None,
    ) -> Json:
        """This shard's candidates for a search for `k` over all shards; see `stores.reads.search.find`."""
        core = self._core
        flat = ranking.check_retrieval(retrieval) == "flat"
        wanted = search.ask(
            namespace,
            check_vectors([vector], core.dim),
            k if flat else ranking.depth_of(k),
            query=None if flat else query,
            kinds=kinds,
            where=where,
            period=period,
        )
        return search.find(core.view_lock, core.view, wanted, core.number)

    def complete(
        self,
        namespace: str,
        vector: Vectors,
        k: int,
        *,
        kinds: Iterable[str] | None = None,
        where: Mapping[str, Any] | None = None,
        period: Period | None = None,
    ) -> Page:
        """The memory to which the cue (float32 `[dim]`, unit norm) is completed, then those nearest to the cue as
        given, `k` in all: `{memory, score, scores: {dense, completed, overlap}}`."""
        core = self._core
        cue = check_vectors([vector], core.dim)
        if k <= 0:
            return []
        wanted = search.ask(
            namespace, cue, max(k, cue_recall.WIDE), query=None, kinds=kinds, where=where, period=period
        )
        return cue_recall.complete(core.view_lock, core.view, wanted, k, core.number, core.config)
