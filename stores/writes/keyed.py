"""Candidates for a key in a race, and their weights."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b

import numpy as np

from stores.index.vectors import Vectors
from stores.memory.memory import Memory, canonical
from stores.ranking import concert
from stores.ranking.concert import Concert
from stores.writes.versions import Candidate, Runner, Weigh


def candidate(memory: Memory, vector: Vectors) -> Candidate:
    """The candidate for a key from a memory of `line_memory`. Equal values in equal contexts have the same id in every
    race. `vector`: float32 `[dim]`, unit norm."""
    name = blake2b(canonical([memory.text, memory.context]), digest_size=16).hexdigest()
    return Candidate(memory=replace(memory, id=name), vector=vector)


def concert_weigher(cue: Vectors | None, constants: Concert | None = None) -> Weigh:
    """A function that weighs candidates by concert weight times the strength left by earlier races. Similarity is to
    the `cue` (unit vector `[dim]`), or 1 for all without one."""
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
