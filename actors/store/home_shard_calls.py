"""The calls that go to one shard of a namespace: versions, lines, turns, and memories on the move."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from actors.store.router import Route, Router, together
from common.errors import NotFound
from stores.index.vectors import Vectors
from stores.memory.memory import Memory
from stores.writes.versions import Candidate, Weigh

Json = dict[str, Any]
Page = list[Json]

Names = list[int]

EXPORT_PAGE = 500  # memories


class HomeCalls:
    """The part of `ShardedStore` that needs no merging. Every method is that of `Shard` with its name."""

    _router: Router

    # Versions of a memory, wherever it lives

    async def supersede(
        self, memory: Memory, vector: Vectors, *, generation: int, op_id: str, now: float
    ) -> Json:
        options = {"generation": generation, "op_id": op_id, "now": now}
        found: Json = await self._found(memory.namespace, memory.id, "supersede", memory, vector, **options)
        return found

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
        """A key that is new (`generation` 0) is written where its kind belongs. `weigh` must pickle."""
        options = {"generation": generation, "op_id": op_id, "now": now, "weigh": weigh}

        async def run(route: Route) -> Json:
            number = route.placement.owner(namespace, key, candidates[0].memory.kind)
            for lookup in route.placement.lookups(namespace, key):
                if await route.call(lookup, "get", namespace, key) is not None:
                    number = lookup
            found: Json = await route.call(number, "race", namespace, key, candidates, **options)
            return found

        return await self._router.run(run)

    async def history(self, namespace: str, id: str) -> Page | None:
        async def read(route: Route) -> Page | None:
            for number in route.placement.lookups(namespace, id):
                found: Page | None = await route.call(number, "history", namespace, id)
                if found is not None:
                    return found
            return None

        return await self._router.run(read)

    # Lines, on the home shard

    async def put_line(self, namespace: str, key: str, value: str, vector: Vectors, **options: Any) -> Json:
        """`options`: context, prev_anchor, time, op_id, now."""
        found: Json = await self._home(namespace, "put_line", namespace, key, value, vector, **options)
        return found

    async def race_line(
        self, namespace: str, key: str, candidates: Sequence[Candidate], **options: Any
    ) -> Json:
        """`options`: generation, cue, op_id, now."""
        found: Json = await self._home(namespace, "race_line", namespace, key, candidates, **options)
        return found

    async def line(self, namespace: str, key: str) -> Json | None:
        found: Json | None = await self._home(namespace, "line", namespace, key)
        return found

    async def query_lines(self, namespace: str, vector: Vectors, k: int, *, now: float) -> Page:
        found: Page = await self._home(namespace, "query_lines", namespace, vector, k, now=now)
        return found

    async def bias_vector(self, namespace: str, vector: Vectors, k: int, *, now: float) -> Vectors:
        found: Vectors = await self._home(namespace, "bias_vector", namespace, vector, k, now=now)
        return found

    # Turns, on the shard that the conversation picks

    async def push(
        self,
        namespace: str,
        conversation: str,
        turns: Sequence[Mapping[str, Any]],
        *,
        op_id: str,
        now: float,
    ) -> Json:
        options = {"op_id": op_id, "now": now}
        found: Json = await self._picked(namespace, conversation, "push", [*turns], **options)
        return found

    async def pop(self, namespace: str, conversation: str, *, op_id: str, now: float) -> Json:
        found: Json = await self._picked(namespace, conversation, "pop", op_id=op_id, now=now)
        return found

    async def rewind(self, namespace: str, conversation: str, n: int, *, op_id: str, now: float) -> Json:
        found: Json = await self._picked(namespace, conversation, "rewind", n, op_id=op_id, now=now)
        return found

    async def peek(self, namespace: str, conversation: str, n: int = 1) -> Page:
        found: Page = await self._picked(namespace, conversation, "peek", n)
        return found

    # Memories on the move, with everything that is known of them; see `transfer.py`

    async def export_rows(self, namespace: str, *, conversation: str | None = None) -> AsyncIterator[Json]:
        """Each memory of the namespace as `take` takes it, in order of (time, id)."""
        cursor = None
        while True:
            page = await self._page(namespace, conversation, cursor)
            for row in page["rows"]:
                yield row
            if (cursor := page["next"]) is None:
                return

    async def _page(self, namespace: str, conversation: str | None, cursor: str | None) -> Json:
        options = {"conversation": conversation, "limit": EXPORT_PAGE, "after": cursor}
        found = await self.list(namespace, **options)
        keys = [(namespace, memory["id"]) for memory in found["memories"]]

        async def read(route: Route) -> Page:
            parts = await route.ask(route.placement.asked([namespace]), "rows", keys)
            found = (row for part in parts for row in part)
            return [{name: value for name, value in row.items() if name != "ends"} for row in found]

        rows = await self._router.run(read) if keys else []
        return {
            "rows": sorted(rows, key=lambda row: (row["memory"]["time"], row["memory"]["id"])),
            "next": found["next"],
        }

    async def list(self, namespace: str, **options: Any) -> Json:
        raise NotImplementedError

    async def take(self, rows: Sequence[Json], *, op_id: str, now: float) -> Page:
        """Answers in the order given."""

        async def write(route: Route) -> Page:
            routed: dict[int, Names] = {}
            for i, row in enumerate(rows):
                memory = row["memory"]
                owner = route.placement.owner(memory["namespace"], memory["id"], memory["kind"])
                routed.setdefault(owner, []).append(i)
            replies = await together(
                route.call(number, "take", [rows[i] for i in places], op_id=op_id, now=now)
                for number, places in routed.items()
            )
            answers: dict[int, Json] = {}
            for places, written in zip(routed.values(), replies, strict=True):
                answers.update(zip(places, written, strict=True))
            return [answers[i] for i in range(len(rows))]

        return await self._router.run(write)

    # Which shard

    async def _home(self, namespace: str, method: str, *args: Any, **options: Any) -> Any:
        async def ask(route: Route) -> Any:
            return await route.call(route.placement.home(namespace), method, *args, **options)

        return await self._router.run(ask)

    async def _picked(
        self, namespace: str, conversation: str, method: str, *args: Any, **options: Any
    ) -> Any:
        async def ask(route: Route) -> Any:
            number = route.placement.pick(namespace, conversation)
            return await route.call(number, method, namespace, conversation, *args, **options)

        return await self._router.run(ask)

    async def _found(self, namespace: str, id: str, method: str, *args: Any, **options: Any) -> Any:
        """The call's answer from the shard that has the memory. Raises `NotFound` where none has."""

        async def ask(route: Route) -> Any:
            *others, last = route.placement.lookups(namespace, id)
            for number in others:
                try:
                    return await route.call(number, method, *args, **options)
                except NotFound:
                    continue
            return await route.call(last, method, *args, **options)

        return await self._router.run(ask)
