"""Keyed memories, on the namespace's home shard; see `stores.shard.keyed.Keyed` for each call."""

from collections.abc import Sequence
from typing import Any

from actors.store.router import Router
from common.types import Json, Page
from stores.index.vectors import Vectors
from stores.writes.versions import Candidate


class StoreKeyed:
    def __init__(self, router: Router) -> None:
        self._router = router

    async def put(self, namespace: str, key: str, value: str, vector: Vectors, **options: Any) -> Json:
        """`options`: context, prev_anchor, time, op_id, now."""
        found: Json = await self._router.on_home(namespace, "keyed.put", key, value, vector, **options)
        return found

    async def race(self, namespace: str, key: str, candidates: Sequence[Candidate], **options: Any) -> Json:
        """`options`: generation, cue, op_id, now."""
        found: Json = await self._router.on_home(namespace, "keyed.race", key, candidates, **options)
        return found

    async def get(self, namespace: str, key: str) -> Json | None:
        found: Json | None = await self._router.on_home(namespace, "keyed.get", key)
        return found

    async def query(self, namespace: str, vector: Vectors, k: int, *, now: float) -> Page:
        found: Page = await self._router.on_home(namespace, "keyed.query", vector, k, now=now)
        return found

    async def bias_vector(self, namespace: str, vector: Vectors, k: int, *, now: float) -> Vectors:
        found: Vectors = await self._router.on_home(namespace, "keyed.bias_vector", vector, k, now=now)
        return found
