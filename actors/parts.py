"""The half of `ShardedStore` that goes to one shard: versions, facts, places, lines, turns; and what concerns all
shards' files. Each method asks the shard where the thing lives, and answers as `Shard` does."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from actors.route import Route, Router, together
from actors.shard import Json, Page
from common.errors import NotFound
from stores import seal
from stores.index import Vectors
from stores.memory import Memory
from stores.probe import Canaries, probe_folder
from stores.revise import Candidate

Pages = list[Any]


class Parts:
    """`ShardedStore` sets the router."""

    _router: Router

    # Versions

    async def supersede(
        self, memory: Memory, vector: Vectors, *, generation: int, op_id: str, now: float
    ) -> Json:
        """See `Shard.supersede`."""

        async def write(route: Route) -> Json:
            missing: NotFound | None = None
            for number in route.placement.lookups(memory.namespace, memory.id):
                try:
                    return await route.call(
                        number, "supersede", memory, vector, generation=generation, op_id=op_id, now=now
                    )
                except NotFound as error:
                    missing = error
            assert missing is not None, "every id is looked up somewhere"
            raise missing

        return await self._router.run(write)

    async def history(self, namespace: str, id: str) -> Page | None:
        """See `Shard.history`."""

        async def read(route: Route) -> Page | None:
            found: Page | None = None
            for number in route.placement.lookups(namespace, id):
                found = found or await route.call(number, "history", namespace, id)
            return found

        return await self._router.run(read)

    # Episodes

    async def complete(
        self,
        namespace: str,
        vector: Vectors,
        k: int,
        *,
        kinds: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> Page:
        """See `Shard.complete`: of the shards' completions the best, then by cosine."""
        found = await self._spread(namespace, "complete", vector, k, kinds=kinds, where=where)
        hits = [hit for page in found for hit in page]
        first = max(hits, key=lambda hit: hit["scores"]["completed"], default=None)
        hits.sort(key=lambda hit: (hit is not first, -hit["score"], hit["memory"]["id"]))
        return hits[:k]

    async def weakest(self, namespace: str, n: int, *, now: float) -> Page:
        """See `Shard.weakest`."""
        found = await self._spread(namespace, "weakest", n, now=now)
        weak = [each for page in found for each in page]
        return sorted(weak, key=lambda each: (each["strength"], each["memory"]["id"]))[:n]

    # Facts and places: the whole graph is on the namespace's home

    async def query_facts(self, namespace: str, **pattern: Any) -> Page:
        """See `Shard.query_facts`."""
        return await self._home(namespace, "query_facts", **pattern)

    async def recall_facts(self, namespace: str, text: str, *, k: int, at: float | None) -> Page:
        """See `Shard.recall_facts`."""
        return await self._home(namespace, "recall_facts", text, k=k, at=at)

    async def fact_path(self, namespace: str, a: str, b: str, *, at: float | None) -> Page | None:
        """See `Shard.fact_path`."""
        return await self._home(namespace, "fact_path", a, b, at=at)

    async def query_places(self, namespace: str, op: str, **asked: Any) -> Any:
        """See `Shard.query_places`."""
        return await self._home(namespace, "query_places", op, **asked)

    # Lines: on the home too, since a key must be one line

    async def put_line(
        self,
        namespace: str,
        key: str,
        value: str,
        vector: Vectors,
        *,
        context: Mapping[str, Any] | None = None,
        prev_anchor: str | None = None,
        op_id: str,
        now: float,
        time: Any = None,
    ) -> Json:
        """See `Shard.put_line`."""
        given = {"context": context, "prev_anchor": prev_anchor, "time": time, "op_id": op_id, "now": now}
        return await self._home(namespace, "put_line", key, value, vector, **given)

    async def race_line(
        self,
        namespace: str,
        key: str,
        candidates: Sequence[Candidate],
        *,
        generation: int,
        op_id: str,
        now: float,
        cue: Vectors | None = None,
    ) -> Json:
        """See `Shard.race_line`."""
        given = {"generation": generation, "cue": cue, "op_id": op_id, "now": now}
        return await self._home(namespace, "race_line", key, [*candidates], **given)

    async def line(self, namespace: str, key: str) -> Json | None:
        """See `Shard.line`."""
        return await self._home(namespace, "line", key)

    async def query_lines(self, namespace: str, vector: Vectors, k: int, *, now: float) -> Page:
        """See `Shard.query_lines`."""
        return await self._home(namespace, "query_lines", vector, k, now=now)

    async def bias_vector(self, namespace: str, vector: Vectors, k: int, *, now: float) -> Vectors:
        """See `Shard.bias_vector`."""
        return await self._home(namespace, "bias_vector", vector, k, now=now)

    # Turns: on the shard that the conversation picks

    async def push(
        self,
        namespace: str,
        conversation: str,
        turns: Sequence[Mapping[str, Any]],
        *,
        op_id: str,
        now: float,
    ) -> Json:
        """See `Shard.push`."""
        return await self._picked(namespace, conversation, "push", [*turns], op_id=op_id, now=now)

    async def pop(self, namespace: str, conversation: str, *, op_id: str, now: float) -> Json:
        """See `Shard.pop`."""
        return await self._picked(namespace, conversation, "pop", op_id=op_id, now=now)

    async def rewind(self, namespace: str, conversation: str, n: int, *, op_id: str, now: float) -> Json:
        """See `Shard.rewind`."""
        return await self._picked(namespace, conversation, "rewind", n, op_id=op_id, now=now)

    async def peek(self, namespace: str, conversation: str, n: int = 1) -> Page:
        """See `Shard.peek`."""
        return await self._picked(namespace, conversation, "peek", n)

    # Whole memories in and out

    async def export_page(self, namespace: str, after: str | None, limit: int) -> tuple[Page, str | None]:
        """See `Shard.export_page`; the cursor says the shard, too."""
        number, _, inner = (after or "0/").partition("/")

        async def read(route: Route) -> tuple[Page, str | None]:
            shards = route.placement.asked([namespace])
            place = int(number)
            rows, cursor = await route.call(shards[place], "export_page", namespace, inner or None, limit)
            if cursor is not None:
                return rows, f"{place}/{cursor}"
            return rows, f"{place + 1}/" if place + 1 < len(shards) else None

        return await self._router.run(read)

    async def take(self, rows: Sequence[Json], *, op_id: str, now: float) -> Page:
        """See `Shard.take`; answers in the order given."""

        async def write(route: Route) -> Page:
            places: dict[int, list[int]] = {}
            for i, row in enumerate(rows):
                memory = row["memory"]
                owner = route.placement.owner(memory["namespace"], memory["id"], memory["kind"])
                places.setdefault(owner, []).append(i)
            replies = await together(
                route.call(owner, "take", [rows[i] for i in mine], op_id=op_id, now=now)
                for owner, mine in places.items()
            )
            answers = {
                i: answer
                for mine, reply in zip(places.values(), replies, strict=True)
                for i, answer in zip(mine, reply, strict=True)
            }
            return [answers[i] for i in range(len(rows))]

        return await self._router.run(write)

    # Files

    async def seal(self, *, now: float) -> Json:
        """Write `seal.json` beside the shards; see `seal.seal`."""

        async def ask(route: Route) -> Json:
            finals = await route.ask(route.placement.numbers, "final")
            return await asyncio.to_thread(seal.seal, route.folder, finals, now=now)

        return await self._router.run(ask)

    async def verify(self) -> Pages:
        """Each shard's first broken record, or None, the last seal counted; see `Shard.verify`."""

        async def ask(route: Route) -> Pages:
            sealed = await asyncio.to_thread(seal.read_seal, route.folder)
            by_number = {shard["shard"]: shard for shard in sealed["shards"]} if sealed else {}
            numbers = route.placement.numbers
            return await together(route.call(number, "verify", by_number.get(number)) for number in numbers)

        return await self._router.run(ask)

    async def probe(self, canaries: Canaries) -> Pages:
        """Where this is still to be found: the files of the store, then what each shard holds, `{shard, ...}`;
        see `probe.py`."""
        folder = self._router.config.store_dir
        files = await asyncio.to_thread(probe_folder, folder, canaries)
        held = await self._each("probe", canaries)
        return [
            *({"shard": None, **row} for row in files),
            *({"shard": number, **row} for number, rows in enumerate(held) for row in rows),
        ]

    async def snapshot(self) -> Pages:
        """The folder of each shard's new snapshot, or None; see `Shard.snapshot`."""
        return [folder and str(folder) for folder in await self._each("snapshot")]

    async def _home(self, namespace: str, method: str, *args: Any, **options: Any) -> Any:
        async def ask(route: Route) -> Any:
            number = route.placement.home(namespace)
            return await route.call(number, method, namespace, *args, **options)

        return await self._router.run(ask)

    async def _spread(self, namespace: str, method: str, *args: Any, **options: Any) -> Pages:
        """The same of each of the namespace's shards."""

        async def ask(route: Route) -> Pages:
            return await route.ask(route.placement.asked([namespace]), method, namespace, *args, **options)

        return await self._router.run(ask)

    async def _picked(
        self, namespace: str, conversation: str, method: str, *args: Any, **options: Any
    ) -> Any:
        async def ask(route: Route) -> Any:
            number = route.placement.pick(namespace, conversation)
            return await route.call(number, method, namespace, conversation, *args, **options)

        return await self._router.run(ask)

    async def _each(self, method: str, *args: Any) -> Pages:
        async def ask(route: Route) -> Pages:
            return await route.ask(route.placement.numbers, method, *args)

        return await self._router.run(ask)
