"""The HTTP application of one replica: its routers, the parts they use, health, readiness and metrics.

A route checks the request and its API key, calls one of the parts (`parts.py`), and shapes the answer; `docs/api.md`
describes every route.

write      embed -> shards -> queue the encoding of KV blocks       routes/memories.py
chat       recall (embed, search) -> engine -> OpenAI's format      answers.py
"""

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import ray.exceptions
from fastapi import Depends, FastAPI
from fastapi.responses import HTMLResponse, PlainTextResponse
from ray import serve as ray_serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from actors.store.sharded_store import ShardedStore
from common.config import Config
from common.errors import NotReady, SharpwaveError
from common.names import ALL
from models.weights.adapters import AdapterStore
from serve.access import Access, Principal
from serve.access_log import keep_off_stderr
from serve.answers import Answers
from serve.engines import Engines
from serve.http import BodyLimit, EncodedSlashes, install_cors, install_error_handlers, unwrap
from serve.pages import all_memories
from serve.parts import Parts
from serve.queries import only_known
from serve.recall import Recall
from serve.routes import (
    adapters,
    language,
    mem0,
    memories,
    offline_docs,
    openai_responses,
    operations,
    stores,
    transfer,
)
from serve.schemas.requests import ChatBody
from serve.schemas.responses import ERRORS
from serve.telemetry import CountRequests, Telemetry
from stores.memory.period import dated

app = FastAPI(
    title="Sharpwave",
    description="A memory for language models that ends in the weights.",
    responses=ERRORS,
    dependencies=[Depends(only_known)],
    docs_url=None,  # `offline_docs.py`
    redoc_url=None,
)
app.add_middleware(BodyLimit)
app.add_middleware(EncodedSlashes)
app.add_middleware(CountRequests)
install_error_handlers(app)

# Above the class, as is everything else it uses: the ingress decorator captures this module as it is at that moment.
for routes in (
    offline_docs,
    mem0,
    transfer,
    memories,
    stores,
    operations,
    language,
    openai_responses,
    adapters,
):
    app.include_router(routes.router)

READY_S = 5.0  # a load balancer that asks `/ready` needs the answer soon
METRICS_S = 5.0  # then a scrape gets the metrics without the store's, or the engine's
PAGE = Path(__file__).with_name("page.html")


@ray_serve.deployment(
    max_ongoing_requests=1024,
    health_check_timeout_s=120,
    max_constructor_retry_count=1,
    ray_actor_options={"num_cpus": 0.1},
)
@ray_serve.ingress(app)
class Api:
    """One replica of the HTTP application; also called by jobs through a deployment handle."""

    def __init__(self, config: Config, engine: DeploymentHandle, embedder: DeploymentHandle) -> None:
        keep_off_stderr()
        self._config = config
        self._engines = Engines(engine, config.serve.deadline_s)
        self._store = ShardedStore(config)
        self._telemetry = Telemetry()
        self._parts = Parts(
            config=config,
            store=self._store,
            engines=self._engines,
            embedder=embedder,
            adapters=AdapterStore(config.store_dir / "adapters"),
            recall=Recall(self._store, embedder, self._telemetry, config),
        )
        self._answers = Answers(self._parts, self._telemetry)
        install_cors(app, config.serve.cors_origins)
        app.state.access = Access(config.serve.api_keys, config.serve.default_namespace)
        app.state.max_body_bytes = config.serve.max_body_bytes
        app.state.max_import_bytes = config.serve.max_import_bytes
        app.state.parts = self._parts
        app.state.answers = self._answers
        app.state.telemetry = self._telemetry
        app.state.mem0 = config.serve.mem0

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
        # This route needs no API key, so the answer names no namespace.
        shards = [{k: v for k, v in shard.items() if k != "namespaces"} for shard in store["shards"]]
        shown = {**{k: v for k, v in store.items() if k != "namespaces"}, "shards": shards}
        return {"status": "ready", "engine": engine, "store": shown, "telemetry": self._telemetry.of(store)}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics(self) -> PlainTextResponse:
        silent = (TimeoutError, SharpwaveError, ray.exceptions.RayError, RayServeException)
        engine = store = None
        with contextlib.suppress(*silent):
            async with asyncio.timeout(METRICS_S):
                engine = await self._engines.status()
        with contextlib.suppress(*silent):
            async with asyncio.timeout(METRICS_S):
                store = await self._store.counts()
        told = self._telemetry.prometheus(store, engine, in_flight=self._answers.in_flight)
        return PlainTextResponse(told, media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def page(self) -> HTMLResponse:
        return HTMLResponse(PAGE.read_text())

    # Called by jobs, through a deployment handle

    async def running_config(self) -> Config:
        """The configuration this instance runs with, which is the default of a job on the same cluster."""
        return self._config

    async def ask(self, body: ChatBody) -> dict[str, Any]:
        """Answer a chat request of an evaluation: without an API key, and not counted as use of the memories."""
        everyone = Principal(frozenset([ALL]), self._config.serve.default_namespace)
        response = await self._answers.answer(body, everyone, counted=False)
        return json.loads(bytes(response.body))

    async def set_alias(self, alias: str, digest: str) -> None:
        """Have an alias name this adapter version. Raises `Conflict` if it could not be loaded."""
        await self._parts.set_alias(alias, digest)

    async def encode_namespace(self, namespace: str) -> int:
        """Queue the KV blocks of all memories for the base and every version with an alias; returns the number of
        memories."""
        generation = self._store.generation
        memories = await all_memories(self._store, namespace)
        await self._parts.encode_soon(namespace, [(dated(m), m) for m in memories], generation=generation)
        return len(memories)
