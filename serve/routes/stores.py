"""Facts, places, memory lines, and the short-term memory of conversations."""

import time
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query

from common.errors import InvalidInput, NotFound, SharpwaveError
from serve.parts import Asking, Conversation, Here, Json, Parts, Vectors, fresh_op
from serve.schemas.requests import Namespace
from serve.schemas.stores import (
    FactsBody,
    LineBody,
    LinesQueryBody,
    PeekBody,
    PlacesBody,
    PopBody,
    PushBody,
    RaceBody,
    RewindBody,
)
from stores.view.keyed import MAX_KEY, line_memory
from stores.writes.keyed import candidate

router = APIRouter()

PATTERN = ("subject", "relation", "object")
PLACE_FIELDS = {  # op -> what it needs, what it takes beside that
    "position": (("place",), ("at",)),
    "nearest": ((), ("place", "x", "y", "k")),
    "within": (("radius",), ("place", "x", "y")),
    "relation": (("place", "other"), ()),
    "path": (("place", "other"), ()),
    "where": (("place",), ("at",)),
    "macros": ((), ()),
}


# Facts and places


@router.post("/v1/facts/query")
async def facts(body: FactsBody, asking: Asking, parts: Here) -> dict[str, Any]:
    """Facts of a pattern, near a question, or along a path; those that hold at `at` (now), or all of them."""
    space = asking.space(body.namespace)
    if body.history and body.at is not None:
        raise InvalidInput("at: not together with history, which has every time", param="at")
    at = None if body.history else time.time() if body.at is None else body.at
    _check_question(body)
    store = parts.store
    if body.query is not None:
        return {"facts": await store.graph.recall_facts(space, body.query, k=body.k, at=at)}
    if body.source is not None and body.target is not None:
        path = await store.graph.fact_path(space, body.source, body.target, at=at)
        return {"facts": path or [], "found": path is not None}
    if body.patterns is not None:
        solved = await store.graph.solve_facts(space, body.patterns, at=at, limit=body.limit + 1)
        return {"solutions": solved[: body.limit], "more": len(solved) > body.limit}
    pattern = {name: getattr(body, name) for name in PATTERN}
    found = await store.graph.query_facts(space, **pattern, at=at)
    return {"facts": found[: body.limit], "more": len(found) > body.limit}


def _check_question(body: FactsBody) -> None:
    """Raises `InvalidInput` if more than one of pattern, patterns, query and path is given, or half a path."""
    path = body.source is not None, body.target is not None
    pattern = any(getattr(body, name) is not None for name in PATTERN)
    if (body.query is not None) + (body.patterns is not None) + any(path) + pattern > 1:
        raise InvalidInput(
            "give one of: a pattern (subject, relation, object), patterns, query, or source and target",
            param="query",
        )
    if any(path) and not all(path):
        missing = "target" if path[0] else "source"
        raise InvalidInput(f"{missing}: a path needs source and target", param=missing)


@router.post("/v1/places/query")
async def places(body: PlacesBody, asking: Asking, parts: Here) -> dict[str, Any]:
    space = asking.space(body.namespace)
    asked = _place_options(body)
    return {"op": body.op, "result": await parts.store.graph.query_places(space, body.op, **asked)}


def _place_options(body: PlacesBody) -> Json:
    """The fields of the request. Raises `InvalidInput` if they are not those that the op takes."""
    given = {name: getattr(body, name) for name in body.model_fields_set - {"namespace", "op"}}
    given = {name: value for name, value in given.items() if value is not None}
    needed, taken = PLACE_FIELDS[body.op]
    for name in needed:
        if name not in given:
            raise InvalidInput(f"{name}: op {body.op!r} needs {' and '.join(needed)}", param=name)
    for name in given:
        if name not in (*needed, *taken):
            valid = ", ".join((*needed, *taken)) or "no fields"
            raise InvalidInput(f"{name}: op {body.op!r} takes {valid}", param=name)
    if body.op in ("nearest", "within") and ("place" in given) == ("x" in given and "y" in given):
        raise InvalidInput(f"place: op {body.op!r} needs a place, or x and y", param="place")
    return given


# Lines


@router.post("/v1/lines")
async def put_line(body: LineBody, asking: Asking, parts: Here) -> dict[str, Any]:
    """Make `value` the line of `key`; 409 where `prev_anchor` is no longer the present one."""
    space = asking.space(body.namespace)
    now, limit = time.time(), parts.config.store.max_text_bytes
    line = (space, body.key, body.value)
    line_memory(*line, body.context, time=body.time, now=now, max_text_bytes=limit)  # before it is embedded
    return await parts.store.keyed.put(
        *line,
        await parts.embed_one(body.value),
        context=body.context,
        prev_anchor=body.prev_anchor,
        time=body.time,
        op_id=fresh_op(),
        now=now,
    )


