"""The namespaces. Memories: write, list, search, forget; and one memory: get, update, delete, history.

Routes of a fixed path stand above those of `/v1/memories/{memory_id}`, which would match them, too. A slash in an id is
best sent as %2F: then no id looks like a route.
"""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Query

from common.errors import InvalidInput, SharpwaveError
from serve.parts import Asking, Here, Json, MemoryId, Parts, fresh_op, no_memory
from serve.recall import period_of
from serve.schemas.requests import ForgetBody, Namespace, SearchBody, WriteBody
from serve.schemas.stores import UpdateBody
from stores.memory.memory import KIND_FIELDS, Memory, parse_memory
from stores.writes.batch import MemoryBatch

router = APIRouter()


@router.get("/v1/namespaces")
async def namespaces(asking: Asking, parts: Here) -> dict[str, Any]:
    """The namespaces that hold something and that the API key may use, by name, with their numbers of memories."""
    held = (await parts.store.counts())["namespaces"]
    shown = [{"namespace": name, "memories": held[name]} for name in sorted(held) if asking.may(name)]
    return {"namespaces": shown}


@router.post("/v1/memories")
async def write(body: WriteBody, asking: Asking, parts: Here) -> dict[str, Any]:
    space = asking.space(body.namespace)
    memories, refused = _parse(body, space, parts.config.store.max_text_bytes)
    vectors, passages = await parts.embed_memories([memory.text for memory in memories])
    generation = parts.store.generation
    batch = MemoryBatch(memories, vectors, passages)
    results = await parts.store.memories.put(batch, op_id=fresh_op(), now=time.time(), partial=body.partial)
    stored = sum(result["stored"] for result in results)
    # Not a memory that the store has under another id: its blocks would never be read, and never be erased.
    own = [(m.text, r) for m, r in zip(memories, results, strict=True) if r["stored"] and r["id"] == m.id]
    await parts.encode_soon(space, own, generation=generation)
    for i in sorted(refused):
        results.insert(i, refused[i])
    ended = {id for result in results for id in result.get("closes", ())}
    outdated = await parts.outdated(space, ended) if ended else []
    return {
        "memories": results,
        "written": len(results),
        "stored": stored,
        **({"adapters": outdated} if outdated else {}),
    }


def _parse(body: WriteBody, namespace: str, max_text_bytes: int) -> tuple[list[Memory], dict[int, Json]]:
    """The memories, and the answers for refused items by index. If the call is not `partial`, the first bad item
    raises instead."""
    memories, refused, started = [], {}, time.time()
    for i, item in enumerate(body.memories):
        try:
            # A microsecond apart, so that memories without a time keep the order of the request.
            now = started + i * 1e-6
            parsed = parse_memory(item, namespace=namespace, now=now, max_text_bytes=max_text_bytes)
            memories.append(parsed)
        except SharpwaveError as error:
            if not body.partial:
                error.message = f"memories[{i}]: {error.message}"
                error.param = f"memories[{i}].{error.param}" if error.param else f"memories[{i}]"
                raise
            refused[i] = {"id": item.get("id"), "kind": item.get("kind"), "stored": False,
                          "status": "refused", "gate": {"score": None, "reason": error.message}}  # fmt: skip
    return memories, refused


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
    return await _forget(parts, space, ids=body.ids, where=body.filter, everything=body.all)


async def _forget(
    parts: Parts, namespace: str, *, ids: list[str] | None, where: Json | None, everything: bool
) -> Json:
    """Erase in the store, then the KV blocks, and name the adapters that were trained on the memories."""
    chosen: Json = {"ids": ids, "where": where, "everything": everything}
    receipt: Json = await parts.store.erasure.forget(namespace, **chosen, op_id=fresh_op(), now=time.time())
    forgotten = [*receipt["forgotten"], *receipt["kept"]]  # a memory that goes on has another id
    erasure = {"generation": receipt.pop("generation"), "heads": dict(receipt.pop("heads"))}
    # Also ids that the store no longer has: sending an interrupted call again erases the blocks that it left.
    receipt["kv_blocks"] = await parts.engines.forget(namespace, sorted({*forgotten, *(ids or ())}), erasure)
    receipt["adapters"] = await parts.outdated(namespace, set(forgotten))
    return receipt


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
    """Write a new version; 409 where `generation` is no longer the latest."""
    space = asking.space(body.namespace)
    versions = await parts.store.memories.history(space, memory_id)
    if not versions:
        raise no_memory(memory_id, space)
    memory = changed(versions[0]["content"], body, parts.config.store.max_text_bytes)
    generation = parts.store.generation
    [vector], passages = await parts.embed_memories([memory.text])
    written: Json = await parts.store.memories.supersede(
        memory,
        vector,
        passages=passages.get(0),
        generation=body.generation,
        op_id=fresh_op(),
        now=time.time(),
    )
    await parts.encode_soon(space, [(memory.text, written)], generation=generation)
    # The text that a version was trained on is no longer what the memory says.
    if outdated := await parts.outdated(space, {memory_id, *written.get("closes", ())}):
        written["adapters"] = outdated
    return written


def changed(content: Json, body: UpdateBody, max_text_bytes: int) -> Memory:
    """The memory with the fields of the body replaced. If fields of its kind change and no text is given, the text is
    generated from them. Raises `InvalidInput` if nothing is given, or a field does not belong to the kind."""
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


@router.delete("/v1/memories/{memory_id:path}")
async def delete(
    memory_id: MemoryId, asking: Asking, parts: Here, namespace: Namespace | None = None
) -> dict[str, Any]:
    space = asking.space(namespace)
    receipt = await _forget(parts, space, ids=[memory_id], where=None, everything=False)
    if not receipt["forgotten"] and not receipt["kv_blocks"]:
        raise no_memory(memory_id, space)
    return receipt
