"""What the routes do to memories: read them out of a request, write, update, erase."""

import time

from common.errors import Conflict, InvalidInput, SharpwaveError
from common.types import Json
from serve.parts import Parts, fresh_op, no_memory
from serve.schemas.requests import WriteBody
from serve.schemas.stores import UpdateBody
from stores.imports.chat import TICK_S, Skipped
from stores.imports.formats import transcripts
from stores.imports.split import memories_of
from stores.memory.memory import KIND_FIELDS, Memory, parse_memory
from stores.writes.batch import MemoryBatch

ATTEMPTS = 8  # of an update that names no generation, against others at the same time
Parsed = tuple[list[Memory], dict[int, Json]]  # the memories, and by place among all results what gave none


def parsed(items: list[Json], namespace: str, max_text_bytes: int, *, partial: bool) -> Parsed:
    """The memories of `memories`. If the call is not `partial`, the first bad item raises."""
    memories, refused, started = [], {}, time.time()
    for i, item in enumerate(items):
        try:
            # A microsecond apart, so that memories without a time keep the order of the request.
            now = started + i * TICK_S
            memories.append(parse_memory(item, namespace=namespace, now=now, max_text_bytes=max_text_bytes))
        except SharpwaveError as error:
            if not partial:
                error.message = f"memories[{i}]: {error.message}"
                error.param = f"memories[{i}].{error.param}" if error.param else f"memories[{i}]"
                raise
            refused[i] = _none("refused", error.message, item)
    return memories, refused


def parsed_messages(body: WriteBody, namespace: str, max_text_bytes: int) -> Parsed:
    """The memories of `messages`, as `sharpwave teach` makes them of a transcript: an episode for each message of the
    user or the assistant, in order, several linked ones for a long text. Their ids follow from what is said and where,
    so that a conversation that is sent again as it grows adds what is new. A message of another role is `skipped`."""
    memories: list[Memory] = []
    refused: dict[int, Json] = {}
    transcript = {"messages": body.messages, "conversation": body.conversation, "time": body.time}
    started = time.time()
    for i, found in enumerate(transcripts.read({k: v for k, v in transcript.items() if v is not None})):
        place = len(memories) + len(refused)
        try:
            if isinstance(found, Skipped) and found.fault:
                raise InvalidInput(found.reason, param="messages")
            if isinstance(found, Skipped):
                refused[place] = _none("skipped", found.reason, {})
                continue
            item = {**found, "context": {**(body.context or {}), **found["context"]}}
            now = started + place * TICK_S
            memories += memories_of(item, namespace=namespace, max_text_bytes=max_text_bytes, now=now)
        except SharpwaveError as error:
            if not body.partial:
                error.message = (
                    error.message if "messages[" in error.message else f"messages[{i}]: {error.message}"
                )
                error.param = f"messages[{i}]"
                raise
            refused[place] = _none("refused", error.message, {})
    return memories, refused


def _none(status: str, reason: str, item: Json) -> Json:
    gate = {"score": None, "reason": reason}
    return {"id": item.get("id"), "kind": item.get("kind"), "stored": False, "status": status, "gate": gate}


async def write(parts: Parts, space: str, found: Parsed, *, partial: bool) -> Json:
    """Write the memories; the answer has a result for each of them, and those that gave none at their places."""
    memories, refused = found
    results: list[Json] = []
    if memories:
        vectors, passages = await parts.embed_memories([memory.text for memory in memories])
        generation = parts.store.generation
        batch = MemoryBatch(memories, vectors, passages)
        results = await parts.store.memories.put(batch, op_id=fresh_op(), now=time.time(), partial=partial)
        # Not a memory that the store has under another id: its blocks would never be read, and never be erased.
        own = [(m.text, r) for m, r in zip(memories, results, strict=True) if r["stored"] and r["id"] == m.id]
        await parts.encode_soon(space, own, generation=generation)
    stored = sum(result["stored"] for result in results)
    for i in sorted(refused):
        results.insert(i, refused[i])
    ended = {id for result in results for id in result.get("closes", ())}
    outdated = await parts.outdated(space, ended) if ended else []
    told = {"memories": results, "written": len(results), "stored": stored}
    return told | ({"adapters": outdated} if outdated else {})


async def update(parts: Parts, space: str, memory_id: str, body: UpdateBody) -> Json:
    """Write a new version. Raises `NotFound`, and `Conflict` where `generation` is no longer the latest; without
    one the version is made of the latest, whichever that is."""
    attempts = 1 if body.generation is not None else ATTEMPTS
    for attempt in range(attempts):
        versions = await parts.store.memories.history(space, memory_id)
        if not versions:
            raise no_memory(memory_id, space)
        memory = changed(versions[0]["content"], body, parts.config.store.max_text_bytes)
        layout = parts.store.generation
        [vector], passages = await parts.embed_memories([memory.text])
        latest = versions[0]["seq"] if body.generation is None else body.generation
        options: Json = {"generation": latest, "op_id": fresh_op(), "now": time.time()}
        try:
            written: Json = await parts.store.memories.supersede(
                memory, vector, passages=passages.get(0), **options
            )
            break
        except Conflict as error:
            if attempt + 1 == attempts or error.code != "stale_generation":
                raise
    await parts.encode_soon(space, [(memory.text, written)], generation=layout)
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


async def erase(
    parts: Parts,
    namespace: str,
    *,
    ids: list[str] | None = None,
    where: Json | None = None,
    everything: bool = False,
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
