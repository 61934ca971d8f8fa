"""Lookups before a write: digests of requests, conflicts of ids, neighbours, novelty."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import orjson

from common.config import StoreConfig
from stores.index.vectors import clip, group
from stores.memory.memory import Memory, canonical, from_json, same_content, to_json
from stores.view.memory_state import MemoryState
from stores.view.view import View
from stores.writes import near_duplicates
from stores.writes.batch import MemoryBatch
from stores.writes.graph_planner import routed
from stores.writes.group_commit import Pending, Sought

Near = list[tuple[float, MemoryState]]  # cosine and entry, best first


def request_digest(*parts: Any) -> str:
    """16 hex digits that identify a request: an `op_id` stands for one request."""
    return blake2b(canonical(parts), digest_size=8).hexdigest()


def put_digest(memories: Sequence[Memory]) -> str:
    """The digest of a put. A retry has the same one, although its memories without a time got a later clock time."""
    contents = [to_json(m) if m.timed else {**to_json(m), "time": 0.0} for m in memories]
    digests = [blake2b(_encode_json(content), digest_size=32).hexdigest() for content in contents]
    return blake2b(_encode_json(("put", digests)), digest_size=8).hexdigest()


def _encode_json(value: Any) -> bytes:
    """As `canonical`, in a fifth of the time. They differ for numbers between -1e-4 and 1e-4, whose exponent orjson
    writes otherwise: a retry with such a number, of a write from before orjson was used, is a `Conflict`."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # not supported by orjson
        return canonical(value)


def conflicts(view: View, memories: Sequence[Memory]) -> list[str | None]:
    """For each memory, why it cannot be written, or None. The content of a superseded version counts as written
    before and is no conflict."""
    found: list[str | None] = []
    earlier: dict[tuple[str, str], Memory] = {}
    for memory in map(routed, memories):
        key = memory.namespace, memory.id
        if entry := view.find(*key):
            known = any(same_content(memory, from_json(version.memory)) for version in entry.versions)
        else:
            other = earlier.setdefault(key, memory)
            known = other is memory or same_content(memory, other)
        found.append(None if known else f"id {memory.id!r} exists with other content; give a new id, or none")
    return found


def sought(batch: MemoryBatch) -> Sought:
    return Sought(batch.namespaces, batch.vectors)


def committed_neighbours(view: View, batch: MemoryBatch) -> list[Near]:
    """For each memory of the batch the closest memories of its namespace, best first: one search a namespace."""
    return _committed(view, [sought(batch)])[0] if len(batch) else []


def highest_cosines(near: Sequence[Near]) -> list[float]:
    """The highest cosine among each memory's neighbours, in 0 to 1; 0 without any."""
    return [clip(pairs[0][0]) if pairs else 0.0 for pairs in near]


def duplicate_ids(memories: Sequence[Memory], near: Sequence[Near], config: StoreConfig) -> list[str | None]:
    """For each memory the id of its near duplicate among its neighbours, or None."""
    found: list[str | None] = []
    for memory, pairs in zip(memories, near, strict=True):
        at = near_duplicates.find(memory, [(cosine, entry.memory) for cosine, entry in pairs], config)
        found.append(None if at is None else str(pairs[at][1].memory["id"]))
    return found


def neighbours(view: View, pending: Pending, asked: Sought) -> list[Near]:
    """For each vector the closest entries of its namespace, best first: committed entries and those
    that the batch adds."""
    found: list[Near] | None = pending.foreseen.pop(asked, None)
    if found is None:
        waiting = pending.sought()
        found, *others = _committed(view, [asked, *waiting])
        pending.foreseen.update(zip(waiting, others, strict=True))
    for namespace, indices in group(asked.namespaces).items():
        if added := pending.added(namespace):
            for index, cosines in zip(indices, asked.vectors[indices] @ added.vectors.T, strict=True):
                best = np.argsort(-cosines, kind="stable")[: near_duplicates.LOOKED_AT].tolist()
                found[index] += [(float(cosines[i]), added.entries[i]) for i in best]
                found[index].sort(key=lambda pair: -pair[0])
    return found


def _committed(view: View, together: Sequence[Sought]) -> list[list[Near]]:
    """The closest committed entries for all `together`: one search a namespace."""
    found: list[list[Near]] = [[[]] * len(asked.namespaces) for asked in together]
    indices: dict[str, list[tuple[int, int]]] = {}
    for number, asked in enumerate(together):
        for index, namespace in enumerate(asked.namespaces):
            indices.setdefault(namespace, []).append((number, index))
    for namespace, where in indices.items():
        vectors = np.concatenate([together[number].vectors[index] for number, index in where])
        closest = view.closest(namespace, vectors.reshape(len(where), -1), near_duplicates.LOOKED_AT)
        for (number, index), near in zip(where, closest, strict=True):
            found[number][index] = near
    return found


def novelties(
    near: Sequence[Near], within: Sequence[float], elsewhere: Sequence[float] | None
) -> list[float]:
    """1 - highest cosine to the namespace: this shard, earlier items of the call, other shards."""
    others = elsewhere if elsewhere is not None else [0.0] * len(near)
    here = highest_cosines(near)
    return [1.0 - max(cosines) for cosines in zip(here, within, others, strict=True)]
