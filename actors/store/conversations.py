"""Turns, on the shard that the conversation picks; see `stores.shard.conversations.ShardConversations`."""

from collections.abc import Mapping, Sequence
from typing import Any

from actors.store.router import Router
from common.types import Json, Page


class StoreConversations:
    def __init__(self, router: Router) -> None:
        self._router = router

    async def push(
        self,
        namespace: str,
        conversation: str,
        turns: Sequence[Mapping[str, Any]],
        *,
        op_id: str,
        now: float,
    ) -> Json:
        return await self._call(namespace, conversation, "push", [*turns], op_id=op_id, now=now)

    async def pop(self, namespace: str, conversation: str, *, op_id: str, now: float) -> Json:
        return await self._call(namespace, conversation, "pop", op_id=op_id, now=now)

    async def rewind(self, namespace: str, conversation: str, n: int, *, op_id: str, now: float) -> Json:
        return await self._call(namespace, conversation, "rewind", n, op_id=op_id, now=now)

    async def peek(self, namespace: str, conversation: str, n: int = 1) -> Page:
        found: Page = await self._router.on_pick(namespace, conversation, "conversations.peek", n)
        return found

    async def _call(self, namespace: str, conversation: str, method: str, *args: Any, **options: Any) -> Json:
        found: Json = await self._router.on_pick(
            namespace, conversation, f"conversations.{method}", *args, **options
        )
        return found
