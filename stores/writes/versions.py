"""New versions of a memory: one given (`supersede`), or the best of several candidates (`race`).

Both are compare-and-set: the caller names the `generation` it started from, and if another version has been
written since, nothing changes. Content never changes in place: the old version stays in the history
until the memory is forgotten.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from common.errors import Conflict, InvalidInput, NotFound
from common.types import Json
from stores.index.passages import encode
from stores.index.vectors import Vectors
from stores.log.base import Draft
from stores.log.record import Op, Record
from stores.memory.memory import Memory, to_json
from stores.view.memory_state import MemoryState
from stores.view.view import View
from stores.writes import lookups
from stores.writes.batch import MemoryBatch
from stores.writes.graph_planner import GraphPlanner, closings, consequences, routed
from stores.writes.group_commit import Pending, Planned

RIVALS_KEPT = 64  # of one memory
WEAKEST = 1e-3  # lower bound of a decayed strength


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One of the updates that race for a key. `memory.id` names the candidate; the winner is stored under
    the key. `vector`: float32 `[dim]`, unit norm."""

    memory: Memory
    vector: Vectors


@dataclass(frozen=True, kw_only=True)
class Runner:
    """A candidate with what it is weighed by: `novelty` is 1 - its highest cosine to the namespace, `strength` (0 to 1)
    what remained after earlier races."""

    candidate: Candidate
    novelty: float
    strength: float


Weigh = Callable[[Sequence[Runner], float], Sequence[float]]
"""Weights of the runners at a time (seconds): the highest wins, the first of equals."""


def supersede(
    view: View,
    pending: Pending,
    memory: Memory,
    vector: Vectors,
    *,
    generation: int,
    shard: int,
    passages: Vectors | None = None,
) -> Planned:
    """Write `memory` as a new version. Raises `NotFound` if there is no such memory, `Conflict` if `generation` is not
    its latest."""
    entry = view.find(memory.namespace, memory.id)
    if entry is None:
        raise NotFound(f"no memory {memory.id!r} in namespace {memory.namespace!r}", param="id")
    _check_generation(memory.id, entry, generation)
    given, memory = memory, routed(memory, entry)
    if given is memory:
        _check_kind(memory.id, entry, memory.kind)
    planned = version(view, pending, memory, vector, entry, shard=shard, passages=passages)
    ends, effects = _contradicts(view, memory, entry)
    return replace(
        planned,
        drafts=[*planned.drafts, *ends],
        settle=lambda staged: {**_answer(memory, staged[0], shard, entry), **effects},
    )


def version(
    view: View,
    pending: Pending,
    memory: Memory,
    vector: Vectors,
    entry: MemoryState | None,
    *,
    shard: int,
    passages: Vectors | None = None,
) -> Planned:
    """Write `memory` as the next version of `entry`, or as a new memory if that is None."""
    novelty = _novelties(view, pending, [memory], vector.reshape(1, -1), entry)[0]
    return Planned(
        drafts=[_version(memory, vector, novelty, entry, passages)],
        settle=lambda staged: _answer(memory, staged[0], shard, entry),
    )


def race(
    view: View,
    pending: Pending,
    key: str,
    candidates: Sequence[Candidate],
    vectors: Vectors,
    *,
    generation: int,
    now: float,
    weigh: Weigh,
    decay: float,
    shard: int,
) -> Planned:
    """Write the candidate of highest weight as the memory `key`, without the write gate, and multiply the strengths of
    the others by `decay`. `generation` is 0 if there is no such memory yet. Raises `Conflict` if it is not the
    latest, `InvalidInput` if `weigh` does not give one finite weight a candidate."""
    namespace = candidates[0].memory.namespace
    entry = view.find(namespace, key)
    _check_generation(key, entry, generation)
    _check_kind(key, entry, candidates[0].memory.kind)
    memories = [candidate.memory for candidate in candidates]
    novelties = _novelties(view, pending, memories, vectors, entry)
    known = entry.rivals if entry else {}
    runners = [
        Runner(candidate=candidate, novelty=novelty, strength=known.get(candidate.memory.id, 1.0))
        for candidate, novelty in zip(candidates, novelties, strict=True)
    ]
    weights = [float(weight) for weight in weigh(runners, now)]
    if len(weights) != len(runners) or not all(map(math.isfinite, weights)):
        raise InvalidInput(f"weigh gave {weights}: must be one finite weight a candidate", param="weigh")
    first = max(range(len(runners)), key=lambda i: weights[i])
    winner, memory = runners[first], routed(replace(memories[first], id=key), entry)
    ends, effects = _contradicts(view, memory, entry)
    lost = {r.candidate.memory.id: r.strength * decay for r in runners if r is not winner}
    traced = {
        "namespace": namespace,
        "id": key,
        "winner": winner.candidate.memory.id,
        "strength": winner.strength,
        "rivals": _kept({**_without(known, winner.candidate.memory.id), **lost}),
        "weights": dict(zip((m.id for m in memories), weights, strict=True)),
    }
    return Planned(
        drafts=[_version(memory, vectors[first], winner.novelty, entry), (Op.RACE, traced, b""), *ends],
        settle=lambda staged: {
            **_answer(memory, staged[0], shard, entry),
            **effects,
            **{name: traced[name] for name in ("winner", "weights", "strength", "rivals")},
        },
    )


