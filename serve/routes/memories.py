"""The namespaces. Memories: write, list, search, forget; and one memory: get, update, delete, history.

Routes of a fixed path stand above those of `/v1/memories/{memory_id}`, which would match them, too. A slash in an id is
best sent as %2F: then no id looks like a route.
"""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Query

from common.errors import InvalidInput
from serve import extraction, writing
from serve.parts import Asking, Here, Json, MemoryId, Parts, no_memory
from serve.recall import period_of
from serve.routes.language import Answering
from serve.schemas.requests import ForgetBody, Namespace, SearchBody, WriteBody
from serve.schemas.stores import UpdateBody

router = APIRouter()


@router.get("/v1/namespaces")
async def namespaces(asking: Asking, parts: Here) -> dict[str, Any]:
    """The namespaces that hold something and that the API key may use, by name, with their numbers of memories."""
    held = (await parts.store.counts())["namespaces"]
    shown = [{"namespace": name, "memories": held[name]} for name in sorted(held) if asking.may(name)]
    return {"namespaces": shown}


@router.post("/v1/memories")
async def write(body: WriteBody, asking: Asking, parts: Here, answers: Answering) -> dict[str, Any]:
    """Write `memories`, or what is said in `messages`: with `infer` what the served model finds stated in them."""
    space = asking.space(body.namespace)
    _check_source(body)
    limit = parts.config.store.max_text_bytes
    if body.memories is not None:
        found = writing.parsed(body.memories, space, limit, partial=body.partial)
        return await writing.write(parts, space, found, partial=body.partial)
    found = writing.parsed_messages(body, space, limit)
    stated = await extraction.memories(body, asking, answers) if body.infer else []
    if stated:
        found = writing.parsed(stated, space, limit, partial=True)
    told = await writing.write(parts, space, found, partial=body.partial or bool(stated))
    return told | ({"inferred": len(stated)} if body.infer else {})


def _check_source(body: WriteBody) -> None:
    """Raises `InvalidInput` unless there is one of memories and messages, with the fields that belong to it."""
    if (body.memories is None) == (body.messages is None):
        raise InvalidInput("give exactly one of memories, messages", param="memories")
    for name in {"conversation", "time", "context", "infer"} & body.model_fields_set:
        if body.messages is None:
            raise InvalidInput(f"{name}: belongs to messages; a memory has its own", param=name)


@router.get("/v1/memories")
async def list_memories(
    asking: Asking,
    parts: Here,
    namespace: Namespace | None = None,
    kind: str | None = None,
    conversation: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    cursor: str | None = None,
) -> dict[str, Any]:
    space = asking.space(namespace)
    options: Json = {"kind": kind, "conversation": conversation, "limit": limit, "after": cursor}
    return await parts.store.memories.list(space, **options)


@router.post("/v1/memories/search")
async def search(body: SearchBody, asking: Asking, parts: Here) -> dict[str, Any]:
    space = asking.space(body.namespace)
    if body.complete:
        return await _complete(body, space, parts)
    results, trace = await parts.recall.search(
        space,
        body.query,
        body.k,
        kinds=body.kinds,
        where=body.filter,
        retrieval=body.retrieval,
        offset=body.offset,
        at=body.at,
        history=body.history,
    )
    return {"results": results, **({"trace": trace} if body.trace else {})}


async def _complete(body: SearchBody, namespace: str, parts: Parts) -> Json:
    """Recall from a partial cue: the memory that the cue is completed to, then its nearest neighbours."""
    started, first = time.perf_counter(), body.offset or 0
    vector = await parts.embed_one(body.query)
    embedded = time.perf_counter()
    options: Json = {"kinds": body.kinds, "where": body.filter}
    options["period"] = period_of(body.query, at=body.at, history=body.history, where=body.filter)
    found = await parts.store.search.complete(namespace, vector, first + body.k, **options)
    stages = [
        {"stage": "embed", "ms": 1e3 * (embedded - started)},
        {"stage": "complete", "ms": 1e3 * (time.perf_counter() - embedded), "candidates": len(found)},
    ]
    trace = {"trace": {"retrieval": "complete", "stages": stages}} if body.trace else {}
    return {"results": found[first:], **trace}


@router.post("/v1/memories/forget")
async def forget(body: ForgetBody, asking: Asking, parts: Here) -> dict[str, Any]:
    space = asking.space(body.namespace)
    if sum((body.ids is not None, body.filter is not None, body.all)) != 1:
        raise InvalidInput("give exactly one of ids, filter, all", param="ids")
    return await writing.erase(parts, space, ids=body.ids, where=body.filter, everything=body.all)


@router.get("/v1/memories/weakest")
async def weakest(
    asking: Asking,
    parts: Here,
    namespace: Namespace | None = None,
    n: Annotated[int, Query(ge=1, le=1000)] = 10,
) -> dict[str, Any]:
    """The memories that decay has left least of, weakest first."""
    space = asking.space(namespace)
    return {"memories": await parts.store.memories.weakest(space, n, now=time.time())}


@router.get("/v1/memories/{memory_id:path}/history")
async def history(
    memory_id: MemoryId, asking: Asking, parts: Here, namespace: Namespace | None = None
) -> dict[str, Any]:
    """Every version, newest first."""
    space = asking.space(namespace)
    versions = await parts.store.memories.history(space, memory_id)
    if not versions:
        raise no_memory(memory_id, space)
    return {"id": memory_id, "namespace": space, "versions": versions}


@router.get("/v1/memories/{memory_id:path}")
async def get(
    memory_id: MemoryId, asking: Asking, parts: Here, namespace: Namespace | None = None
) -> dict[str, Any]:
    space = asking.space(namespace)
    return await parts.get(space, memory_id)


@router.patch("/v1/memories/{memory_id:path}")
async def update(memory_id: MemoryId, body: UpdateBody, asking: Asking, parts: Here) -> dict[str, Any]:
    """Write a new version; 409 where the `generation` that is given is no longer the latest."""
    space = asking.space(body.namespace)
    return await writing.update(parts, space, memory_id, body)


@router.delete("/v1/memories/{memory_id:path}")
async def delete(
    memory_id: MemoryId, asking: Asking, parts: Here, namespace: Namespace | None = None
) -> dict[str, Any]:
    space = asking.space(namespace)
    receipt = await writing.erase(parts, space, ids=[memory_id])
    if not receipt["forgotten"] and not receipt["kv_blocks"]:
        raise no_memory(memory_id, space)
    return receipt
