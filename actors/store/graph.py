"""Queries of facts and places, which are whole on the namespace's home shard; see `stores.shard.graph.Graph`."""

from collections.abc import Sequence
from typing import Any

from actors.store.router import Router
from common.types import Page


class StoreGraph:
    def __init__(self, router: Router) -> None:
        self._router = router

    async def query_facts(self, namespace: str, **pattern: Any) -> Page:
        found: Page = await self._router.on_home(namespace, "graph.query_facts", **pattern)
        return found

    async def solve_facts(
        self, namespace: str, patterns: Sequence[tuple[str, str, str]], *, at: float | None, limit: int
    ) -> Page:
        found: Page = await self._router.on_home(namespace, "graph.solve_facts", patterns, at=at, limit=limit)
        return found

    async def recall_facts(self, namespace: str, text: str, *, k: int, at: float | None) -> Page:
        found: Page = await self._router.on_home(namespace, "graph.recall_facts", text, k=k, at=at)
        return found

    async def fact_path(self, namespace: str, a: str, b: str, *, at: float | None) -> Page | None:
        found: Page | None = await self._router.on_home(namespace, "graph.fact_path", a, b, at=at)
        return found

    async def query_places(self, namespace: str, op: str, **asked: Any) -> Any:
        return await self._router.on_home(namespace, "graph.query_places", op, **asked)
