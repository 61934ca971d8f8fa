"""Operations on memory lines: put, race, query, bias vector. The half of `Shard` for lines."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import numpy as np

from stores.index.vectors import Vectors, check_vectors
from stores.locks import ReadWriteLock
from stores.memory.memory import Memory, canonical
from stores.ranking import concert
from stores.ranking.concert import Concert
from stores.shard.writer import Writes
from stores.view.keyed import Lines, check_anchor, line_id, line_memory
from stores.writes import lookups, versions
from stores.writes.group_commit import Pending, Planned
from stores.writes.versions import Candidate, Runner, Weigh

Json = dict[str, Any]


class LineWrites(Writes):
    """`Shard` sets the view's lock."""

    _viewing: ReadWriteLock

    def put_line(
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
        """Make `value` (its embedding: float32 `[dim]`, unit norm) the key's line, whatever the write gate
        says: who puts a line asks for it by name.

        With `prev_anchor`, only where that is still the present one (see `check_anchor`), else `Conflict`.
        Returns `{id, anchor, generation, supersedes, ...}` as `supersede` does.
        """
        limit = self.config.max_text_bytes
        memory = line_memory(namespace, key, value, context, now=now, time=time, max_text_bytes=limit)
        vectors = check_vectors([vector], self.dim)

        def planned(pending: Pending) -> Planned:
            line = self._view.find(namespace, memory.id)
            head = (pending.last.anchor if pending.last else self._log.anchor).hex()
            check_anchor(key, line, prev_anchor, head)
            return versions.version(self._view, pending, memory, vectors[0], line, shard=self.number)

        request = lookups.request_digest("put_line", lookups.put_digest([memory]), prev_anchor)
        answer: Json = self.write(op_id, request, planned, now=now, owns=[namespace])
        return answer

    def race_line(
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
        """Of several `candidates` for the key's next value, commit the one of highest concert weight; the
        strengths of the others decay. See `race` for `generation` and what is returned.

        Similarity is to the `cue` (float32 `[dim]`, unit norm), else to the present value, else 1 for all.
        """
        goal = None if cue is None else check_vectors([cue], self.dim)[0]

        def weigh(runners: Sequence[Runner], now: float) -> Sequence[float]:
            lines = self._lines(namespace)
            present = lines.vector(key) if lines and goal is None else goal
            return weigher(present)(runners, now)

        return self.race(
            namespace,
            line_id(key),
            candidates,
            generation=generation,
            op_id=op_id,
            now=now,
            weigh=weigh,
        )

    def line(self, namespace: str, key: str) -> Json | None:
        """The key's line as `query` tells it, without similarity and weight; None where there is none."""
        with self._viewing.read():
            lines = self._lines(namespace)
            return lines.describe(key) if lines else None

    def query_lines(self, namespace: str, vector: Vectors, k: int, *, now: float) -> list[Json]:
        """See `Lines.query`."""
        cue = check_vectors([vector], self.dim)[0]
        with self._viewing.read():
            lines = self._lines(namespace)
            return lines.query(cue, k, now=now) if lines else []

    def bias_vector(self, namespace: str, vector: Vectors, k: int, *, now: float) -> Vectors:
        """See `Lines.bias_vector`."""
        cue = check_vectors([vector], self.dim)[0]
        with self._viewing.read():
            lines = self._lines(namespace)
            return lines.bias_vector(cue, k, now=now) if lines else np.zeros(self.dim, np.float32)

    def _lines(self, namespace: str) -> Lines | None:
        space = self._view.spaces.get(namespace)
        return space.lines if space else None


def candidate(memory: Memory, vector: Vectors) -> Candidate:
    """A value proposed for a key, from what `line_memory` made; the same value in the same context has the
    same name in every race. `vector`: float32 `[dim]`, unit norm."""
    name = blake2b(canonical([memory.text, memory.context]), digest_size=16).hexdigest()
    return Candidate(memory=replace(memory, id=name), vector=vector)


def weigher(cue: Vectors | None, constants: Concert | None = None) -> Weigh:
    """What candidates for a key are weighed by: concert weight times the strength that earlier races left.

    Similarity is to the `cue` (unit vector `[dim]`), or 1 for all without one.
    """
    constants = constants or Concert()

    def weigh(runners: Sequence[Runner], now: float) -> list[float]:
        vectors = np.stack([runner.candidate.vector for runner in runners])
        weights = concert.weights(
            np.ones(len(vectors)) if cue is None else vectors @ cue,
            concert.recency([r.candidate.memory.time for r in runners], now, constants.tau_s),
            [runner.novelty for runner in runners],
            constants,
        )
        return [float(w) * runner.strength for w, runner in zip(weights, runners, strict=True)]

    return weigh
