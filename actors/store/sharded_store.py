"""All shards as one store. The actors themselves are in `shard.py`, the way to them in `route.py`.

A namespace uses some of the shards (`placement.py`), and only those are asked. Calls that a dying shard cut
off, or that a reshard held up, are sent again, which is safe because every write carries an `op_id`.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from heapq import merge
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from actors.layout.layout import RAY_NAMESPACE
from actors.shards.actor import Json, Page, StoreShard
from actors.start import start_shards, stop_shards
from actors.store.erasure import ErasureCalls
from actors.store.graph import GraphCalls
from actors.store.router import Route, Router, together
from common.config import Config
from common.errors import Conflict, InvalidInput, SharpwaveError
from stores.index.vectors import Vectors, nearest_earlier
from stores.memory.memory import Memory
from stores.ranking import ranking
from stores.view.view import cursor_of

__all__ = ["RAY_NAMESPACE", "ShardedStore", "StoreShard", "start_shards", "stop_shards"]

Replies = list[Any]  # one a shard; named here since `ShardedStore.list` hides the builtin
Names = list[str]
Tables = list[pa.Table]
Broken = list[Json | None]
ASKED_FIRST_S, ASKED_AGAIN_S = 5.0, 0.1  # around a restart
_KNOWN = {"touch": "touched", "score": "scored"}  # where an answer lists the ids it found


class ShardedStore(GraphCalls, ErasureCalls):
    """All shards as one store, for asyncio. Cheap to make: it looks actors up when they are needed.

    Every operation ends within `serve.deadline_s`: a shard that is gone, or held by a reshard, is called
    again until then, and `NotReady` follows. `Overloaded` means that too many calls wait for a shard.
    """

    def __init__(self, config: Config) -> None:
        self._router = Router(config)

    @property
    def generation(self) -> int:
        """Of the layout: what is written from now on is written under this one or a later one."""
        return self._router.generation

    async def put(
        self, items: Sequence[tuple[Memory, Vectors]], *, op_id: str, now: float, partial: bool = False
    ) -> Page:
        """Write memories; see `Shard.put` for the answers, which come in the order given.

        Every shard is asked first, so one id with other content refuses the whole call with `Conflict`;
        with `partial` only that item is refused. Shards commit one by one: where one is lost midway and
        does not come back in time, `NotReady` leaves the others' items written, and sending the call
        again with the same `op_id` completes it.
        """
        if not items:
            return []
        memories = [memory for memory, _ in items]
        vectors = np.stack([vector for _, vector in items])

        async def write(route: Route) -> Page:
            owners = [route.placement.owner(m.namespace, m.id, m.kind) for m in memories]
            conflicts, nearest, twins = await _prepare(route, memories, vectors, owners)
            answers = {i: _refused(memories[i], owners[i], why) for i, why in enumerate(conflicts) if why}
            if answers and not partial:
                raise Conflict(next(filter(None, conflicts)), param="id")
            answers |= await _sight(route, memories, vectors, twins, op_id=op_id, now=now)
            routed = _places([[] if i in answers else [owner] for i, owner in enumerate(owners)])
            replies = await together(
                route.call(
                    owner,
                    "put",
                    [memories[i] for i in places],
                    vectors[places],
                    op_id=op_id,
                    now=now,
                    elsewhere=[nearest[i] for i in places],
                )
                for owner, places in routed.items()
            )
            for places, written in zip(routed.values(), replies, strict=True):
                answers.update(zip(places, written, strict=True))
            return [answers[i] for i in range(len(items))]

        return await self._router.run(write)

    async def get(self, namespace: str, id: str) -> Json | None:
        """See `Shard.get`."""

        async def read(route: Route) -> Json | None:
            found: Json | None = None
            for number in route.placement.lookups(namespace, id):
                found = found or await route.call(number, "get", namespace, id)
            return found

        return await self._router.run(read)

    async def search(self, namespace: str, vector: Vectors, k: int, **options: Any) -> Page:
        """The best `k` over all shards; options as `Shard.search`: query, retrieval, kinds, where, now,
        offset."""
        results, _ = await self.search_traced(namespace, vector, k, **options)
        return results

    async def search_traced(
        self,
        namespace: str,
        vector: Vectors,
        k: int,
        *,
        query: str | None = None,
        retrieval: str = "full",
        kinds: Iterable[str] | None = None,
        where: Mapping[str, Any] | None = None,
        now: float | None = None,
        offset: int | None = None,
        rerank: ranking.Rerank | None = None,
    ) -> tuple[Page, list[Json]]:
        """`search` with the trace's stages. Shards give candidates; they are ranked once, here."""
        found = await self._of(
            namespace,
            "candidates",
            namespace,
            vector,
            ranking.reach(k, offset),
            query=query,
            retrieval=retrieval,
            kinds=None if kinds is None else [*kinds],
            where=where,
        )
        hits = [hit for reply in found for hit in reply["hits"]]
        results, stages = await asyncio.to_thread(
            ranking.ranked, retrieval, query, hits, k, now=now, offset=offset, rerank=rerank
        )
        return results, [*ranking.channel_stages(hits, [reply["ms"] for reply in found]), *stages]

    async def touch(self, namespace: str, ids: Sequence[str], *, op_id: str, now: float) -> Json:
        """See `Shard.touch`."""
        keyed = [(id, id) for id in ids]
        _, unknown = await self._looked_up("touch", namespace, keyed, op_id=op_id, now=now)
        missing = {*unknown}
        return {"touched": [id for id in ids if id not in missing], "unknown": unknown}

    async def score(
        self, namespace: str, scores: Sequence[tuple[str, float]], *, op_id: str, now: float
    ) -> Json:
        """See `Shard.score`."""
        keyed = [(id, (id, divergence)) for id, divergence in scores]
        replies, unknown = await self._looked_up("score", namespace, keyed, op_id=op_id, now=now)
        scored = {id: salience for reply in replies for id, salience in reply["scored"].items()}
        return {"scored": scored, "unknown": unknown}

    async def statistics(self, namespace: str) -> Tables:
        """One table for each of the namespace's shards, so that replay can draw a shard by its mass first."""
        tables: Tables = await self._of(namespace, "statistics", namespace)
        return tables

    async def counts(self) -> Json:
        """Sums over the shards, with each shard's own `counts` under `shards`."""
        shards = await self._all("counts")
        namespaces: dict[str, int] = {}
        for counts in shards:
            for name, memories in counts["namespaces"].items():
                namespaces[name] = namespaces.get(name, 0) + memories
        totals = {
            name: sum(counts[name] for counts in shards)
            for name in ("memories", "gate_attempts", "gate_accepts", "duplicates")
        }
        return {**totals, "namespaces": namespaces, "shards": shards}

    async def restart(self, number: int) -> Json:
        """End a shard's process, so that Ray starts it anew and the log is opened again: what a log needs that
        stopped at a failed write. Calls that this cuts off are sent again.

        Returns `{shard, was, failure, seq, epoch, memories}`: why writes were refused before, and are now.
        """

        async def run(route: Route) -> Json:
            if number not in route.placement.numbers:
                raise InvalidInput(
                    f"shard = {number}: must be 0 to {len(route.placement.numbers) - 1}", param="shard"
                )
            before: Json = {}
            with suppress(SharpwaveError, TimeoutError):  # what hangs is restarted all the same
                before = await asyncio.wait_for(route.call(number, "counts"), ASKED_FIRST_S)
            route.kill(number)
            after = await route.call(number, "counts")
            while after["epoch"] == before.get("epoch"):  # the old process answered
                await asyncio.sleep(ASKED_AGAIN_S)
                after = await route.call(number, "counts")
            told = {name: after[name] for name in ("failure", "seq", "epoch", "memories")}
            return {"shard": number, "was": before.get("failure"), **told}

        return await self._router.run(run)

    async def finals(self) -> Replies:
        """Where each shard's chain stands, for a seal: `{shard, seq, anchor}`."""
        return await self._all("final")

    async def verify(self, sealed: Sequence[Mapping[str, Any]] = ()) -> Broken:
        """Each shard's first broken record, or None; see `Shard.verify`. `sealed` are the shards of a seal."""
        by_number = {part["shard"]: part for part in sealed}

        async def ask(route: Route) -> Broken:
            return await together(
                route.call(number, "verify", by_number.get(number)) for number in route.placement.numbers
            )

        return await self._router.run(ask)

    async def snapshot(self) -> Replies:
        """Have every shard write a snapshot; its folder, or None where the newest one covers everything."""
        return await self._all("snapshot")

    async def list(
        self, namespace: str, *, after: str | None = None, limit: int = 100, **options: Any
    ) -> Json:
        """A page in order of (time, id): `{memories, next}`; `next` is the cursor of the page behind it,
        or None. Options as `Shard.list`: kind, conversation, where."""
        if limit < 1:
            raise InvalidInput(f"limit = {limit}: must be at least 1", param="limit")
        pages = await self._of(namespace, "list", namespace, after=after, limit=limit + 1, **options)
        found = [*merge(*pages, key=lambda memory: (memory["time"], memory["id"]))]
        page = found[:limit]
        return {"memories": page, "next": cursor_of(page[-1]) if len(found) > limit else None}

    async def _looked_up(
        self, method: str, namespace: str, keyed: Sequence[tuple[str, Any]], **options: Any
    ) -> tuple[Replies, Names]:
        """Send each `(id, value)`'s value wherever the id may be: one call a shard, since an `op_id` stands
        for one request. The answers, and the ids that no shard knows."""

        async def send(route: Route) -> Replies:
            lookups = [route.placement.lookups(namespace, id) for id, _ in keyed]
            return await together(
                route.call(number, method, namespace, [keyed[i][1] for i in places], **options)
                for number, places in _places(lookups).items()
            )

        replies = await self._router.run(send)
        known = {id for reply in replies for id in reply[_KNOWN[method]]}
        return replies, [id for id, _ in keyed if id not in known]

    async def _of(self, namespace: str, method: str, *args: Any, **options: Any) -> Replies:
        """The same of each of the namespace's shards."""

        async def ask(route: Route) -> Replies:
            return await route.ask(route.placement.asked([namespace]), method, *args, **options)

        return await self._router.run(ask)

    async def _all(self, method: str, *args: Any, **options: Any) -> Replies:
        async def ask(route: Route) -> Replies:
            return await route.ask(route.placement.numbers, method, *args, **options)

        return await self._router.run(ask)


