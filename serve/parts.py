"""What route handlers depend on: the parts behind the API (`Here`) and the caller's rights (`Asking`)."""

import asyncio
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, cast

import numpy as np
from fastapi import Depends, Request
from numpy.typing import NDArray
from pydantic import AfterValidator
from ray.serve.handle import DeploymentHandle

from actors.store.sharded_store import ShardedStore
from common.config import Config
from common.errors import NotFound
from common.names import normal
from models.weights.adapters import BASE, AdapterStore
from serve.access import Access, Principal
from serve.engines import Engines
from serve.http import whole
from serve.model_names import parse
from serve.recall import Recall
from serve.schemas.openai_responses import ResponsesBody
from serve.schemas.requests import GenerateBody, MemoryField
from stores.memory.period import holds

Json = dict[str, Any]
Vectors = NDArray[np.float32]
LOOKED_UP = 64  # memories that are asked for at once


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts behind the API of one replica; handlers get them by `request.app.state.parts`."""

    config: Config
    store: ShardedStore
    engines: Engines
    embedder: DeploymentHandle
    adapters: AdapterStore
    recall: Recall

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """float32 `[len(texts), dim]` unit vectors."""
        return cast(Vectors, await self.embedder.encode.remote([*texts]))

    async def embed_memories(self, texts: Sequence[str]) -> tuple[Vectors, dict[int, Vectors]]:
        """float32 `[len(texts), dim]` unit vectors, and by index `[m, dim]` further ones of long texts."""
        return cast(tuple[Vectors, dict[int, Vectors]], await self.embedder.encode_long.remote([*texts]))

    async def embed_one(self, text: str) -> Vectors:
        """float32 `[dim]`, unit norm."""
        return cast(Vectors, (await self.embed([text]))[0])

    async def get(self, namespace: str, memory_id: str) -> Json:
        """One memory with its statistics. Raises `NotFound`."""
        found = await self.store.memories.get(namespace, memory_id)
        if found is None:
            raise no_memory(memory_id, namespace)
        return found

    async def encode_soon(
        self, namespace: str, memories: Sequence[tuple[str, Mapping[str, Any]]], *, generation: int
    ) -> None:
        """Queue the encoding of KV blocks for the base and for every version that has an alias; returns at once.

        `memories`: text, and `id`, `shard` and `seq` from the store, by which an erasure is distinguished from a later
        write of the same id; `generation`: that of the store's layout before they were written or read.
        """
        if memories:
            versions = [*{BASE, *self.adapters.aliases().values()}]
            items = [
                {
                    "text": text,
                    "generation": generation,
                    **{name: row[name] for name in ("id", "shard", "seq")},
                }
                for text, row in memories
            ]
            await self.engines.enqueue(namespace, items, versions)

    async def outdated(self, namespace: str, memory_ids: set[str]) -> list[str]:
        """The versions trained on memories that are erased or have ended; no alias names them any more
        (`gate.withdraw`)."""
        act = self.adapters.withdraw if self.config.gate.withdraw else self.adapters.holding
        return await asyncio.to_thread(act, namespace, memory_ids)

    async def outdated_since(self, namespace: str) -> list[str]:
        """`outdated` where it is not known what has ended, as after an import: looks at all that was trained."""
        trained = sorted(await asyncio.to_thread(self.adapters.trained_on, namespace))
        now = time.time()
        ended: set[str] = set()
        for start in range(0, len(trained), LOOKED_UP):
            some = trained[start : start + LOOKED_UP]
            found = await asyncio.gather(*(self.store.memories.get(namespace, id) for id in some))
            ended.update(memory["id"] for memory in found if memory and not holds(memory, (now, now)))
        return await self.outdated(namespace, ended) if ended else []

    async def set_alias(self, alias: str, digest: str) -> None:
        """Have an alias name this version. Raises `NotFound`, and `Conflict` if it could not be loaded."""
        await self.engines.check_version(digest)
        await asyncio.to_thread(self.adapters.set_alias, alias, digest)

    def remembering(self, body: GenerateBody | ResponsesBody, asking: Principal) -> MemoryField:
        """The `memory` of a request with its namespace and its mode, which the request says, the name of its model, a
        header, the API key or the configuration, in this order. Raises as `Principal.space`, but nothing in mode `off`
        where no namespace is said: there none is read."""
        asked, named = body.memory, parse(body.model, self.config.model.name)
        mode = asked.mode or named.mode or asking.mode or self.config.recall.mode
        said = asked.namespace or named.namespace
        namespace = "" if mode == "off" and said is None else asking.space(said)
        return asked.model_copy(update={"namespace": namespace, "mode": mode})

    def version(self, name: str, asking: Principal) -> str:
        """The digest of the version that a request's `model` names, whatever it says of the memory. Raises `NotFound`,
        also for a version of a namespace that the API key may not use, and `Forbidden` for a namespace after `@`."""
        named = parse(name, self.config.model.name)
        if named.namespace is not None:
            asking.check(named.namespace)
        digest = self.adapters.resolve(named.version, self.config.model.name)
        if digest is None or (digest != BASE and not self.visible(digest, asking)):
            known = ", ".join(self.names(asking))
            raise NotFound(
                f"model {name!r} does not exist; known: {known}; each also with :MODE and @NAMESPACE behind it",
                param="model",
                code="model_not_found",
            )
        return digest

    def visible(self, digest: str, asking: Principal) -> bool:
        """Whether this adapter version exists and the caller may see it."""
        try:
            return asking.may(self.adapters.manifest(digest)["namespace"])
        except NotFound:
            return False

    def names(self, asking: Principal) -> list[str]:
        """The names that `version` accepts from this caller."""
        named = self.adapters.names(self.config.model.name)
        return [n for n, digest in named.items() if digest == BASE or self.visible(digest, asking)]

    async def loadable_names(self, asking: Principal) -> list[str]:
        """`names` without the versions that were trained on other base weights than those served here."""
        named, served = self.adapters.names(self.config.model.name), await self.engines.model_digest()
        return [
            n for n in self.names(asking) if named.get(n) == BASE or self._base_of(named.get(n)) == served
        ]

    def _base_of(self, digest: str | None) -> str | None:
        try:
            return self.adapters.manifest(digest or "").get("model_digest")
        except NotFound:  # retired meanwhile
            return None


def parts_of(request: Request) -> Parts:
    return cast(Parts, request.app.state.parts)


def principal(request: Request) -> Principal:
    """The caller, with what the headers say of the memory. Raises `Unauthorized` if API keys are configured and the
    request has none of them."""
    access: Access = request.app.state.access
    return access.principal(request.headers.get("authorization")).told(request.headers)


def no_memory(memory_id: str, namespace: str) -> NotFound:
    return NotFound(
        f"no memory {memory_id!r} in namespace {namespace!r}", param="id", code="memory_not_found"
    )


def fresh_op() -> str:
    """A new `op_id` for one request. The store repeats calls under it without repeating their effect."""
    return uuid.uuid4().hex


MemoryId = Annotated[str, AfterValidator(lambda value: normal(whole(value)))]
Conversation = Annotated[str, AfterValidator(whole)]
Asking = Annotated[Principal, Depends(principal)]
Here = Annotated[Parts, Depends(parts_of)]
