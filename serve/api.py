"""Every route, as `docs/api.md` describes them. A route checks, asks one of the parts below, and shapes the answer.

memory in        embed -> shards -> have the KV blocks encoded
chat             recall (embed, search) -> engine -> OpenAI's shape: `answers.py`

Here: memories, and how the instance is. The rest is in `*_routes.py`.
"""

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import Annotated, Any

import ray.exceptions
from fastapi import FastAPI, Query
from fastapi.responses import HTMLResponse, PlainTextResponse
from ray import serve as ray_serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from actors.store.sharded_store import ShardedStore
from common.config import Config
from common.errors import InvalidInput, NotReady, SharpwaveError
from models.weights.adapters import AdapterStore
from serve.access import ALL, Access, Principal
from serve.answers import Answers
from serve.engines import Engines
from serve.http import BodyLimit, install_error_handlers, unwrap
from serve.parts import Asking, Namespace, Parts, fresh_op, no_memory
from serve.recall import Recall
from serve.routes import adapters, language, memories, operations, stores, transfer
from serve.schemas.requests import ChatBody, ForgetBody, SearchBody, WriteBody
from serve.schemas.responses import ERRORS
from serve.telemetry import Telemetry
from stores.memory.memory import Memory, parse_memory

app = FastAPI(
    title="Sharpwave", description="A memory for language models that ends in the weights.", responses=ERRORS
)
app.add_middleware(BodyLimit)
install_error_handlers(app)

# Before the class, whose `/v1/memories/{id}` would take their paths; and helpers, too, stand above it: the ingress
# decorator captures this module as it is at that moment.
for routes in (
    memories,
    transfer,
    stores,
    operations,
    language,
    adapters,
):
    app.include_router(routes.router)

READY_S = 5.0  # who asks whether to send requests here wants to know soon
METRICS_STORE_S = 5.0  # a scrape waits no longer for the store's counts
PAGE = Path(__file__).with_name("page.html")