async def _prepare(
    route: Route, memories: Sequence[Memory], vectors: Vectors, owners: Sequence[int]
) -> tuple[list[str | None], list[float], list[int | None]]:
    """For each item: its conflict, if any; its highest cosine outside the shard that owns it; the other
    shard where a memory says the same, unless the item itself is written already."""
    namespaces = [memory.namespace for memory in memories]
    lookups = [route.placement.lookups(memory.namespace, memory.id) for memory in memories]
    asked = route.placement.asked(namespaces)
    own = _places(lookups)
    near = _places([route.placement.places(namespace) for namespace in namespaces])
    shared = {places: ray.put(vectors[[*places]]) for places in {tuple(near[number]) for number in asked}}
    replies = await together(
        route.call(
            number,
            "prepare",
            [memories[i] for i in own.get(number, [])],
            [memories[i] for i in near[number]],
            shared[tuple(near[number])],
        )
        for number in asked
    )
    conflicts: list[str | None] = [None] * len(memories)
    twins: list[int | None] = [None] * len(memories)
    nearest = nearest_earlier(namespaces, vectors)
    for number, (_, cosines, alike) in zip(asked, replies, strict=True):
        for i, cosine, twin in zip(near[number], cosines, alike, strict=True):
            if owners[i] != number:
                nearest[i] = max(nearest[i], cosine)
                twins[i] = number if twin is not None else twins[i]
    for number, (found, _, _) in zip(asked, replies, strict=True):
        for i, (written, conflict) in zip(own.get(number, []), found, strict=True):
            conflicts[i] = conflicts[i] or conflict
            twins[i] = None if written or conflict else twins[i]
    return conflicts, nearest, twins


