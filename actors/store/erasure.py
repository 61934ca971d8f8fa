"""Erasure on every shard of a namespace, with one receipt; and the probe for leftovers."""

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from actors.store.router import Route, Router, together
from common.config import Config
from common.types import Json
from stores.crypto.keyrings import read_keyrings
from stores.erasure.disk_probe import Canaries, probe_folder
from stores.snapshots.files import CONTEXT


class StoreErasure:
    def __init__(self, router: Router) -> None:
        self._router = router

    async def forget(
        self,
        namespace: str,
        *,
        ids: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
        everything: bool = False,
        op_id: str,
        now: float,
    ) -> Json:
        """Erase on every shard of the namespace; returns one merged receipt. See `Erasure.forget`.

        The text of a memory may also be a turn on another shard, which does not hold the memory. So turns are
        erased first: a call interrupted in between still finds the texts when it is repeated, although its receipt
        no longer counts the turns erased before.
        """
        turned = await self._forget_same_texts(namespace, ids, where, now) if not everything else None
        options = {"ids": ids, "where": where, "everything": everything, "op_id": op_id, "now": now}
        receipt = await self._erased(namespace, "erasure.forget", **options)
        return {**receipt, **_added(receipt, turned)} if turned else receipt

    async def _forget_same_texts(
        self, namespace: str, ids: Sequence[str] | None, where: Mapping[str, Any] | None, now: float
    ) -> Json | None:
        """Erase the turns with the texts of the selected memories; None if one shard has everything."""

        async def ask(route: Route) -> list[str]:
            numbers = route.placement.asked([namespace])
            if len(numbers) == 1:
                return []
            found = await route.ask(numbers, "erasure.texts_of", namespace, ids=ids, where=where)
            return sorted({text for texts in found for text in texts})

        texts = await self._router.run(ask)
        if not texts:
            return None
        return await self.forget_turns(namespace, texts=texts, op_id=uuid.uuid4().hex, now=now)

    async def forget_turns(self, namespace: str, **options: Any) -> Json:
        """Erase turns on every shard of the namespace; see `Erasure.forget_turns` for the options."""
        return await self._erased(namespace, "erasure.forget_turns", **options)

    async def rotate_key(self, namespace: str) -> bool:
        """Whether all shards of the namespace did; see `Erasure.rotate_key`."""

        async def ask(route: Route) -> bool:
            return all(await route.ask(route.placement.asked([namespace]), "erasure.rotate_key", namespace))

        return await self._router.run(ask)

    async def probe(self, canaries: Canaries) -> list[Any]:
        """Where the canaries are still found: the files of the store, then what each shard holds, `{shard, ...}`; see
        `stores.erasure`."""
        files = await asyncio.to_thread(_probe_files, self._router.config, canaries)
        held = await self._router.on_all("erasure.probe", canaries)
        return [
            *({"shard": None, **row} for row in files),
            *({"shard": number, **row} for number, rows in enumerate(held) for row in rows),
        ]

    async def _erased(self, namespace: str, method: str, **options: Any) -> Json:
        """The merged receipt. If a reshard comes between, what shards erased before it counts too."""
        receipts: dict[tuple[int, int], Json] = {}

        async def erase(route: Route) -> None:
            async def one(number: int) -> None:
                answer = await route.call(number, method, namespace, **options)
                receipts[route.generation, number] = answer

            await together(one(number) for number in route.placement.asked([namespace]))

        await self._router.run(erase)
        last = max(generation for generation, _ in receipts)
        for generation, number in receipts:
            if (
                generation < last and "heads" in receipts[generation, number]
            ):  # of a log that no longer exists
                receipts[generation, number]["heads"] = []
        return {**merged([*receipts.values()]), "generation": last}


def _added(receipt: Json, turned: Json) -> Json:
    """The fields of a receipt that change by that of the turns erased before."""
    sums = {name: receipt[name] + turned[name] for name in ("turns", "log_records")}
    return {**sums, "scrubbed": receipt["scrubbed"] and turned["scrubbed"]}


def merged(receipts: Sequence[Json]) -> Json:
    """The receipts of several shards as one: lists and objects joined, numbers added, booleans joined by and."""
    found: Json = {}
    for name, first in receipts[0].items():
        values = [receipt[name] for receipt in receipts if receipt[name] is not None]
        if not values or isinstance(first, str):
            found[name] = first
        elif isinstance(values[0], bool):
            found[name] = all(values)
        elif isinstance(values[0], dict):
            found[name] = {key: each for value in values for key, each in value.items()}
        elif isinstance(values[0], list):
            found[name] = [each for value in values for each in value]
        else:
            found[name] = sum(values)
    return found


def _probe_files(config: Config, canaries: Canaries) -> list[Json]:
    rings = read_keyrings(config.store)
    opens = partial(rings.decrypt_any, context=CONTEXT) if rings else None
    return probe_folder(config.store_dir, canaries, decrypt=opens)
