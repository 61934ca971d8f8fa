"""The deployment behind the API that holds the language model."""

import asyncio
import dataclasses
import logging
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from ray import serve as ray_serve

from common.config import Config
from models.encoders.encoding_queue import Erasure, RecalledMemory, Written
from models.engine.engine import Engine
from models.engine.generation_stats import GenerationStats
from models.engine.request import Request
from models.engine.sampling import Sampling
from models.kv.blocks import BlockStore
from models.weights.adapters import AdapterStore
from models.weights.load import load_model
from models.weights.versions import ModelVersions
from serve.access_log import keep_off_stderr
from stores.log.open import block_keyring

logger = logging.getLogger(__name__)


@ray_serve.deployment(health_check_timeout_s=120, max_constructor_retry_count=1)
class EngineReplica:
    """A thin shell around `models.engine.Engine`, whose steps one thread runs as long as there is work.

    What else needs the model (`score`), or erases blocks, waits for the step in hand and goes before the next; writes
    only queue blocks, and wait for no step.
    """

    def __init__(self, config: Config) -> None:
        keep_off_stderr()
        # Ray gives a replica as many threads as it books CPUs, which is less than one.
        torch.set_num_threads(config.model.threads or os.cpu_count() or 1)
        loaded = load_model(config.model.name, config.model.dtype)
        weights = ModelVersions(
            loaded, AdapterStore(config.store_dir / "adapters"), config.model.max_adapters
        )
        blocks = BlockStore(
            config.store_dir / "blocks",
            config.recall.block_cache_bytes,
            disk_bytes=config.recall.block_disk_bytes,
            device=loaded.device,
            device_bytes=config.recall.block_device_bytes,
            encryptor=block_keyring(config.store),
        )
        self._engine = Engine(loaded, weights, blocks, config.recall, config.serve)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        # A large grammar takes long to compile: two such need not keep the other ones waiting.
        self._compiling = ThreadPoolExecutor(3, thread_name_prefix="grammars")
        self._compiling.submit(
            lambda: self._engine.grammars.tokenizer
        )  # seconds that no request need wait for
        self._news: dict[Request, asyncio.Event] = {}
        self._answered = 0
        self._wanted = asyncio.Event()
        self._stepping = asyncio.get_running_loop().create_task(self._step_forever())

    async def generate(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """`{text, logprobs}` for each new piece of the answer, then the `GenerationStats`."""
        turn = GenerationStats(mode=request["mode"])
        answer = await self._submit(request, turn)
        news = self._news[answer] = asyncio.Event()
        told = 0
        try:
            while True:
                done = answer.done  # before its pieces: none comes after
                text = "".join(answer.pieces.popleft() for _ in range(len(answer.pieces)))
                if text or len(turn.logprobs) > told:
                    yield {"text": text, "logprobs": turn.logprobs[told:]}
                    told = len(turn.logprobs)
                if done:
                    break
                await news.wait()
                news.clear()
        finally:
            del self._news[answer]
            self._thread.submit(self._engine.cancel, answer)  # nothing where it is done
        if answer.error is not None:
            raise answer.error
        self._answered += 1
        yield dataclasses.asdict(turn)

    async def _submit(self, request: dict[str, Any], turn: GenerationStats) -> Request:
        sampling = Sampling(**request["sampling"])
        if sampling.grammar:  # before it takes the engine's time; from then on it is known there
            compile = partial(self._engine.grammars.matcher, sampling.grammar)
            await asyncio.get_running_loop().run_in_executor(self._compiling, compile)
        submitted = self._thread.submit(
            self._engine.submit,
            request["messages"],
            [RecalledMemory(**memory) for memory in request["memories"]],
            namespace=request["namespace"],
            adapter=request["adapter"],
            sampling=sampling,
            turn=turn,
            tools=request["tools"],
            attribute=request["attribute"],
        )
        try:
            return await asyncio.wrap_future(submitted)
        except asyncio.CancelledError:  # its client left; where it had begun, take it back
            submitted.add_done_callback(self._take_back)
            raise
        finally:
            self._wanted.set()  # also where it failed: blocks may have been queued

    def _take_back(self, submitted: Future[Request]) -> None:
        if not submitted.cancelled() and submitted.exception() is None:
            self._thread.submit(self._engine.cancel, submitted.result())

    async def enqueue(self, namespace: str, memories: list[dict[str, Any]], adapters: list[str]) -> None:
        """Queue the encoding of these memories' blocks for these model versions; `memories`: fields of `Written`."""
        written = [Written(**memory) for memory in memories]
        self._engine.queue.written(namespace, written)
        for adapter in adapters:
            await asyncio.to_thread(self._engine.enqueue, namespace, written, adapter)
        self._wanted.set()

    async def token_texts(self, prompts: list[list[int]]) -> list[str]:
        """See `Engine.token_text`."""
        return [self._engine.token_text(ids) for ids in prompts]

    async def score(self, messages: list[dict[str, Any]], adapter: str) -> list[dict[str, Any]]:
        return await self._run(lambda: self._engine.score(messages, adapter))

    async def forget(self, namespace: str, memory_ids: list[str], erasure: dict[str, Any]) -> int:
        """Erase the blocks of these memories; `erasure`: fields of `Erasure`. Returns the number of files removed."""
        forget = self._engine.queue.forget
        return await self._run(partial(forget, namespace, memory_ids, Erasure(**erasure)))

    async def check_version(self, adapter: str) -> None:
        """Raises `NotFound`, and `Conflict` if this version could not be loaded onto the model served here."""
        await self._run(partial(self._engine.check_version, adapter))

    async def retire(self, adapter: str) -> int:
        """Remove the blocks of a version that was deleted from the disk. Returns the number of files removed."""
        return await self._run(lambda: self._engine.retire(adapter))

    async def status(self) -> dict[str, Any]:
        return {
            "model": self._engine.loaded.name,
            "digest": self._engine.loaded.digest,
            "dtype": str(self._engine.loaded.dtype).removeprefix("torch."),
            "device": str(self._engine.loaded.device),
            "answered": self._answered,
            **self._engine.status(),
        }

    async def check_health(self) -> None:
        if self._stepping.done():
            self._stepping.result()  # raises what stopped it, and Serve replaces this replica

    async def _step_forever(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._engine.busy:
                for answer in await self._run(self._engine.step):
                    if news := self._news.get(answer):
                        news.set()
                if error := self._engine.encode_error:
                    self._engine.encode_error = None
                    logger.error("KV blocks could not be encoded; requests fall back to text", exc_info=error)

    async def _run(self, call: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)
