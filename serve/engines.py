"""All replicas of the engine as one: which of them answers, and what every one of them has to hear.

A namespace's requests go to the same replica as long as that one keeps up (`serve.app` gives the router), since its
memory holds the namespace's KV blocks; the disk with all blocks is everybody's.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import ray.exceptions
from ray.serve.handle import DeploymentHandle

from common.errors import NotReady

Json = dict[str, Any]
SUMMED = ("waiting", "running", "kv_cache_bytes", "pending_blocks", "fallbacks", "encode_failures")


class Engines:
    """`deadline_s`: how long one of them may be silent to what all have to hear."""

    def __init__(self, handle: DeploymentHandle, deadline_s: float) -> None:
        self._handle = handle
        self._deadline_s = deadline_s

    async def generate(self, request: Json) -> AsyncGenerator[Json]:
        """See `EngineReplica.generate`. Closing it cancels the request."""
        pieces = self._at(request["namespace"], stream=True).generate.remote(request)
        try:
            async for piece in pieces:
                yield piece
        finally:
            pieces.cancel()

    async def enqueue(self, namespace: str, memories: Sequence[Json], versions: Sequence[str]) -> None:
        """See `EngineReplica.enqueue`; one replica encodes for all."""
        await self._at(namespace).enqueue.remote(namespace, [*memories], [*versions])

    async def score(self, messages: Sequence[Json], adapter: str) -> list[Json]:
        scores: list[Json] = await self._handle.score.remote([*messages], adapter)
        return scores

    async def forget(self, namespace: str, memory_ids: Sequence[str]) -> int:
        """Have every replica drop these memories' KV blocks. Returns the number of files removed."""
        return sum(await self._all("forget", namespace, [*memory_ids]))

    async def retire(self, adapter: str) -> int:
        """Have every replica drop what it made for this model version. Returns the number of files removed."""
        return sum(await self._all("retire", adapter))

    async def status(self) -> Json:
        """What they serve, how many they are, and their counters summed up."""
        told = await self._all("status")
        return {**told[0], **{name: sum(one[name] for one in told) for name in SUMMED}, "replicas": len(told)}

    def _at(self, namespace: str, *, stream: bool = False) -> DeploymentHandle:
        return self._handle.options(session_id=namespace, stream=stream)

    async def _all(self, method: str, *args: Any) -> list[Any]:
        """The answers of all running replicas. One that died meanwhile is left out: nothing of it remains."""
        asked = self._handle.broadcast(method, *args)
        told = await asked.results_async(timeout_s=self._deadline_s, return_exceptions=True)
        alive = [one for one in told if not isinstance(one, ray.exceptions.RayActorError)]
        for error in (one for one in alive if isinstance(one, BaseException)):
            raise error
        if not alive:
            raise NotReady("no replica of the engine answers; retry")
        return alive
