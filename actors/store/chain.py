"""Seals and verification of the chains of all shards."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from actors.store.router import Route, Router, together
from common.types import Json
from stores.log import seal

Broken = list[Json | None]
UNSEALED = (
    "the last reshard made new logs with chains of their own, and no seal was made since: none from before it can be "
    "held against them; run `sharpwave seal`"
)


class StoreChain:
    def __init__(self, router: Router) -> None:
        self._router = router

    async def heads(self) -> list[Any]:
        """The head of each shard's chain: `{shard, seq, anchor}`."""
        return await self._router.on_all("chain.head")

    async def seal(self, *, now: float) -> Json:
        """Write `seal.json` beside the shards; see `stores.log.seal`."""

        async def ask(route: Route) -> Json:
            heads = await route.ask(route.placement.numbers, "chain.head")
            return await asyncio.to_thread(seal.seal, route.folder, heads, now=now)

        return await self._router.run(ask)

    async def sealed(self) -> Json:
        """The last seal of these shards, for `verify`: `{sealed, shards, notice}`. Without one `sealed` is None, and
        after a reshard `notice` gives the reason."""

        async def ask(route: Route) -> Json:
            found = await asyncio.to_thread(seal.read_seal, route.folder)
            if found:
                return {"sealed": found["sealed"], "shards": found["shards"], "notice": None}
            return {"sealed": None, "shards": [], "notice": UNSEALED if route.generation > 1 else None}

        return await self._router.run(ask)

    async def verify(self, sealed: Sequence[Mapping[str, Any]] = ()) -> Broken:
        """Each shard's first broken record, or None; see `Chain.verify`. `sealed` are the shards of a seal."""
        by_number = {part["shard"]: part for part in sealed}

        async def ask(route: Route) -> Broken:
            return await together(
                route.call(number, "chain.verify", by_number.get(number))
                for number in route.placement.numbers
            )

        return await self._router.run(ask)
