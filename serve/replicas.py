"""The deployments behind the API: one holds the language model, one the embedder."""

import asyncio
import contextlib
import dataclasses
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from ray import serve as ray_serve

from common.config import Config
from models.adapters import AdapterStore
from models.blocks import BlockStore
from models.embed import Embedder
from models.engine import Engine, Recalled, Turn
from models.load import load_model
from models.rerank import Reranker
from models.sampling import Sampling
from models.weights import Weights
from stores.logs import block_ring

_END = object()
logger = logging.getLogger(__name__)


@ray_serve.deployment(
    max_ongoing_requests=256,
    health_check_timeout_s=120,
    max_constructor_retry_count=1,
    graceful_shutdown_timeout_s=5,
    ray_actor_options={"num_cpus": 0.5},
)
class EngineReplica:
    """A thin shell around `models.engine.Engine`.

    The model runs on one thread; `_turn` hands it to one request at a time, so that a slow client's request is not
    interleaved with another's, and the encoding of new blocks takes the gaps.
    """

    def __init__(self, config: Config) -> None:
        # Ray gives a replica as many threads as it books CPUs, which is less than one.
        torch.set_num_threads(config.model.threads or os.cpu_count() or 1)
        loaded = load_model(config.model.name, config.model.dtype)
        weights = Weights(loaded, AdapterStore(config.store_dir / "adapters"), config.model.max_adapters)
        blocks = BlockStore(
            config.store_dir / "blocks", config.recall.block_cache_bytes, sealer=block_ring(config.store)
        )
        self._engine = Engine(loaded, weights, blocks, config.recall)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._turn = asyncio.Lock()
        self._wanted = asyncio.Event()
        self._encode_failures = 0
        self._encoder = asyncio.get_running_loop().create_task(self._encode_forever())

    async def generate(self, request: dict[str, Any]) -> AsyncIterator[str | dict[str, Any]]:
        """Pieces of text, then one dict: the finished `Turn`."""
        turn = Turn(mode=request["mode"])
        async with self._turn, self._encoding_missed():
            pieces = self._engine.answer(
                request["messages"],
                [Recalled(**memory) for memory in request["memories"]],
                namespace=request["namespace"],
                mode=request["mode"],
                adapter=request["adapter"],
                sampling=Sampling(**request["sampling"]),
                turn=turn,
            )
            async with contextlib.aclosing(self._pull(pieces)) as stream:
                async for piece in stream:
                    yield piece
        yield dataclasses.asdict(turn)

    @contextlib.asynccontextmanager
    async def _encoding_missed(self) -> AsyncIterator[None]:
        """Blocks that a request missed are encoded after it, also where it failed or its client left."""
        try:
            yield
        finally:
            if self._engine.pending_blocks:
                self._wanted.set()

    async def enqueue(self, namespace: str, memories: list[dict[str, str]], adapters: list[str]) -> None:
        """Encode these memories' blocks soon, for each of these model versions; they have just been written."""
        self._engine.written(namespace, [memory["id"] for memory in memories])
        recalled = [Recalled(**memory) for memory in memories]
        for adapter in adapters:
            await self._run(partial(self._engine.enqueue, namespace, recalled, adapter))
        self._wanted.set()

    async def score(self, messages: list[dict[str, Any]], adapter: str) -> list[dict[str, Any]]:
        async with self._turn:
            return await self._run(lambda: self._engine.score(messages, adapter))

    async def forget(self, namespace: str, memory_ids: list[str]) -> int:
        return await self._run(lambda: self._engine.forget(namespace, memory_ids))

    async def status(self) -> dict[str, Any]:
        return {
            "model": self._engine.loaded.name,
            "digest": self._engine.loaded.digest,
            "dtype": str(self._engine.loaded.dtype).removeprefix("torch."),
            "device": str(self._engine.loaded.device),
            "pending_blocks": self._engine.pending_blocks,
            "fallbacks": self._engine.fallbacks,
            "encode_failures": self._encode_failures,
        }

    async def check_health(self) -> None:
        if self._encoder.done():
            self._encoder.result()  # raises what stopped it, and Serve replaces this replica

    async def _pull(self, pieces: Iterator[str]) -> AsyncGenerator[str]:
        try:
            while (piece := await self._run(lambda: next(pieces, _END))) is not _END:
                yield piece
        finally:
            # A client that left cancels us in the middle of a step: the one thread finishes that step, then closes.
            self._thread.submit(pieces.close)  # type: ignore[attr-defined]

    async def _encode_forever(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._engine.pending_blocks:
                async with self._turn:
                    try:
                        await self._run(self._engine.encode_some)
                    except (
                        Exception
                    ):  # one version's trouble must not keep the others waiting, nor end this task
                        dropped = await self._run(self._engine.give_up)
                        self._encode_failures += dropped
                        logger.exception(
                            "%d KV blocks could not be encoded; requests fall back to text", dropped
                        )

    async def _run(self, call: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


@ray_serve.deployment(
    max_ongoing_requests=64, max_constructor_retry_count=1, ray_actor_options={"num_cpus": 0.25}
)
class EmbedderReplica:
    """A thin shell around `models.embed.Embedder`, for memories and queries alike, and around the reranker."""

    def __init__(self, config: Config) -> None:
        self._embedder = Embedder(config.embed.model, threads=config.model.threads)
        self._reranker = Reranker(config.recall.reranker) if config.recall.reranker else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embedder")

    async def dim(self) -> int:
        return self._embedder.dim

    async def encode(self, texts: list[str]) -> np.ndarray:
        """float32 `[len(texts), dim]` unit vectors."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._embedder.encode, texts)

    async def rerank(self, texts: list[str], query: str) -> list[float]:
        """See `Reranker.scores`; only with `recall.reranker`."""
        assert self._reranker is not None, "recall.reranker is not set"
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._reranker.scores, texts, query
        )
