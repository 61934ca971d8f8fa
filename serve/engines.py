"""Client of all engine replicas: routes requests to one of them, and sends erasures to every one.

The replicas share the disk with the KV blocks; each keeps in memory the blocks it has used. Requests with the same best
memory go to the same replica, which has its block in memory (the router is set in `serve.app`); requests of one
namespace still spread over all replicas.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import ray.exceptions
from ray.serve.handle import DeploymentHandle

from common.errors import NotReady

Json = dict[str, Any]
LOAD = ("answered", "waiting", "running", "pending_blocks")


class Engines:
    """`deadline_s`: how long one replica may take to answer a call that all must get."""

    def __init__(self, handle: DeploymentHandle, deadline_s: float) -> None:
        self._handle = handle
        self._deadline_s = deadline_s
        self._digest: str | None = None

    async def model_digest(self) -> str:
        """Digest of the base weights, which are the same as long as this instance runs."""
        if self._digest is None:
            self._digest = (await self.status())["digest"]
        return self._digest

    async def generate(self, request: Json) -> AsyncGenerator[Json]:
        """See `EngineReplica.generate`. Closing it cancels the request."""
        best = [memory["id"] for memory in request["memories"][:1]]
        session = {"session_id": "/".join([request["namespace"], *best])} if best else {}
        pieces = self._handle.options(stream=True, **session).generate.remote(request)
        try:
            async for piece in pieces:
                yield piece
        finally:
            pieces.cancel()

    async def enqueue(self, namespace: str, memories: Sequence[Json], versions: Sequence[str]) -> None:
        """See `EngineReplica.enqueue`; one replica encodes for all."""
        await self._handle.enqueue.remote(namespace, [*memories], [*versions])

    async def token_texts(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        """The texts of prompts given as token ids. Raises `InvalidInput` for an unknown id."""
        texts: list[str] = await self._handle.token_texts.remote([[*ids] for ids in prompts])
        return texts

    async def score(self, messages: Sequence[Json], adapter: str) -> list[Json]:
        scores: list[Json] = await self._handle.score.remote([*messages], adapter)
        return scores

    async def forget(self, namespace: str, memory_ids: Sequence[str], erasure: Json) -> int:
        """Erase these memories' KV blocks at every replica; see `EngineReplica.forget`. Returns the number of files
        removed."""
        return sum(await self._all("forget", namespace, [*memory_ids], erasure))

    async def check_version(self, adapter: str) -> None:
        """Raises `NotFound`, and `Conflict` if this version could not be loaded onto the model that is served."""
        await self._handle.check_version.remote(adapter)

    async def retire(self, adapter: str) -> int:
        """Remove the KV blocks of this model version at every replica. Returns the number of files removed."""
        return sum(await self._all("retire", adapter))

    async def status(self) -> Json:
        """Model and settings, the sums of the counters, and the load of each replica under `replicas`."""
        told = await self._all("status")
        sums = {name: sum(one[name] for one in told) for name, value in told[0].items() if type(value) is int}
        return {**told[0], **sums, "replicas": [{name: one[name] for name in LOAD} for one in told]}

    async def _all(self, method: str, *args: Any) -> list[Any]:
        """The answers of all running replicas. One that died meanwhile is left out: it has no state to change."""
        asked = self._handle.broadcast(method, *args)
        told = await asked.results_async(timeout_s=self._deadline_s, return_exceptions=True)
        alive = [one for one in told if not isinstance(one, ray.exceptions.RayActorError)]
        for error in (one for one in alive if isinstance(one, BaseException)):
            raise error
        if not alive:
            raise NotReady("no replica of the engine answers; retry")
        return alive
