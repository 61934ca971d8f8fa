"""Keyed memories: put, race, query, bias vector."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.types import Json
from stores.index.vectors import Vectors, check_vectors
from stores.shard.core import ShardCore
from stores.shard.memories import Memories
from stores.view.keyed import KeyedMemories, check_anchor, line_id, line_memory
from stores.writes import lookups, versions
from stores.writes.group_commit import Pending, Planned
from stores.writes.keyed import concert_weigher
from stores.writes.versions import Candidate, Runner


class Keyed:
    def __init__(self, core: ShardCore, memories: Memories) -> None:
        self._core, self._memories = core, memories

    def put(
        self,
        namespace: str,
        key: str,
        value: str,
        vector: Vectors,
        *,
        context: Mapping[str, Any] | None = None,
        prev_anchor: str | None = None,
        op_id: str,
        now: float,
        time: Any = None,
    ) -> Json:
        """Make `value` (its embedding: float32 `[dim]`, unit norm) the key's memory. The write gate does
        not apply: the caller names the key.

        With `prev_anchor`, raises `Conflict` unless that is still the present anchor (`check_anchor`). Returns
        `{id, anchor, generation, supersedes, ...}` as `Memories.supersede` does.
        """
        core = self._core
        limit = core.config.max_text_bytes
        memory = line_memory(namespace, key, value, context, now=now, time=time, max_text_bytes=limit)
        vectors = check_vectors([vector], core.dim)

        def plan(pending: Pending) -> Planned:
            present = core.view.find(namespace, memory.id)
            head = (pending.last.anchor if pending.last else core.log.anchor).hex()
            check_anchor(key, present, prev_anchor, head)
            return versions.version(core.view, pending, memory, vectors[0], present, shard=core.number)

        request = lookups.request_digest("put_line", lookups.put_digest([memory]), prev_anchor)
        answer: Json = core.write(op_id, request, plan, now=now, owns=[namespace])
        return answer

    def race(
        self,
        namespace: str,
        key: str,
        candidates: Sequence[Candidate],
        *,
        generation: int,
        op_id: str,
        now: float,
        cue: Vectors | None = None,
    ) -> Json:
        """Commit the candidate of highest concert weight as the key's next value; the strengths of the others decay.
        See `Memories.race` for `generation` and the answer.

        Similarity is to the `cue` (float32 `[dim]`, unit norm), else to the present value, else 1 for all.
        """
        goal = None if cue is None else check_vectors([cue], self._core.dim)[0]

        def weigh(runners: Sequence[Runner], now: float) -> Sequence[float]:
            held = self._held(namespace)
            present = held.vector(key) if held and goal is None else goal
            return concert_weigher(present)(runners, now)

        return self._memories.race(
            namespace, line_id(key), candidates, generation=generation, op_id=op_id, now=now, weigh=weigh
        )

    def get(self, namespace: str, key: str) -> Json | None:
        """The key's memory as `query` returns it, without similarity and weight; None if there is none."""
        with self._core.view_lock.read():
            held = self._held(namespace)
            return held.describe(key) if held else None

    def query(self, namespace: str, vector: Vectors, k: int, *, now: float) -> list[Json]:
        """See `KeyedMemories.query`."""
        cue = check_vectors([vector], self._core.dim)[0]
        with self._core.view_lock.read():
            held = self._held(namespace)
            return held.query(cue, k, now=now) if held else []

    def bias_vector(self, namespace: str, vector: Vectors, k: int, *, now: float) -> Vectors:
        """See `KeyedMemories.bias_vector`."""
        core = self._core
        cue = check_vectors([vector], core.dim)[0]
        with core.view_lock.read():
            held = self._held(namespace)
            return held.bias_vector(cue, k, now=now) if held else np.zeros(core.dim, np.float32)

    def _held(self, namespace: str) -> KeyedMemories | None:
        space = self._core.space(namespace)
        return space.keyed if space else None
