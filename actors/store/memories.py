"""Memories on the shards that own them; see `stores.shard.memories.Memories` for each call."""

from collections.abc import AsyncIterator, Iterable, Sequence
from hashlib import blake2b
from heapq import merge
from typing import Any

import pyarrow as pa
import ray

from actors.store.router import Route, Router, together
from actors.store.support import mark_unsupported
from common.errors import Conflict, InvalidInput, NotFound
from common.types import Json, Page
from stores.index.vectors import Vectors, nearest_earlier
from stores.memory.memory import Memory
from stores.view.view import cursor_of
from stores.writes.batch import MemoryBatch
from stores.writes.versions import Candidate, Weigh

Replies = list[Any]  # one a shard; named here since `StoreMemories.list` hides the builtin
Names = list[str]
Tables = list[pa.Table]

EXPORT_PAGE = 500  # memories
_KNOWN = {"touch": "touched", "score": "scored"}  # where an answer lists the ids it found


class StoreMemories:
    def __init__(self, router: Router) -> None:
        self._router = router

    async def put(self, batch: MemoryBatch, *, op_id: str, now: float, partial: bool = False) -> Page:
        """Write memories; the answers come in the order given.

        Every shard checks first, so one id with other content refuses the whole call with `Conflict`; with `partial`
        only that memory is refused. Shards commit one by one: if one is lost midway and does not return in time,
        `NotReady` leaves the others' memories written, and repeating the call with the same `op_id` completes it.
        """
        if not len(batch):
            return []

        async def write(route: Route) -> Page:
            owners = [route.placement.owner(m.namespace, m.id, m.kind) for m in batch.memories]
            conflicts, nearest, duplicates = await _prepare(route, batch, owners)
            answers = {
                i: _refused(batch.memories[i], owners[i], why) for i, why in enumerate(conflicts) if why
            }
            if answers and not partial:
                raise Conflict(next(filter(None, conflicts)), param="id")
            answers |= await _count_duplicates(route, batch, duplicates, op_id=op_id, now=now)
            routed = _by_shard([[] if i in answers else [owner] for i, owner in enumerate(owners)])
            replies = await together(
                route.call(
                    owner,
                    "memories.put",
                    batch.select(indices),
                    op_id=op_id,
                    now=now,
                    elsewhere=[nearest[i] for i in indices],
                )
                for owner, indices in routed.items()
            )
            for indices, written in zip(routed.values(), replies, strict=True):
                answers.update(zip(indices, written, strict=True))
            return [answers[i] for i in range(len(batch))]

        return await self._router.run(write)

    async def supersede(
        self,
        memory: Memory,
        vector: Vectors,
        *,
        generation: int,
        op_id: str,
        now: float,
        passages: Vectors | None = None,
    ) -> Json:
        options: Json = {"generation": generation, "op_id": op_id, "now": now, "passages": passages}

        async def write(route: Route) -> Json:
            *others, last = route.placement.lookups(memory.namespace, memory.id)
            for number in others:
                try:
                    found: Json = await route.call(number, "memories.supersede", memory, vector, **options)
                    return found
                except NotFound:
                    continue
            found = await route.call(last, "memories.supersede", memory, vector, **options)
            return found

        return await self._router.run(write)

    async def race(
        self,
        namespace: str,
        key: str,
        candidates: Sequence[Candidate],
        *,
        generation: int,
        op_id: str,
        now: float,
        weigh: Weigh,
    ) -> Json:
        """See `Memories.race`. A new key (`generation` 0) is written to the shard of its kind. `weigh` must be
        picklable."""
        options = {"generation": generation, "op_id": op_id, "now": now, "weigh": weigh}

        async def run(route: Route) -> Json:
            number = route.placement.owner(namespace, key, candidates[0].memory.kind)
            for lookup in route.placement.lookups(namespace, key):
                if await route.call(lookup, "memories.get", namespace, key) is not None:
                    number = lookup
            found: Json = await route.call(number, "memories.race", namespace, key, candidates, **options)
            return found

        return await self._router.run(run)

    async def import_rows(self, rows: Sequence[Json], *, op_id: str, now: float) -> Page:
        """See `Memories.import_rows`; answers in the order given."""

        async def write(route: Route) -> Page:
            memories = [row["memory"] for row in rows]
            routed = _by_shard(
                [[route.placement.owner(m["namespace"], m["id"], m["kind"])] for m in memories]
            )
            replies = await together(
                route.call(number, "memories.import_rows", [rows[i] for i in indices], op_id=op_id, now=now)
                for number, indices in routed.items()
            )
            answers: dict[int, Json] = {}
            for indices, written in zip(routed.values(), replies, strict=True):
                answers.update(zip(indices, written, strict=True))
            return [answers[i] for i in range(len(rows))]

        return await self._router.run(write)

    async def touch(self, namespace: str, ids: Sequence[str], *, op_id: str, now: float) -> Json:
        keyed = [(id, id) for id in ids]
        _, unknown = await self._looked_up("touch", namespace, keyed, op_id=op_id, now=now)
        missing = {*unknown}
        return {"touched": [id for id in ids if id not in missing], "unknown": unknown}

    async def score(
        self, namespace: str, scores: Sequence[tuple[str, float]], *, op_id: str, now: float
    ) -> Json:
        keyed = [(id, (id, divergence)) for id, divergence in scores]
        replies, unknown = await self._looked_up("score", namespace, keyed, op_id=op_id, now=now)
        scored = {id: salience for reply in replies for id, salience in reply["scored"].items()}
        return {"scored": scored, "unknown": unknown}

    async def get(self, namespace: str, id: str) -> Json | None:
        """See `Memories.get`; with `unsupported` where it lost a source (`actors.store.support`)."""
        found: Json | None = await self._first_found("memories.get", namespace, id)
        if found is not None:
            await mark_unsupported(self._router, namespace, [found])
        return found

    async def history(self, namespace: str, id: str) -> Page | None:
        found: Page | None = await self._first_found("memories.history", namespace, id)
        return found

    async def export_rows(self, namespace: str, *, conversation: str | None = None) -> AsyncIterator[Json]:
        """Each memory of the namespace as `import_rows` takes it, in order of (time, id)."""
        cursor = None
        while True:
            page = await self.list(namespace, conversation=conversation, limit=EXPORT_PAGE, after=cursor)
            keys = [(namespace, memory["id"]) for memory in page["memories"]]
            for row in await self._rows(namespace, keys) if keys else ():
                yield row
            if (cursor := page["next"]) is None:
                return

    async def statistics(self, namespace: str) -> Tables:
        """One table for each of the namespace's shards, so that replay can draw a shard by its mass first."""
        return await self._router.on_each(namespace, "memories.statistics")

    async def weakest(self, namespace: str, n: int, *, now: float) -> Page:
        found = await self._router.on_each(namespace, "memories.weakest", n, now=now)
        weak = [each for page in found for each in page]
        return sorted(weak, key=lambda each: (each["strength"], each["memory"]["id"]))[:n]

    async def list(
        self, namespace: str, *, after: str | None = None, limit: int = 100, **options: Any
    ) -> Json:
        """A page in order of (time, id): `{memories, next}`; `next` is the cursor of the next page, or None.
        Options as `Memories.list`: kind, conversation, where."""
        if limit < 1:
            raise InvalidInput(f"limit = {limit}: must be at least 1", param="limit")
        pages = await self._router.on_each(
            namespace, "memories.list", after=after, limit=limit + 1, **options
        )
        found = [*merge(*pages, key=lambda memory: (memory["time"], memory["id"]))]
        page = found[:limit]
        await mark_unsupported(self._router, namespace, page)
        return {"memories": page, "next": cursor_of(page[-1]) if len(found) > limit else None}

    async def _first_found(self, method: str, namespace: str, id: str) -> Any:
        async def read(route: Route) -> Any:
            for number in route.placement.lookups(namespace, id):
                if (found := await route.call(number, method, namespace, id)) is not None:
                    return found
            return None

        return await self._router.run(read)

    async def _rows(self, namespace: str, keys: Sequence[tuple[str, str]]) -> Page:
        async def read(route: Route) -> Replies:
            return await route.ask(route.placement.asked([namespace]), "reshard.rows", keys)

        parts = await self._router.run(read)
        rows = [
            {name: value for name, value in row.items() if name != "ends"} for part in parts for row in part
        ]
        return sorted(rows, key=lambda row: (row["memory"]["time"], row["memory"]["id"]))

    async def _looked_up(
        self, method: str, namespace: str, keyed: Sequence[tuple[str, Any]], **options: Any
    ) -> tuple[Replies, Names]:
        """Send the value of each `(id, value)` to every shard that may hold the id: one call a shard, since an `op_id`
        stands for one request. Returns the answers, and the ids that no shard knows."""

        async def send(route: Route) -> Replies:
            lookups = [route.placement.lookups(namespace, id) for id, _ in keyed]
            return await together(
                route.call(number, f"memories.{method}", namespace, [keyed[i][1] for i in indices], **options)
                for number, indices in _by_shard(lookups).items()
            )

        replies = await self._router.run(send)
        known = {id for reply in replies for id in reply[_KNOWN[method]]}
        return replies, [id for id, _ in keyed if id not in known]


