"""What a put would do, decided before anything is written."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import numpy as np

from common.config import StoreConfig
from common.errors import InvalidInput
from stores import gate
from stores.index import IndexPlan, Vectors
from stores.memory import Memory, canonical, content_digest, from_json, same_content
from stores.record import Record
from stores.view import View

Json = dict[str, Any]


def request_digest(*parts: Any) -> str:
    """What an operation asks for, in short: an `op_id` stands for one request."""
    return blake2b(canonical(parts), digest_size=8).hexdigest()


def put_digest(memories: Sequence[Memory]) -> str:
    """The same for a retried put, though our clock gave its memories a later time."""
    contents = [content_digest(m if m.timed else replace(m, time=0.0)) for m in memories]
    return request_digest("put", contents)


def check_vectors(vectors: Any, dim: int) -> Vectors:
    """float32 `[n, dim]`, checked: a vector that is not unit would win or lose every search."""
    if not len(vectors):
        return np.empty((0, dim), np.float32)
    if {np.shape(vector) for vector in vectors} != {(dim,)}:
        raise InvalidInput(f"vector: every one must have shape ({dim},)", param="vector")
    array = np.asarray(vectors, dtype="<f4")
    if not np.allclose(np.linalg.norm(array, axis=1), 1.0, atol=1e-3):  # false for NaN as well
        raise InvalidInput("vector: must have norm 1; normalise it after the embedder", param="vector")
    return array


def index_plan(config: StoreConfig) -> IndexPlan:
    return IndexPlan(kind=config.index, flat_max=config.index_flat_max, recall=config.index_recall)


def conflicts(view: View, memories: Sequence[Memory]) -> list[str | None]:
    """Why each memory cannot be written, or None where it can."""
    found: list[str | None] = []
    earlier: dict[tuple[str, str], Memory] = {}
    for memory in memories:
        key = memory.namespace, memory.id
        entry = view.find(*key)
        other = earlier.setdefault(key, memory) if entry is None else from_json(entry.memory)
        found.append(
            None
            if other is memory or same_content(memory, other)
            else f"id {memory.id!r} exists with other content; give a new id, or none"
        )
    return found


def nearest(view: View, namespaces: Sequence[str], vectors: Vectors) -> list[float]:
    """Highest cosine of each vector to its namespace, in 0 to 1."""
    found = [0.0] * len(namespaces)
    for namespace, places in gate.group(namespaces).items():
        for i, cosine in zip(places, view.nearest(namespace, vectors[places]), strict=True):
            found[i] = cosine
    return found


def novelties(
    view: View, memories: Sequence[Memory], vectors: Vectors, elsewhere: Sequence[float] | None
) -> list[float]:
    """1 - highest cosine to the namespace: this shard, other shards, and earlier items of the call."""
    namespaces = [memory.namespace for memory in memories]
    here = nearest(view, namespaces, vectors)
    within = gate.nearest_earlier(namespaces, vectors)
    others = elsewhere if elsewhere is not None else [0.0] * len(memories)
    return [1.0 - max(cosines) for cosines in zip(here, within, others, strict=True)]


def answer(view: View, memory: Memory, novelty: float, config: StoreConfig, shard: int) -> Json:
    """What the caller is told of one item; `settle` adds where it went."""
    entry = view.find(memory.namespace, memory.id)
    if entry:
        stored, status, gated = True, "existing", {"score": None, "reason": "written before"}
    else:
        stored, gated = gate.decide(memory, novelty, config)
        status = "new" if stored else "refused"
    return {
        "id": memory.id,
        "kind": memory.kind,
        "stored": stored,
        "status": status,
        "gate": gated,
        "anchor": entry.anchor if entry else None,
        "shard": shard,
        "seq": entry.seq if entry else None,
    }


def to_write(memories: Sequence[Memory], answers: Sequence[Json]) -> list[int]:
    """Places of the new memories, the first of each id."""
    first: dict[tuple[str, str], int] = {}
    for i, memory in enumerate(memories):
        if answers[i]["status"] == "new":
            first.setdefault((memory.namespace, memory.id), i)
    return [*first.values()]


def settle(memories: Sequence[Memory], answers: Sequence[Json], written: Mapping[int, Record]) -> None:
    """Say where each written memory went; one that was given twice was written once."""
    by_id = {(memories[i].namespace, memories[i].id): (i, record) for i, record in written.items()}
    for i, (memory, told) in enumerate(zip(memories, answers, strict=True)):
        source, record = by_id.get((memory.namespace, memory.id), (i, None))
        if record is not None:
            told |= {"stored": True, "anchor": record.anchor.hex(), "seq": record.seq}
        if source != i:
            reason = "given before in this call"
            told |= {"status": "duplicate", "gate": {"score": None, "reason": reason}}
