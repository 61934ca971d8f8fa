"""The deployment behind the API that holds the embedder. Apart from the model's: it needs a third of its imports."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from ray import serve as ray_serve

from common.config import Config
from models.text.embed import Embedder
from models.text.rerank import Reranker
from serve.access_log import keep_off_stderr


@ray_serve.deployment(
    max_ongoing_requests=64, max_constructor_retry_count=1, ray_actor_options={"num_cpus": 0.25}
)
class EmbedderReplica:
    """A thin shell around `models.text.embed.Embedder`, for memories and queries alike, and around the reranker."""

    def __init__(self, config: Config) -> None:
        keep_off_stderr()
        self._embedder = Embedder(
            config.embed.model, threads=config.model.threads, token_ids=config.embed.token_ids
        )
        self._reranker = Reranker(config.recall.reranker) if config.recall.reranker else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embedder")

    async def dim(self) -> int:
        return self._embedder.dim

    async def encode(self, texts: list[str]) -> np.ndarray:
        """float32 `[len(texts), dim]` unit vectors."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._embedder.encode, texts)

    async def encode_long(self, texts: list[str]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """See `Embedder.encode_long`."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._embedder.encode_long, texts
        )

    async def encode_counted(self, texts: list[str]) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """The vectors, and of each text how many tokens its vector was computed from, of how many."""
        count = asyncio.get_running_loop().run_in_executor(self._thread, self._embedder.count_tokens, texts)
        return await self.encode(texts), await count

    async def token_texts(self, texts: list[list[int]]) -> list[str]:
        """See `Embedder.token_text`."""
        return [self._embedder.token_text(ids) for ids in texts]

    async def rerank(self, texts: list[str], query: str) -> list[float]:
        """See `Reranker.scores`; only with `recall.reranker`."""
        assert self._reranker is not None, "recall.reranker is not set"
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._reranker.scores, texts, query
        )