@router.get("/v1/lines")
async def line(
    asking: Asking,
    parts: Here,
    key: Annotated[str, Query(min_length=1, max_length=MAX_KEY)],
    namespace: Namespace | None = None,
) -> dict[str, Any]:
    """The line of `key`, with the anchor and the generation that a next write goes out from."""
    space = asking.space(namespace)
    found = await parts.store.keyed.get(space, key)
    if found is None:
        raise NotFound(f"no line {key[:64]!r} in namespace {space!r}", param="key", code="line_not_found")
    return found


@router.post("/v1/lines/query")
async def query_lines(body: LinesQueryBody, asking: Asking, parts: Here) -> dict[str, Any]:
    """The lines of highest concert weight, best first."""
    space = asking.space(body.namespace)
    vector = await _cue(body, parts)
    return {"lines": await parts.store.keyed.query(space, vector, body.k, now=time.time())}


@router.post("/v1/lines/bias")
async def bias(body: LinesQueryBody, asking: Asking, parts: Here) -> dict[str, Any]:
    """The mean of the value vectors of those lines, by their weights; zeros where there are none."""
    space = asking.space(body.namespace)
    vector = await _cue(body, parts)
    found = await parts.store.keyed.bias_vector(space, vector, body.k, now=time.time())
    return {"vector": [float(value) for value in found], "dim": len(found)}


@router.post("/v1/lines/race")
async def race(body: RaceBody, asking: Asking, parts: Here) -> dict[str, Any]:
    """Commit the heaviest candidate as the next value of `key`; 409 where `generation` is stale."""
    space = asking.space(body.namespace)
    now, limit = time.time(), parts.config.store.max_text_bytes
    memories = []
    for i, each in enumerate(body.candidates):
        try:
            given = (space, body.key, each.value, each.context)
            memories.append(line_memory(*given, time=each.time, now=now, max_text_bytes=limit))
        except SharpwaveError as error:
            error.message, error.param = f"candidates[{i}]: {error.message}", f"candidates[{i}].{error.param}"
            raise
    texts = [memory.text for memory in memories] + ([body.cue] if body.cue else [])
    vectors = await parts.embed(texts)
    return await parts.store.keyed.race(
        space,
        body.key,
        [candidate(memory, vector) for memory, vector in zip(memories, vectors, strict=False)],
        generation=body.generation,
        cue=vectors[-1] if body.cue else None,
        op_id=fresh_op(),
        now=now,
    )


async def _cue(body: LinesQueryBody, parts: Parts) -> Vectors:
    """float32 `[dim]`, unit norm; the store checks it."""
    if (body.query is None) == (body.vector is None):
        raise InvalidInput("give exactly one of query, vector", param="query")
    if body.query is not None:
        return await parts.embed_one(body.query)
    return np.asarray(body.vector, np.float32)


# Conversations


@router.post("/v1/conversations/{conversation:path}/push")
async def push(conversation: Conversation, body: PushBody, asking: Asking, parts: Here) -> dict[str, Any]:
    """Add turns to the conversation's short-term memory."""
    space = asking.space(body.namespace)
    turns = [turn.model_dump(exclude_none=True) for turn in body.turns]
    return await parts.store.conversations.push(space, conversation, turns, op_id=fresh_op(), now=time.time())


@router.post("/v1/conversations/{conversation:path}/pop")
async def pop(conversation: Conversation, body: PopBody, asking: Asking, parts: Here) -> dict[str, Any]:
    """Take the newest turn off."""
    space = asking.space(body.namespace)
    return await parts.store.conversations.pop(space, conversation, op_id=fresh_op(), now=time.time())


@router.post("/v1/conversations/{conversation:path}/peek")
async def peek(conversation: Conversation, body: PeekBody, asking: Asking, parts: Here) -> dict[str, Any]:
    """The newest `n` turns, the oldest of them first."""
    space = asking.space(body.namespace)
    return {"turns": await parts.store.conversations.peek(space, conversation, body.n)}


@router.delete("/v1/conversations/{conversation:path}")
async def forget_conversation(
    conversation: Conversation, asking: Asking, parts: Here, namespace: Namespace | None = None
) -> dict[str, Any]:
    """Erase the conversation's short-term memory, what was popped and rewound included; the receipt."""
    space = asking.space(namespace)
    return await parts.store.erasure.forget_turns(
        space, conversations=[conversation], op_id=fresh_op(), now=time.time()
    )


@router.post("/v1/conversations/{conversation:path}/rewind")
async def rewind(conversation: Conversation, body: RewindBody, asking: Asking, parts: Here) -> dict[str, Any]:
    """Go back by `n` turns."""
    space = asking.space(body.namespace)
    return await parts.store.conversations.rewind(
        space, conversation, body.n, op_id=fresh_op(), now=time.time()
    )
