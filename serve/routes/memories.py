"""Memories beside writing and finding them: new versions, history, the weakest."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Query

from common.errors import InvalidInput
from serve.parts import Asking, Here, Json, Namespace, fresh_op, no_memory
from serve.schemas.stores import UpdateBody
from stores.memory.memory import KIND_FIELDS, Memory, parse_memory

router = APIRouter()


@router.patch("/v1/memories/{memory_id}")
async def update(memory_id: str, body: UpdateBody, asking: Asking, parts: Here) -> dict[str, Any]:
    """Write a new version; 409 where `generation` is no longer the latest."""
    asking.check(body.namespace)
    versions = await parts.store.history(body.namespace, memory_id)
    if not versions:
        raise no_memory(memory_id, body.namespace)
    memory = changed(versions[0]["content"], body, parts.config.store.max_text_bytes)
    generation = parts.store.generation
    written: Json = await parts.store.supersede(
        memory,
        await parts.embed_one(memory.text),
        generation=body.generation,
        op_id=fresh_op(),
        now=time.time(),
    )
    await parts.encode_soon(body.namespace, [(memory.text, written)], generation=generation)
    return written


def changed(content: Json, body: UpdateBody, max_text_bytes: int) -> Memory:
    """The memory with what the body gives in place of what it said. Text that was not given is made anew where
    the kind's fields change. Raises `InvalidInput` where nothing is given, or a field is not of the kind."""
    given = {name: getattr(body, name) for name in body.model_fields_set - {"namespace", "generation"}}
    if not given:
        raise InvalidInput("give at least one field to change beside generation", param="body")
    fields = {*KIND_FIELDS[content["kind"]]}
    merged = {**content, **given}
    if fields & given.keys() and "text" not in given:
        del merged["text"]
    return parse_memory(
        merged, namespace=content["namespace"], now=content["time"], max_text_bytes=max_text_bytes
    )


@router.get("/v1/memories/weakest")
async def weakest(
    asking: Asking,
    parts: Here,
    namespace: Namespace = "default",
    n: Annotated[int, Query(ge=1, le=1000)] = 10,
) -> dict[str, Any]:
    """The memories that decay has left least of, weakest first."""
    asking.check(namespace)
    return {"memories": await parts.store.weakest(namespace, n, now=time.time())}


@router.get("/v1/memories/{memory_id}/history")
async def history(
    memory_id: str, asking: Asking, parts: Here, namespace: Namespace = "default"
) -> dict[str, Any]:
    """Every version, newest first."""
    asking.check(namespace)
    versions = await parts.store.history(namespace, memory_id)
    if not versions:
        raise no_memory(memory_id, namespace)
    return {"id": memory_id, "namespace": namespace, "versions": versions}
