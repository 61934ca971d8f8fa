"""Every route, as `docs/api.md` describes them. A route checks, asks one of the parts below, and shapes the answer.

memory in        embed -> shards -> have the KV blocks encoded
chat             recall (embed, search) -> engine -> OpenAI's shape
score            engine
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import ray.exceptions
from fastapi import FastAPI, Query
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from ray import serve as ray_serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from actors.shards import ShardedStore
from common.config import Config
from common.errors import InvalidInput, NotFound, NotReady, Overloaded, SharpwaveError
from models.adapters import BASE, AdapterStore
from models.messages import check_messages
from serve import chain_routes, memory_routes, store_routes, transfer_routes
from serve import openai_shapes as shapes
from serve.access import ALL, Access, Principal
from serve.http import BodyLimit, install_error_handlers, unwrap
from serve.parts import Asking, Namespace, Parts, fresh_op, no_memory
from serve.recall import Recall, Recalled
from serve.schema import ChatBody, ForgetBody, ScoreBody, SearchBody, WriteBody
from serve.telemetry import Telemetry
from stores.memory import Memory, parse_memory

app = FastAPI(title="Sharpwave", description="A memory for language models that ends in the weights.")
app.add_middleware(BodyLimit)
install_error_handlers(app)

# Before the class, whose `/v1/memories/{id}` would take their paths; and helpers, too, stand above it: the ingress
# decorator captures this module as it is at that moment.
for router in (memory_routes.router, transfer_routes.router, store_routes.router, chain_routes.router):
    app.include_router(router)

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
        self._engine = engine
        self._store = ShardedStore(config)
        self._adapters = AdapterStore(config.store_dir / "adapters")
        self._telemetry = Telemetry()
        self._recall = Recall(
            self._store,
            embedder,
            self._telemetry,
            config.serve.recall_deadline_s,
            reranks=config.recall.reranker is not None,
            histories=config.recall.encoder == "kv_exact",
        )
        self._parts = Parts(
            config=config, store=self._store, engine=engine, embedder=embedder, adapters=self._adapters
        )
        self._in_flight = 0
        self._background: set[asyncio.Task] = set()
        app.state.access = Access(config.serve.api_keys)
        app.state.max_body_bytes = config.serve.max_body_bytes
        app.state.max_import_bytes = config.serve.max_import_bytes
        app.state.parts = self._parts

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

    # Language model

    @app.post("/v1/chat/completions")
    async def chat(self, body: ChatBody, asking: Asking) -> Response:
        return await self._answer(body, asking, counted=True)

    async def _answer(self, body: ChatBody, asking: Principal, *, counted: bool) -> Response:
        asking.check(body.memory.namespace)
        body.messages = check_messages(body.messages)
        adapter = self._adapter(body.model, asking)
        mode = body.memory.mode or self._config.recall.mode
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._admitted())
            recalled = await self._recall.for_chat(body, mode, self._config.recall.k)
            pieces = self._generate(body, mode, adapter, recalled)
            first = await anext(pieces)  # so that an early failure still has its own status code
            reply = shapes.Reply(body, mode, recalled)
            if body.stream:
                held = stack.pop_all()  # the stream ends after this function does
                return StreamingResponse(
                    self._stream(reply, first, pieces, held), media_type="text/event-stream"
                )
            async with contextlib.aclosing(pieces):
                *told, turn = [first, *[piece async for piece in pieces]]
        self._after(body.memory.namespace, turn, counted=counted)
        return JSONResponse(reply.completion("".join(piece["text"] for piece in told), turn))

    @app.post("/v1/score")
    async def score(self, body: ScoreBody, asking: Asking) -> dict[str, Any]:
        adapter = self._adapter(body.model, asking)
        messages = check_messages(body.messages)
        async with self._admitted():
            scores = await self._engine.score.remote(messages, adapter)
        return {"scores": scores, **({"warnings": body.warnings()} if body.warnings() else {})}

    @app.get("/v1/models")
    async def models(self, asking: Asking) -> dict[str, Any]:
        return {"object": "list", "data": [shapes.model_entry(name) for name in self._names(asking)]}

    # Operation

    @app.get("/health")
    async def health(self) -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready(self) -> dict[str, Any]:
        try:
            async with asyncio.timeout(min(30.0, self._config.serve.deadline_s)):
                engine, store = await asyncio.gather(self._engine.status.remote(), self._store.counts())
        except (TimeoutError, SharpwaveError, ray.exceptions.RayError, RayServeException) as error:
            raise NotReady(f"not ready: {unwrap(error)}") from error
        # No key is asked for here, so no tenant is named here.
        shards = [{k: v for k, v in shard.items() if k != "namespaces"} for shard in store["shards"]]
        shown = {**{k: v for k, v in store.items() if k != "namespaces"}, "shards": shards}
        return {"status": "ready", "engine": engine, "store": shown, "telemetry": self._telemetry.of(store)}

    @app.get("/metrics")
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
        response = await self._answer(body, Principal(frozenset([ALL])), counted=False)
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
        receipt["kv_blocks"] = await self._engine.forget.remote(
            namespace, sorted({*forgotten, *(ids or ())}), erasure
        )
        receipt["adapters"] = self._adapters.holding(namespace, set(forgotten))
        return receipt

    async def _generate(
        self, body: ChatBody, mode: str, adapter: str, recalled: Recalled
    ) -> AsyncGenerator[dict[str, Any]]:
        request = {
            "messages": body.messages,
            "memories": recalled.for_engine,
            "namespace": body.memory.namespace,
            "mode": mode,
            "adapter": adapter,
            "sampling": {
                "max_tokens": body.max_completion_tokens
                or body.max_tokens
                or self._config.serve.max_new_tokens,
                "temperature": body.temperature,
                "top_p": body.top_p,
                "seed": body.seed,
                "stop": body.stops,
            },
        }
        pieces = self._engine.options(stream=True).generate.remote(request)
        try:
            async for piece in pieces:
                yield piece
        finally:
            pieces.cancel()

    async def _stream(
        self,
        reply: shapes.Reply,
        first: dict[str, Any],
        pieces: AsyncGenerator[dict[str, Any]],
        held: contextlib.AsyncExitStack,
    ) -> AsyncIterator[str]:
        async with held, contextlib.aclosing(pieces):
            try:
                yield reply.opening()
                yield self._event(reply, first)
                async for piece in pieces:
                    yield self._event(reply, piece)
            except Exception as error:  # the status line is gone: the stream itself has to say what failed
                yield f"data: {json.dumps(unwrap(error).to_dict())}\n\n"
            yield "data: [DONE]\n\n"

    def _event(self, reply: shapes.Reply, piece: dict[str, Any]) -> str:
        if "text" in piece:
            return reply.delta(piece["text"])
        self._after(reply.body.memory.namespace, piece)
        return reply.closing(piece)

    def _after(self, namespace: str, turn: dict[str, Any], *, counted: bool = True) -> None:
        """Count what was used: the memories that were put before the question."""
        self._telemetry.answered(turn)
        if turn["injected"] and counted:
            self._spawn(self._store.touch(namespace, turn["injected"], op_id=fresh_op(), now=time.time()))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._telemetry.background_failed(task.exception())

    @contextlib.asynccontextmanager
    async def _admitted(self) -> AsyncIterator[None]:
        if self._in_flight >= self._config.serve.max_queued:
            raise Overloaded(f"{self._in_flight} requests are in flight, the limit; retry after 1 s")
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    def _adapter(self, name: str, asking: Principal) -> str:
        """The version's digest; a version of a namespace that the key may not use does not exist for it."""
        digest = self._adapters.resolve(name, self._config.model.name)
        if digest is None or not self._visible(digest, asking):
            known = ", ".join(self._names(asking))
            raise NotFound(
                f"model {name!r} does not exist; known: {known}", param="model", code="model_not_found"
            )
        return digest

    def _visible(self, digest: str, asking: Principal) -> bool:
        return digest == BASE or asking.may(self._adapters.manifest(digest)["namespace"])

    def _names(self, asking: Principal) -> list[str]:
        return [
            name
            for name, digest in self._adapters.names(self._config.model.name).items()
            if self._visible(digest, asking)
        ]