async def _sight(
    route: Route,
    memories: Sequence[Memory],
    vectors: Vectors,
    twins: Sequence[int | None],
    *,
    op_id: str,
    now: float,
) -> dict[int, Json]:
    """Answers, by place, of the items that another shard counts as one of its own. An `op_id` stands for one
    request, so these go under one made from it."""
    routed = _places([[] if twin is None else [twin] for twin in twins])
    sighting = blake2b(f"sight/{op_id}".encode(), digest_size=16).hexdigest()
    replies = await together(
        route.call(number, "sight", [memories[i] for i in places], vectors[places], op_id=sighting, now=now)
        for number, places in routed.items()
    )
    told = zip(routed.values(), replies, strict=True)
    return {i: answer for places, reply in told for i, answer in zip(places, reply, strict=True) if answer}


def _places(numbers: Sequence[Iterable[int]]) -> dict[int, list[int]]:
    """For each shard the places of the items that name it."""
    found: dict[int, list[int]] = {}
    for i, named in enumerate(numbers):
        for number in named:
            found.setdefault(number, []).append(i)
    return found


def _refused(memory: Memory, shard: int, conflict: str) -> Json:
    """The answer for an item that clashes, in a call that goes on without it."""
    return {
        "id": memory.id,
        "kind": memory.kind,
        "stored": False,
        "status": "refused",
        "gate": {"score": None, "reason": conflict},
        "anchor": None,
        "shard": shard,
        "seq": None,
    }
