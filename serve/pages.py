"""All memories of a namespace, read from the store a page at a time."""

from collections.abc import Container
from typing import Any

from actors.store.sharded_store import ShardedStore
from stores.memory.period import Period, holds

PAGE = 1000  # memories


async def all_memories(
    store: ShardedStore,
    namespace: str,
    *,
    kinds: Container[str] | None = None,
    where: dict[str, Any] | None = None,
    period: Period | None = None,
) -> list[dict[str, Any]]:
    """Every memory of a namespace in order of time, or those of `kinds` that the filter `where` matches; of facts,
    those that hold at some time of `period` (None: all), and then none that lost what it was derived from."""
    found: list[dict[str, Any]] = []
    cursor = None
    while True:
        page = await store.memories.list(namespace, limit=PAGE, after=cursor, where=where)
        found += [
            memory
            for memory in page["memories"]
            if (kinds is None or memory["kind"] in kinds)
            and (period is None or (holds(memory, period) and not memory.get("unsupported")))
        ]
        cursor = page["next"]
        if cursor is None:
            return found