@ray_serve.deployment(
    max_ongoing_requests=1024,
    health_check_timeout_s=120,
    max_constructor_retry_count=1,
    ray_actor_options={"num_cpus": 0.1},
)
@ray_serve.ingress(app)
class Api:
    def __init__(self, config: Config, engine: DeploymentHandle, embedder: DeploymentHandle) -> None:
        self._config = config
        self._engines = Engines(engine, config.serve.deadline_s)
        self._store = ShardedStore(config)
        self._adapters = AdapterStore(config.store_dir / "adapters")
        self._telemetry = Telemetry()
        self._recall = Recall(self._store, embedder, self._telemetry, config)
        self._parts = Parts(
            config=config,
            store=self._store,
            engines=self._engines,
            embedder=embedder,
            adapters=self._adapters,
        )
        self._answers = Answers(self._parts, self._recall, self._telemetry)
        app.state.access = Access(config.serve.api_keys)
        app.state.max_body_bytes = config.serve.max_body_bytes
        app.state.max_import_bytes = config.serve.max_import_bytes
        app.state.parts = self._parts
        app.state.answers = self._answers

    # Memories

    @app.post("/v1/memories")
    async def write(self, body: WriteBody, asking: Asking) -> dict[str, Any]:
        asking.check(body.namespace)
        memories, refused = self._parse(body)
        vectors = await self._parts.embed([memory.text for memory in memories])
        generation = self._store.generation
        results = await self._store.put(
            list(zip(memories, vectors, strict=True)),
            op_id=fresh_op(),
            now=time.time(),
            partial=body.partial,
        )
        stored = sum(result["stored"] for result in results)
        # Not of one that the store knows under another id: nobody would ask for its blocks, or erase them.
        own = [(m.text, r) for m, r in zip(memories, results, strict=True) if r["stored"] and r["id"] == m.id]
        await self._parts.encode_soon(body.namespace, own, generation=generation)
        for i in sorted(refused):
            results.insert(i, refused[i])
        return {"memories": results, "written": len(results), "stored": stored}

    @app.get("/v1/memories")
    async def list_memories(
        self,
        asking: Asking,
        namespace: Namespace = "default",
        kind: str | None = None,
        conversation: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 50,
        cursor: str | None = None,
    ) -> dict[str, Any]:
        asking.check(namespace)
        return await self._store.list(
            namespace, kind=kind, conversation=conversation, limit=limit, after=cursor
        )

    @app.post("/v1/memories/search")
    async def search(self, body: SearchBody, asking: Asking) -> dict[str, Any]:
        asking.check(body.namespace)
        if body.complete:
            return await self._complete(body)
        results, trace = await self._recall.search(
            body.namespace,
            body.query,
            body.k,
            kinds=body.kinds,
            where=body.filter,
            retrieval=body.retrieval,
            offset=body.offset,
        )
        return {"results": results, **({"trace": trace} if body.trace else {})}

    async def _complete(self, body: SearchBody) -> dict[str, Any]:
        """Recall from a partial cue: the memory it is completed to, then those nearest to it."""
        started, first = time.perf_counter(), body.offset or 0
        vector = await self._parts.embed_one(body.query)
        embedded = time.perf_counter()
        found = await self._store.complete(
            body.namespace, vector, first + body.k, kinds=body.kinds, where=body.filter
        )
        stages = [
            {"stage": "embed", "ms": 1e3 * (embedded - started)},
            {"stage": "complete", "ms": 1e3 * (time.perf_counter() - embedded), "candidates": len(found)},
        ]
        trace = {"trace": {"retrieval": "complete", "stages": stages}} if body.trace else {}
        return {"results": found[first:], **trace}

    @app.post("/v1/memories/forget")
    async def forget(self, body: ForgetBody, asking: Asking) -> dict[str, Any]:
        asking.check(body.namespace)
        if sum((body.ids is not None, body.filter is not None, body.all)) != 1:
            raise InvalidInput("give exactly one of ids, filter, all", param="ids")
        return await self._forget(body.namespace, ids=body.ids, where=body.filter, everything=body.all)

    @app.get("/v1/memories/{memory_id}")
    async def get(self, memory_id: str, asking: Asking, namespace: Namespace = "default") -> dict[str, Any]:
        asking.check(namespace)
        return await self._parts.get(namespace, memory_id)

    @app.delete("/v1/memories/{memory_id}")
    async def delete(
        self, memory_id: str, asking: Asking, namespace: Namespace = "default"
    ) -> dict[str, Any]:
        asking.check(namespace)
        receipt = await self._forget(namespace, ids=[memory_id], where=None, everything=False)
        if not receipt["forgotten"] and not receipt["kv_blocks"]:
            raise no_memory(memory_id, namespace)
        return receipt

    # Operation

    @app.get("/health")
    async def health(self) -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready(self) -> dict[str, Any]:
        try:
            async with asyncio.timeout(READY_S):
                engine, store = await asyncio.gather(self._engines.status(), self._store.counts())
        except (TimeoutError, SharpwaveError, ray.exceptions.RayError, RayServeException) as error:
            raise NotReady(f"not ready: {unwrap(error)}") from error
        # No key is asked for here, so no tenant is named here.
        shards = [{k: v for k, v in shard.items() if k != "namespaces"} for shard in store["shards"]]
        shown = {**{k: v for k, v in store.items() if k != "namespaces"}, "shards": shards}
        return {"status": "ready", "engine": engine, "store": shown, "telemetry": self._telemetry.of(store)}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics(self) -> PlainTextResponse:
        store = None
        with contextlib.suppress(
            TimeoutError, SharpwaveError, ray.exceptions.RayError
        ):  # then without its part
            async with asyncio.timeout(METRICS_STORE_S):
                store = await self._store.counts()
        return PlainTextResponse(self._telemetry.prometheus(store), media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def page(self) -> HTMLResponse:
        return HTMLResponse(PAGE.read_text())

    # Called by jobs, through a deployment handle

    async def running_config(self) -> Config:
        """The configuration this instance runs with: what a job on the same cluster starts from."""
        return self._config

    async def ask(self, body: ChatBody) -> dict[str, Any]:
        """A chat request from an examination: no API key guards it, and it does not count as use of the memories."""
        response = await self._answers.answer(body, Principal(frozenset([ALL])), counted=False)
        return json.loads(bytes(response.body))

    async def encode_namespace(self, namespace: str) -> int:
        """Queue the KV blocks of all memories for the versions that aliases name now; returns how many memories."""
        generation = self._store.generation
        memories = await self._recall.everything(namespace)
        await self._parts.encode_soon(namespace, [(m["text"], m) for m in memories], generation=generation)
        return len(memories)

    # Parts

    def _parse(self, body: WriteBody) -> tuple[list[Memory], dict[int, dict[str, Any]]]:
        """Memories and, where the call is partial, the refused items by index. Else the first bad item raises."""
        memories, refused, started = [], {}, time.time()
        limit = self._config.store.max_text_bytes
        for i, item in enumerate(body.memories):
            try:
                # A microsecond apart, so that memories without a time keep the order they came in.
                now = started + i * 1e-6
                memories.append(parse_memory(item, namespace=body.namespace, now=now, max_text_bytes=limit))
            except SharpwaveError as error:
                if not body.partial:
                    error.message = f"memories[{i}]: {error.message}"
                    error.param = f"memories[{i}].{error.param}" if error.param else f"memories[{i}]"
                    raise
                refused[i] = {"id": item.get("id"), "kind": item.get("kind"), "stored": False,
                              "status": "refused", "gate": {"score": None, "reason": error.message}}  # fmt: skip
        return memories, refused

    async def _forget(
        self, namespace: str, *, ids: list[str] | None, where: dict | None, everything: bool
    ) -> dict[str, Any]:
        receipt = await self._store.forget(
            namespace, ids=ids, where=where, everything=everything, op_id=fresh_op(), now=time.time()
        )
        forgotten = receipt["forgotten"]
        erasure = {"generation": receipt.pop("generation"), "heads": dict(receipt.pop("heads"))}
        # Also ids the store no longer knows: a call that was cut off here is completed by sending it again.
        receipt["kv_blocks"] = await self._engines.forget(
            namespace, sorted({*forgotten, *(ids or ())}), erasure
        )
        receipt["adapters"] = self._adapters.holding(namespace, set(forgotten))
        return receipt
