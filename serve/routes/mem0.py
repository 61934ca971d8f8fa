"""mem0's interface (`serve.mem0: true`), as the client of mem0ai 2 calls it; docs/api.md says what is different.

All of its paths end in a slash, which divides them from ours. The namespace is the one of the API key or the header.
"""

import ast
import contextlib
import json
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.routing import Match
from starlette.types import Scope

from common.errors import InvalidInput, NotFound
from serve import extraction, writing
from serve.access import Access, Principal
from serve.http import explain, unwrap
from serve.mem0_filters import ENTITIES, moment, said, shown, where_of
from serve.pages import all_memories
from serve.parts import Here, Json, MemoryId, Parts, no_memory
from serve.routes.language import Answering
from serve.schemas.mem0 import MAX_PAGE, AddBody, BatchBody, ChangeBody, Entities, FindBody, SearchBody
from serve.schemas.requests import WriteBody
from serve.schemas.stores import UpdateBody

EVENTS = {"new": "ADD", "aggregated": "UPDATE"}  # of a write's status; of others NONE


class Mem0Route(APIRoute):
    """A route that is there only with `serve.mem0`, and whose errors also say `detail`, which mem0's client reads."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        enabled = getattr(scope["app"].state, "mem0", False)
        return super().matches(scope) if enabled else (Match.NONE, {})

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except Exception as error:
                ours = explain(error, request) if isinstance(error, RequestValidationError) else unwrap(error)
                return JSONResponse({**ours.to_dict(), "detail": ours.message}, status_code=ours.status)

        return handled


def principal(request: Request) -> Principal:
    """The caller; mem0's client sends `Authorization: Token KEY`."""
    access: Access = request.app.state.access
    found = access.principal(request.headers.get("authorization"), ("token", "bearer"))
    return found.told(request.headers)


router = APIRouter(route_class=Mem0Route, include_in_schema=False)
Asking = Annotated[Principal, Depends(principal)]


@router.get("/v1/ping/")
async def ping(asking: Asking) -> Json:
    """What the client asks before anything else; it refuses to start without the names of a project."""
    return {"status": "ok", "org_id": "sharpwave", "project_id": "sharpwave", "user_email": None}


@router.post("/v3/memories/add/")
async def add(body: AddBody, asking: Asking, parts: Here, answers: Answering) -> Json:
    """Each message as a memory; with `infer` what the served model finds stated in them."""
    owners = {name: value for name, value in _owners(body).items() if value is not None}
    if not owners:
        raise InvalidInput(f"give at least one of {', '.join(ENTITIES)}", param="user_id")
    context = owners | ({"metadata": body.metadata} if body.metadata else {})
    run = owners.get("run_id")
    write = WriteBody(messages=body.messages, conversation=run, time=body.timestamp, context=context)
    space, limit = asking.space(None), parts.config.store.max_text_bytes
    found = writing.parsed_messages(write, space, limit)
    if body.infer:
        stated = await extraction.memories(write, asking, answers, body.custom_instructions or "")
        found = writing.parsed(stated, space, limit, partial=True) if stated else found
    told = await writing.write(parts, space, found, partial=bool(body.infer))
    texts = {memory.id: said({"text": memory.text, "context": memory.context}) for memory in found[0]}
    results = [
        {"id": one["id"], "memory": texts.get(one["id"], ""), "event": EVENTS.get(one["status"], "NONE")}
        for one in told["memories"]
        if one["stored"]
    ]
    return {"results": results}


def _owners(body: Entities) -> Json:
    """The entities of the body; of an `add` its filters may say them."""
    given = body.filters or {}
    if unknown := given.keys() - {*ENTITIES}:
        raise InvalidInput(
            f"filters: of add take {', '.join(ENTITIES)}, not {sorted(unknown)[0]!r}", param="filters"
        )
    return {name: getattr(body, name) or given.get(name) for name in ENTITIES}


def _where(body: Entities) -> Json:
    own = {name: value for name in ENTITIES if (value := getattr(body, name)) is not None}
    return where_of({**own, **({"AND": [body.filters]} if body.filters else {})})


