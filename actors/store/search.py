"""Searches over the shards of a namespace: each shard returns candidates, which are ranked once here."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from actors.store.router import Router
from actors.store.support import mark_unsupported
from common.types import Json, Page
from stores.index.vectors import Vectors
from stores.memory.memory import sources_of
from stores.memory.period import Period
from stores.ranking import ranking


class StoreSearch:
    def __init__(self, router: Router) -> None:
        self._router = router

    async def find(self, namespace: str, vector: Vectors, k: int, **options: Any) -> Page:
        """The best `k` over all shards; options as `Search.find`."""
        results, _ = await self.find_traced(namespace, vector, k, **options)
        return results

    async def find_traced(
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
        rerank: ranking.Rerank | None = None,
    ) -> tuple[Page, list[Json]]:
        """`find` with the trace's stages."""
        found = await self._router.on_each(
            namespace,
            "search.candidates",
            vector,
            ranking.reach(k, offset),
            query=query,
            retrieval=retrieval,
            kinds=None if kinds is None else [*kinds],
            where=where,
            period=period,
        )
        hits = [hit for reply in found for hit in reply["hits"]]
        words = ranking.words_of(found)
        results, stages = await asyncio.to_thread(
            ranking.ranked, retrieval, query, hits, k, now=now, offset=offset, rerank=rerank, words=words
        )
        results = await self._supported_first(namespace, results, period)
        return results, [*ranking.channel_stages(hits, [reply["ms"] for reply in found]), *stages]

    async def _supported_first(self, namespace: str, results: Page, period: Period | None) -> Page:
        """The results, those last that have lost what they were derived from (`actors.store.support`)."""
        if not any(sources_of(result["memory"]) for result in results):
            return results
        results = [{**result, "memory": {**result["memory"]}} for result in results]
        await mark_unsupported(self._router, namespace, [result["memory"] for result in results], period)
        scores = [result["score"] for result in results]
        if any(result["memory"].get("unsupported") for result in results):
            results.sort(key=lambda result: bool(result["memory"].get("unsupported")))
            scores.sort(reverse=True)
        return [{**result, "score": score} for result, score in zip(results, scores, strict=True)]

    async def complete(
        self,
        namespace: str,
        vector: Vectors,
        k: int,
        *,
        kinds: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
        period: Period | None = None,
    ) -> Page:
        """See `Search.complete`: the best of the shards' completions, then the others by cosine."""
        found = await self._router.on_each(
            namespace, "search.complete", vector, k, kinds=kinds, where=where, period=period
        )
        hits = [hit for page in found for hit in page]
        first = max(hits, key=lambda hit: hit["scores"]["completed"], default=None)
        hits.sort(key=lambda hit: (hit is not first, -hit["score"], hit["memory"]["id"]))
        return await self._supported_first(namespace, hits[:k], period)
