"""What the routes work with. A router's handler finds it through `request.app.state.parts`."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, cast

import numpy as np
from fastapi import Depends, Query, Request
from numpy.typing import NDArray
from ray.serve.handle import DeploymentHandle

from actors.shards import ShardedStore
from common.config import Config
from common.errors import NotFound
from models.adapters import BASE, AdapterStore
from serve.access import Principal

Json = dict[str, Any]
Vectors = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything behind the API of one replica."""

    config: Config
    store: ShardedStore
    engine: DeploymentHandle
    embedder: DeploymentHandle
    adapters: AdapterStore

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """float32 `[len(texts), dim]` unit vectors."""
        return cast(Vectors, await self.embedder.encode.remote([*texts]))

    async def embed_one(self, text: str) -> Vectors:
        """float32 `[dim]`, unit norm."""
        return cast(Vectors, (await self.embed([text]))[0])

    async def get(self, namespace: str, memory_id: str) -> Json:
        """Raises `NotFound`."""
        found = await self.store.get(namespace, memory_id)
        if found is None:
            raise no_memory(memory_id, namespace)
        return found

    async def encode_soon(
        self, namespace: str, memories: Sequence[tuple[str, Mapping[str, Any]]], *, generation: int
    ) -> None:
        """Queue blocks for the base and for every version that an alias names; encoding comes later.

        `memories`: each one's text, and `id`, `shard` and `seq` as the store gives them, which tell an erasure
        from a later write of the same id; `generation`: of the store's layout, before they were written or read.
        """
        if memories:
            versions = [BASE, *set(self.adapters.aliases().values())]
            items = [
                {
                    "text": text,
                    "generation": generation,
                    **{name: row[name] for name in ("id", "shard", "seq")},
                }
                for text, row in memories
            ]
            await self.engine.enqueue.remote(namespace, items, versions)


def parts_of(request: Request) -> Parts:
    return cast(Parts, request.app.state.parts)


def principal(request: Request) -> Principal:
    """Who is asking; raises `Unauthorized` where keys are configured and none fits."""
    found: Principal = request.app.state.access.principal(request.headers.get("authorization"))
    return found


def no_memory(memory_id: str, namespace: str) -> NotFound:
    return NotFound(
        f"no memory {memory_id!r} in namespace {namespace!r}", param="id", code="memory_not_found"
    )


def fresh_op() -> str:
    """An `op_id` for one request: the parts below repeat calls under it."""
    return uuid.uuid4().hex


Namespace = Annotated[str, Query(max_length=128)]
Asking = Annotated[Principal, Depends(principal)]
Here = Annotated[Parts, Depends(parts_of)]