def check_candidates(namespace: str, memories: Sequence[Memory]) -> None:
    ids = {memory.id for memory in memories}
    if not memories or len(ids) < len(memories) or {m.namespace for m in memories} != {namespace}:
        raise InvalidInput(
            f"candidates: give one or more, each with an id of its own, all in namespace {namespace!r}",
            param="candidates",
        )
    if len({memory.kind for memory in memories}) > 1:
        raise InvalidInput("candidates: all must be of one kind", param="candidates")


def _contradicts(view: View, memory: Memory, entry: MemoryState | None) -> tuple[list[Draft], Json]:
    """Effects on others of a fact written as a new memory or in place of `entry`: closing records, and fields of the
    answer."""
    if memory.kind != "relational":
        return [], {}
    planner = GraphPlanner(view)
    decision = planner.replace(memory) if entry else planner.decide(memory)
    return closings(memory.namespace, decision), consequences(decision)


def _check_generation(id: str, entry: MemoryState | None, generation: int) -> None:
    latest = entry.seq if entry else 0
    if generation != latest:
        raise Conflict(
            f"generation = {generation} of {id!r}: the latest is {latest}; read it again and decide anew",
            param="generation",
            code="stale_generation",
        )


def _check_kind(id: str, entry: MemoryState | None, kind: str) -> None:
    if entry and entry.memory["kind"] != kind:
        raise InvalidInput(
            f"kind = {kind!r}: {id!r} is {entry.memory['kind']} and stays that; write a memory of its own",
            param="kind",
        )


def _novelties(
    view: View, pending: Pending, memories: Sequence[Memory], vectors: Vectors, entry: MemoryState | None
) -> list[float]:
    """Novelty of each memory, not counting the version that it replaces."""
    near = lookups.neighbours(view, pending, lookups.sought(MemoryBatch(memories, vectors)))
    others = [[(cosine, found) for cosine, found in pairs if found is not entry] for pairs in near]
    return lookups.novelties(others, [0.0] * len(memories), None)


def _version(
    memory: Memory,
    vector: Vectors,
    novelty: float,
    entry: MemoryState | None,
    passages: Vectors | None = None,
) -> Draft:
    content: Json = {"memory": to_json(memory), "novelty": novelty}
    if passages is not None:
        content["passages"] = encode(passages)
    return Op.SUPERSEDE if entry else Op.PUT, content, vector.tobytes()


def _answer(memory: Memory, record: Record, shard: int, old: MemoryState | None) -> Json:
    return {
        "id": memory.id,
        "kind": memory.kind,
        "stored": True,
        "status": "superseded" if old else "new",
        "anchor": record.anchor.hex(),
        "shard": shard,
        "seq": record.seq,
        "generation": record.seq,
        "supersedes": old.seq if old else None,
    }


def _kept(rivals: Mapping[str, float]) -> dict[str, float]:
    """At most `RIVALS_KEPT` strengths: the weakest, since a rival that is dropped is back at strength 1."""
    weakest = sorted(rivals.items(), key=lambda rival: (rival[1], rival[0]))[:RIVALS_KEPT]
    return {name: max(WEAKEST, strength) for name, strength in weakest}


def _without(strengths: Mapping[str, float], name: str) -> dict[str, float]:
    return {other: strength for other, strength in strengths.items() if other != name}
