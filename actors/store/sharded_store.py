"""All shards of a store as one. Open this file first; routing of calls to shards is in `router.py`.

A namespace uses some of the shards (`actors.layout.placement`), and only those are called. Calls that a dying shard
interrupted, or that a reshard delayed, are sent again, which is safe because every write carries an `op_id`.
"""

import asyncio
from contextlib import suppress
from typing import Any

from actors.store.chain import StoreChain
from actors.store.conversations import StoreConversations
from actors.store.erasure import StoreErasure
from actors.store.graph import StoreGraph
from actors.store.keyed import StoreKeyed
from actors.store.memories import StoreMemories
from actors.store.router import Route, Router
from actors.store.search import StoreSearch
from common.config import Config
from common.errors import InvalidInput, SharpwaveError
from common.types import Json

ASKED_FIRST_S, ASKED_AGAIN_S = 5.0, 0.1  # around a restart


class ShardedStore:
    """All shards as one store, for asyncio. Cheap to create: actors are looked up when needed.

    Its parts are those of `stores.shard.shard.Shard`, with the same calls. Every operation ends within
    `serve.deadline_s`: a shard that is gone, or held by a reshard, is called again until then, and `NotReady`
    follows. `Overloaded` means that too many calls wait for a shard.
    """

    def __init__(self, config: Config) -> None:
        self._router = router = Router(config)
        self.memories = StoreMemories(router)
        self.search = StoreSearch(router)
        self.keyed = StoreKeyed(router)
        self.conversations = StoreConversations(router)
        self.graph = StoreGraph(router)
        self.erasure = StoreErasure(router)
        self.chain = StoreChain(router)

    @property
    def generation(self) -> int:
        """Generation of the layout; later writes are made under this one or a later one."""
        return self._router.generation

    async def counts(self) -> Json:
        """Sums over the shards, with each shard's own `counts` under `shards`."""
        shards = await self._router.on_all("counts")
        namespaces: dict[str, int] = {}
        for counts in shards:
            for name, memories in counts["namespaces"].items():
                namespaces[name] = namespaces.get(name, 0) + memories
        totals = {
            name: sum(counts[name] for counts in shards)
            for name in ("memories", "gate_attempts", "gate_accepts", "duplicates")
        }
        return {**totals, "namespaces": namespaces, "shards": shards}

    async def snapshot(self) -> list[Any]:
        """Have every shard write a snapshot: for each its folder, or None if the newest one covers everything."""
        return await self._router.on_all("snapshot")

    async def restart(self, number: int) -> Json:
        """End a shard's process, so that Ray restarts it and reopens the log, as is needed after a
        failed write. Calls that this interrupts are sent again.

        Returns `{shard, was, failure, seq, epoch, memories}`: `was` and `failure` are why writes were refused
        before and are refused now, or None.
        """

        async def run(route: Route) -> Json:
            if number not in route.placement.numbers:
                raise InvalidInput(
                    f"shard = {number}: must be 0 to {len(route.placement.numbers) - 1}", param="shard"
                )
            before: Json = {}
            with suppress(SharpwaveError, TimeoutError):  # a hanging shard is restarted too
                before = await asyncio.wait_for(route.call(number, "counts"), ASKED_FIRST_S)
            route.kill(number)
            after = await route.call(number, "counts")
            while after["epoch"] == before.get("epoch"):  # the old process answered
                await asyncio.sleep(ASKED_AGAIN_S)
                after = await route.call(number, "counts")
            told = {name: after[name] for name in ("failure", "seq", "epoch", "memories")}
            return {"shard": number, "was": before.get("failure"), **told}

        return await self._router.run(run)