@router.post("/v3/memories/")
async def get_all(
    body: FindBody,
    request: Request,
    asking: Asking,
    parts: Here,
    page: Annotated[int | None, Query(ge=1)] = None,
    page_size: Annotated[int | None, Query(ge=1, le=MAX_PAGE)] = None,
) -> Json:
    """A page of the memories, the newest first."""
    bounds = {"gte": body.start_date, "lte": body.end_date}
    between = {op: value for op, value in bounds.items() if value is not None}
    where = _where(body)
    if between:
        where = {"and": [where, where_of({"created_at": between})]}
    found = (await all_memories(parts.store, asking.space(None), where=where))[::-1]
    number, size = page or body.page, page_size or body.page_size

    def url(other: int) -> str | None:
        there = 0 < other <= -(-len(found) // size)
        return str(request.url.include_query_params(page=other, page_size=size)) if there else None

    results = [shown(memory) for memory in found[(number - 1) * size : number * size]]
    return {"count": len(found), "next": url(number + 1), "previous": url(number - 1), "results": results}


@router.post("/v3/memories/search/")
async def search(body: SearchBody, asking: Asking, parts: Here) -> Json:
    found, _ = await parts.recall.search(
        asking.space(None),
        body.query,
        body.top_k,
        kinds=None,
        where=_where(body),
        retrieval="full",
        at=body.reference_date,
    )
    least = float("-inf") if body.threshold is None else body.threshold
    results = [{**shown(one["memory"]), "score": one["score"]} for one in found if one["score"] >= least]
    return {"results": results}


@router.get("/v1/memories/{memory_id}/")
async def get(memory_id: MemoryId, asking: Asking, parts: Here) -> Json:
    return shown(await parts.get(asking.space(None), memory_id))


@router.put("/v1/memories/{memory_id}/")
async def update(memory_id: MemoryId, body: ChangeBody, asking: Asking, parts: Here) -> Json:
    space = asking.space(None)
    await _change(parts, space, memory_id, body)
    now = shown(await parts.get(space, memory_id))
    return {**now, "text": now["memory"]}


async def _change(parts: Parts, space: str, memory_id: str, body: ChangeBody) -> None:
    context = (await parts.get(space, memory_id))["context"]
    given: Json = {}
    if body.text is not None:
        given["text"] = f"{context['role']}: {body.text}" if "role" in context else body.text
    if body.metadata is not None:
        given["context"] = {**context, "metadata": body.metadata}
    if body.timestamp is not None:
        given["time"] = body.timestamp
    await writing.update(parts, space, memory_id, UpdateBody(**given))


@router.get("/v1/memories/{memory_id}/history/")
async def history(memory_id: MemoryId, asking: Asking, parts: Here) -> list[Json]:
    """Every version, the oldest first."""
    space = asking.space(None)
    versions = (await parts.store.memories.history(space, memory_id) or [])[::-1]
    if not versions:
        raise no_memory(memory_id, space)
    texts = [said(version["content"]) for version in versions]
    return [
        {
            "id": version["anchor"],
            "memory_id": memory_id,
            "old_memory": old,
            "new_memory": new,
            "event": "ADD" if old is None else "UPDATE",
            "user_id": version["content"]["context"].get("user_id"),
            "metadata": version["content"]["context"].get("metadata"),
            "created_at": moment(version["content"]["time"]),
            "updated_at": moment(version["written"]),
        }
        for version, old, new in zip(versions, [None, *texts], texts, strict=False)
    ]


@router.delete("/v1/memories/{memory_id}/")
async def delete(memory_id: MemoryId, asking: Asking, parts: Here, delete_linked: bool = False) -> Json:
    """Erase it with all its versions, which mem0 calls linked."""
    await _erase_one(parts, asking.space(None), memory_id)
    return {"message": "Memory deleted successfully!"}


async def _erase_one(parts: Parts, space: str, memory_id: str) -> None:
    if not (await writing.erase(parts, space, ids=[memory_id]))["forgotten"]:
        raise no_memory(memory_id, space)


@router.delete("/v1/memories/")
async def delete_all(
    asking: Asking,
    parts: Here,
    user_id: str | None = None,
    agent_id: str | None = None,
    app_id: str | None = None,
    run_id: str | None = None,
    filters: str | None = None,
) -> Json:
    owners = dict(zip(ENTITIES, (user_id, agent_id, app_id, run_id), strict=True))
    body = Entities(**owners, filters=None if filters is None else _object(filters))
    await writing.erase(parts, asking.space(None), where=_where(body))
    return {"message": "Memories deleted successfully!"}


def _object(text: str) -> Json:
    """An object in a URL: mem0's client writes it as Python does."""
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            if isinstance(found := read(text), dict):
                return found
    raise InvalidInput("filters: must be an object, as in {'user_id': 'anna'}", param="filters")


@router.get("/v1/entities/")
async def entities(asking: Asking, parts: Here) -> Json:
    """Whose memories there are, with their numbers."""
    found: Counter[tuple[str, str]] = Counter()
    for memory in await all_memories(parts.store, asking.space(None)):
        found.update(
            (name, str(value)) for name in ENTITIES if (value := memory["context"].get(name)) is not None
        )
    results = [
        {"id": name, "name": name, "type": entity.removesuffix("_id"), "total_memories": count}
        for (entity, name), count in sorted(found.items())
    ]
    return {"count": len(results), "results": results}


@router.delete("/v2/entities/{kind}/{name}/")
async def delete_entity(kind: str, name: MemoryId, asking: Asking, parts: Here) -> Json:
    if f"{kind}_id" not in ENTITIES:
        raise InvalidInput(f"type = {kind[:64]!r}: must be one of user, agent, app, run", param="type")
    receipt = await writing.erase(parts, asking.space(None), where=where_of({f"{kind}_id": {"eq": name}}))
    if not receipt["forgotten"]:
        raise NotFound(f"no memories of {kind} {name!r}", param="name", code="memory_not_found")
    return {"message": "Entity deleted successfully!"}


@router.put("/v1/batch/")
async def update_batch(body: BatchBody, asking: Asking, parts: Here) -> Json:
    for item in body.memories:
        await _change(parts, asking.space(None), item.memory_id, item)
    return {"message": f"Successfully updated {len(body.memories)} memories"}


@router.delete("/v1/batch/")
async def delete_batch(body: BatchBody, asking: Asking, parts: Here) -> Json:
    for item in body.memories:
        await _erase_one(parts, asking.space(None), item.memory_id)
    return {"message": f"Successfully deleted {len(body.memories)} memories"}
