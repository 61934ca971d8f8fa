"""All shards as one store. The actors themselves are in `shard.py`.

An id lives on one shard, found by rendezvous hashing; what cannot be routed is asked of all. Calls that
a dying shard cut off are sent again, which is safe because every write carries an `op_id`.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from heapq import merge
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import PendingCallsLimitExceeded, RayActorError, RayTaskError

from actors.shard import (
    MAX_PENDING_CALLS,
    RAY_NAMESPACE,
    Json,
    Page,
    StoreShard,
    actor_name,
    cause_of,
    start_shards,
)
from common.config import Config
from common.errors import Conflict, InvalidInput, NotReady, Overloaded
from stores import rank
from stores.gate import nearest_earlier
from stores.index import Vectors
from stores.memory import Memory
from stores.view import cursor_of

__all__ = ["RAY_NAMESPACE", "ShardedStore", "StoreShard", "start_shards"]

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0


class ShardedStore:
    """All shards as one store, for asyncio. Cheap to make: it looks actors up when they are needed.

    Every call to a shard ends within `serve.deadline_s`: a shard that is gone is called again until
    then, and `NotReady` follows. `Overloaded` means that too many calls wait for a shard.
    """

    def __init__(self, config: Config) -> None:
        self._numbers = range(config.store.shards)
        self._deadline_s = config.serve.deadline_s
        self._handles: dict[int, Any] = {}

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
        owners = [self._owner(memory.namespace, memory.id) for memory in memories]
        conflicts, nearest = await self._prepare(memories, vectors, owners)
        answers = {
            i: _refused(memories[i], owners[i], conflict) for i, conflict in enumerate(conflicts) if conflict
        }
        if answers and not partial:
            raise Conflict(next(filter(None, conflicts)), param="id")
        routed = _group([i for i in range(len(items)) if i not in answers], owners)
        replies = await asyncio.gather(
            *(
                self._call(
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
        )
        for places, written in zip(routed.values(), replies, strict=True):
            answers.update(zip(places, written, strict=True))
        return [answers[i] for i in range(len(items))]

    async def _prepare(
        self, memories: Sequence[Memory], vectors: Vectors, owners: Sequence[int]
    ) -> tuple[Sequence[str | None], Sequence[float]]:
        """Each item's conflict, if any, and its highest cosine outside the shard that owns it."""
        namespaces = [memory.namespace for memory in memories]
        own = _group(range(len(memories)), owners)
        shared = ray.put(vectors)
        replies = await asyncio.gather(
            *(
                self._call(number, "prepare", [memories[i] for i in own.get(number, [])], namespaces, shared)
                for number in self._numbers
            )
        )
        conflicts: list[str | None] = [None] * len(memories)
        nearest = nearest_earlier(namespaces, vectors)
        for number, (found, cosines) in zip(self._numbers, replies, strict=True):
            for i, conflict in zip(own.get(number, []), found, strict=True):
                conflicts[i] = conflict
            for i, cosine in enumerate(cosines):
                if owners[i] != number:
                    nearest[i] = max(nearest[i], cosine)
        return conflicts, nearest

    async def get(self, namespace: str, id: str) -> Json | None:
        found: Json | None = await self._call(self._owner(namespace, id), "get", namespace, id)
        return found

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
        rerank: rank.Rerank | None = None,
    ) -> tuple[Page, list[Json]]:
        """`search` with the trace's stages. Shards give candidates; they are ranked once, here."""
        found = await self._all(
            "candidates",
            namespace,
            vector,
            rank.reach(k, offset),
            query=query,
            retrieval=retrieval,
            kinds=None if kinds is None else [*kinds],
            where=where,
        )
        hits = [hit for reply in found for hit in reply["hits"]]
        results, stages = await asyncio.to_thread(
            rank.ranked, retrieval, query, hits, k, now=now, offset=offset, rerank=rerank
        )
        return results, [*rank.channel_stages(hits, [reply["ms"] for reply in found]), *stages]

    async def touch(self, namespace: str, ids: Sequence[str], *, op_id: str, now: float) -> Json:
        """See `Shard.touch`."""
        replies = await self._routed("touch", namespace, [(id, id) for id in ids], op_id=op_id, now=now)
        return {name: [id for reply in replies for id in reply[name]] for name in ("touched", "unknown")}

    async def score(
        self, namespace: str, scores: Sequence[tuple[str, float]], *, op_id: str, now: float
    ) -> Json:
        """See `Shard.score`."""
        keyed = [(id, (id, divergence)) for id, divergence in scores]
        replies = await self._routed("score", namespace, keyed, op_id=op_id, now=now)
        return {
            "scored": {id: salience for reply in replies for id, salience in reply["scored"].items()},
            "unknown": [id for reply in replies for id in reply["unknown"]],
        }

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
        """Erase on every shard; the receipts as one. See `Shard.forget`."""
        options = {"ids": ids, "where": where, "everything": everything, "op_id": op_id, "now": now}
        receipts = await self._all("forget", namespace, **options)
        return {
            "namespace": namespace,
            "forgotten": [id for receipt in receipts for id in receipt["forgotten"]],
            "log_records": sum(receipt["log_records"] for receipt in receipts),
            "index_rows": sum(receipt["index_rows"] for receipt in receipts),
            "scrubbed": all(receipt["scrubbed"] for receipt in receipts),
        }

    async def statistics(self, namespace: str) -> list[pa.Table]:
        """One table a shard, so that replay can draw a shard by its mass first."""
        tables: list[pa.Table] = await self._all("statistics", namespace)
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
            for name in ("memories", "gate_attempts", "gate_accepts")
        }
        return {**totals, "namespaces": namespaces, "shards": shards}

    async def verify(self) -> list[int | None]:
        """Each shard's first broken record, or None."""
        broken: list[int | None] = await self._all("verify")
        return broken

    async def list(
        self, namespace: str, *, after: str | None = None, limit: int = 100, **options: Any
    ) -> Json:
        """A page in order of (time, id): `{memories, next}`; `next` is the cursor of the page behind it,
        or None. Options as `Shard.list`: kind, conversation, where."""
        if limit < 1:
            raise InvalidInput(f"limit = {limit}: must be at least 1", param="limit")
        pages = await self._all("list", namespace, after=after, limit=limit + 1, **options)
        found = [*merge(*pages, key=lambda memory: (memory["time"], memory["id"]))]
        page = found[:limit]
        return {"memories": page, "next": cursor_of(page[-1]) if len(found) > limit else None}

    def _owner(self, namespace: str, id: str) -> int:
        """Rendezvous hashing: with a shard more or less, only that shard's share of the ids moves."""
        return max(
            self._numbers,
            key=lambda number: blake2b(f"{number}/{namespace}/{id}".encode(), digest_size=8).digest(),
        )

    async def _routed(
        self, method: str, namespace: str, keyed: Sequence[tuple[str, Any]], **options: Any
    ) -> Any:
        """Send each `(id, value)`'s value to the shard that owns the id."""
        owners = [self._owner(namespace, id) for id, _ in keyed]
        routed = _group(range(len(keyed)), owners)
        return await asyncio.gather(
            *(
                self._call(owner, method, namespace, [keyed[i][1] for i in places], **options)
                for owner, places in routed.items()
            )
        )

    async def _all(self, method: str, *args: Any, **options: Any) -> Any:
        return await asyncio.gather(
            *(self._call(number, method, *args, **options) for number in self._numbers)
        )

    async def _call(self, number: int, method: str, *args: Any, **options: Any) -> Any:
        """Call a shard until it answers or the deadline passes."""
        deadline = time.monotonic() + self._deadline_s
        pause, problem = FIRST_PAUSE_S, "no answer"
        while (left := deadline - time.monotonic()) > 0:
            try:
                reply = getattr(self._handle(number), method).remote(*args, **options)
                return await asyncio.wait_for(reply, left)
            except RayTaskError as error:
                raise cause_of(error) from None
            except PendingCallsLimitExceeded:
                raise Overloaded(f"{actor_name(number)} has {MAX_PENDING_CALLS} calls waiting") from None
            except RayActorError as error:  # restarting, or a new actor of this name has to be found
                if error.actor_init_failed:
                    raise NotReady(f"{actor_name(number)} cannot start: {error}") from error
                problem = str(error).strip().splitlines()[0]
                self._handles.pop(number, None)
            except TimeoutError:
                break
            await asyncio.sleep(min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(2 * pause, LONGEST_PAUSE_S)
        raise NotReady(
            f"{actor_name(number)}.{method}: {problem} within {self._deadline_s:g} s; send it again"
        )

    def _handle(self, number: int) -> Any:
        if number not in self._handles:
            try:
                self._handles[number] = ray.get_actor(actor_name(number), namespace=RAY_NAMESPACE)
            except ValueError:
                raise NotReady(f"{actor_name(number)} is not running; start the store first") from None
        return self._handles[number]


def _group(places: Iterable[int], owners: Sequence[int]) -> dict[int, list[int]]:
    """Places of each owner's items."""
    grouped: dict[int, list[int]] = {}
    for i in places:
        grouped.setdefault(owners[i], []).append(i)
    return grouped


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
