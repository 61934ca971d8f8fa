"""The calls to the three stores, and those that look at the store's files."""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from actors.store.home_shard_calls import HomeCalls, Json, Page
from actors.store.router import Route
from common.config import Config
from stores.crypto.keyrings import read_rings
from stores.erasure.disk_probe import Canaries, probe_folder
from stores.index.vectors import Vectors
from stores.log import seal
from stores.snapshots.files import CONTEXT

Pages = list[Any]
UNSEALED = (
    "the last reshard made new logs with chains of their own, and no seal was made since: none from before it can be "
    "held against them; run `sharpwave seal`"
)


def _probe_files(config: Config, canaries: Canaries) -> Page:
    rings = read_rings(config.store)
    opens = partial(rings.open_any, context=CONTEXT) if rings else None
    return probe_folder(config.store_dir, canaries, open_sealed=opens)


class GraphCalls(HomeCalls):
    """Another part of `ShardedStore`."""

    # Episodes

    async def complete(
        self,
        namespace: str,
        vector: Vectors,
        k: int,
        *,
        kinds: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> Page:
        """See `Shard.complete`: of the shards' completions the best, then by cosine."""
        found = await self._spread(namespace, "complete", vector, k, kinds=kinds, where=where)
        hits = [hit for page in found for hit in page]
        first = max(hits, key=lambda hit: hit["scores"]["completed"], default=None)
        hits.sort(key=lambda hit: (hit is not first, -hit["score"], hit["memory"]["id"]))
        return hits[:k]

    async def weakest(self, namespace: str, n: int, *, now: float) -> Page:
        """See `Shard.weakest`."""
        found = await self._spread(namespace, "weakest", n, now=now)
        weak = [each for page in found for each in page]
        return sorted(weak, key=lambda each: (each["strength"], each["memory"]["id"]))[:n]

    # Facts and places: the whole graph is on the namespace's home

    async def query_facts(self, namespace: str, **pattern: Any) -> Page:
        """See `Shard.query_facts`."""
        return await self._home(namespace, "query_facts", namespace, **pattern)

    async def solve_facts(
        self, namespace: str, patterns: Sequence[tuple[str, str, str]], *, at: float | None, limit: int
    ) -> Page:
        """See `Shard.solve_facts`."""
        options = {"at": at, "limit": limit}
        return await self._home(namespace, "solve_facts", namespace, patterns, **options)

    async def recall_facts(self, namespace: str, text: str, *, k: int, at: float | None) -> Page:
        """See `Shard.recall_facts`."""
        return await self._home(namespace, "recall_facts", namespace, text, k=k, at=at)

    async def fact_path(self, namespace: str, a: str, b: str, *, at: float | None) -> Page | None:
        """See `Shard.fact_path`."""
        return await self._home(namespace, "fact_path", namespace, a, b, at=at)

    async def query_places(self, namespace: str, op: str, **asked: Any) -> Any:
        """See `Shard.query_places`."""
        return await self._home(namespace, "query_places", namespace, op, **asked)

    # Files

    async def seal(self, *, now: float) -> Json:
        """Write `seal.json` beside the shards; see `seal.seal`."""

        async def ask(route: Route) -> Json:
            finals = await route.ask(route.placement.numbers, "final")
            return await asyncio.to_thread(seal.seal, route.folder, finals, now=now)

        return await self._router.run(ask)

    async def sealed(self) -> Json:
        """The last seal of these shards, for `verify`: `{sealed, shards, notice}`. Without one `sealed` is None, and
        after a reshard `notice` says why."""

        async def ask(route: Route) -> Json:
            found = await asyncio.to_thread(seal.read_seal, route.folder)
            if found:
                return {"sealed": found["sealed"], "shards": found["shards"], "notice": None}
            return {"sealed": None, "shards": [], "notice": UNSEALED if route.generation > 1 else None}

        return await self._router.run(ask)

    async def probe(self, canaries: Canaries) -> Pages:
        """Where this is still to be found: the files of the store, then what each shard holds, `{shard, ...}`;
        see `probe.py`."""
        files = await asyncio.to_thread(_probe_files, self._router.config, canaries)
        held = await self._each("probe", canaries)
        return [
            *({"shard": None, **row} for row in files),
            *({"shard": number, **row} for number, rows in enumerate(held) for row in rows),
        ]

    async def _spread(self, namespace: str, method: str, *args: Any, **options: Any) -> Pages:
        """The same of each of the namespace's shards."""

        async def ask(route: Route) -> Pages:
            return await route.ask(route.placement.asked([namespace]), method, namespace, *args, **options)

        return await self._router.run(ask)

    async def _each(self, method: str, *args: Any) -> Pages:
        async def ask(route: Route) -> Pages:
            return await route.ask(route.placement.numbers, method, *args)

        return await self._router.run(ask)