async def _prepare(
    route: Route, batch: MemoryBatch, owners: Sequence[int]
) -> tuple[list[str | None], list[float], list[int | None]]:
    """For each memory: its conflict, if any; its highest cosine outside the shard that owns it; the other shard that
    holds a near duplicate, unless the memory itself is written already. Each shard searches once, and only for the
    memories that it does not own; it compares its own when it writes them."""
    namespaces = batch.namespaces
    own = _by_shard([route.placement.lookups(m.namespace, m.id) for m in batch.memories])
    foreign = _by_shard(
        [
            [number for number in route.placement.places(namespace) if number != owner]
            for namespace, owner in zip(namespaces, owners, strict=True)
        ]
    )
    asked = sorted({*own, *foreign})
    shared = {indices: ray.put(batch.select(indices)) for indices in {tuple(v) for v in foreign.values()}}
    nothing = batch.select([])
    replies = await together(
        route.call(
            number,
            "memories.prepare",
            [batch.memories[i] for i in own.get(number, [])],
            shared[tuple(foreign[number])] if number in foreign else nothing,
        )
        for number in asked
    )
    conflicts: list[str | None] = [None] * len(batch)
    duplicates: list[int | None] = [None] * len(batch)
    nearest = nearest_earlier(namespaces, batch.vectors)
    for number, found in zip(asked, replies, strict=True):
        for i, cosine, duplicate in zip(
            foreign.get(number, []), found.cosines, found.duplicates, strict=True
        ):
            nearest[i] = max(nearest[i], cosine)
            duplicates[i] = number if duplicate is not None else duplicates[i]
    for number, found in zip(asked, replies, strict=True):
        for i, written, conflict in zip(own.get(number, []), found.written, found.conflicts, strict=True):
            conflicts[i] = conflicts[i] or conflict
            duplicates[i] = None if written or conflict else duplicates[i]
    return conflicts, nearest, duplicates


async def _count_duplicates(
    route: Route, batch: MemoryBatch, duplicates: Sequence[int | None], *, op_id: str, now: float
) -> dict[int, Json]:
    """Answers, by index, for the memories that another shard counts as near duplicates of its own. An `op_id` stands
    for one request, so these calls use one derived from it."""
    routed = _by_shard([[] if number is None else [number] for number in duplicates])
    derived = blake2b(f"sight/{op_id}".encode(), digest_size=16).hexdigest()
    replies = await together(
        route.call(number, "memories.count_duplicates", batch.select(indices), op_id=derived, now=now)
        for number, indices in routed.items()
    )
    found = zip(routed.values(), replies, strict=True)
    return {i: answer for indices, reply in found for i, answer in zip(indices, reply, strict=True) if answer}


def _by_shard(numbers: Sequence[Iterable[int]]) -> dict[int, list[int]]:
    """For each shard the indices of the items that name it."""
    found: dict[int, list[int]] = {}
    for i, named in enumerate(numbers):
        for number in named:
            found.setdefault(number, []).append(i)
    return found


def _refused(memory: Memory, shard: int, conflict: str) -> Json:
    """The answer for a memory whose id is taken, in a call that goes on without it."""
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
