"""Sparse keys that keep episodes apart, and recall of an episode from a partial cue.

**Pattern separation.** A vector is projected on many units, each of which reads a few of its dimensions with
random signs; the k most active units are the memory's key (k-winners-take-all). Similar vectors get keys that
overlap far less than their cosine suggests. The scheme is that of the fly's olfactory system (Dasgupta, Stevens,
Navlakha: A neural algorithm for a fundamental computing problem, Science 2017).

**Pattern completion.** The memories whose keys overlap the cue's are the candidates, and the cue falls into one of
them by the update of the modern Hopfield network: see `complete`. It identifies the stored memory that a damaged
vector came from. It is no better search: for sentences that lost half their words, plain cosine over all memories
finds as many.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from common.errors import InvalidInput
from stores.index.vectors import Vectors

Key = NDArray[np.uint16]  # names of units fit 16 bits: see `store.key_width`

SEED = 1337
INPUTS = 0.1  # share of the dimensions that one unit reads
CANDIDATES = 64
_SETTLED = 1e-5  # a step of the state shorter than this ends the completion
_MAX_STEPS = 64


@dataclass(frozen=True, slots=True)
class Completion:
    """`completed` is the cosine to the completed cue, `cosine` to the cue as given, `overlap` the share of
    the key's units that the cue's key has too."""

    row: int
    completed: float
    cosine: float
    overlap: float


class SparseKeys:
    """Keys of some memories, by row (the record's `seq`).

    Vectors stay with the caller: recall reads those of its candidates through `vectors_of`.
    """

    def __init__(
        self, dim: int, *, width: int = 4096, winners: int = 64, beta: float = 32.0, seed: int = SEED
    ) -> None:
        """`width` units, of which `winners` are a key; `beta` is the inverse temperature of the completion."""
        if winners > width:
            raise InvalidInput(f"key_winners = {winners}: must be at most key_width, {width}: lower it")
        self._width, self._winners, self._beta = width, winners, beta
        self._reads, self._signs = projection(dim, width, seed)
        self._keys: dict[int, Key] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, row: int, vector: Vectors) -> None:
        """Add a memory by its vector (`[dim]`, unit norm)."""
        assert row not in self._keys, "a row is added once"
        self._keys[row] = self.key(vector)

    def key(self, vector: Vectors) -> Key:
        """The winning units of a vector, `[winners]`, in ascending order."""
        activity = np.einsum("ui,ui->u", vector[self._reads], self._signs)
        return np.sort(np.argpartition(activity, -self._winners)[-self._winners :]).astype(np.uint16)

    def recall(
        self,
        cue: Vectors,
        k: int,
        vectors_of: Callable[[Sequence[int]], Vectors],
        *,
        candidates: int = CANDIDATES,
    ) -> list[Completion]:
        """The memory nearest to the completed cue, then the others by cosine to the cue as given, `k` in all: the
        completed cue has converged to one memory and no longer distinguishes the others.

        `cue` is `[dim]`, unit norm; `vectors_of(rows)` gives `[len(rows), dim]`. The candidates are the memories of
        the largest key overlap, however small.
        """
        rows, overlaps = self._nearest_keys(cue, max(k, candidates))
        if not len(rows) or k <= 0:
            return []
        patterns = vectors_of(rows.tolist())
        completed = patterns @ complete(patterns, cue, self._beta)
        cosines = patterns @ cue
        order = np.lexsort((rows, -cosines, np.arange(len(rows)) != completed.argmax()))[:k]
        return [
            Completion(int(rows[i]), float(completed[i]), float(cosines[i]), float(overlaps[i]))
            for i in order
        ]

    def _nearest_keys(self, cue: Vectors, n: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Rows of the largest overlap with the cue's key, and their overlaps."""
        if not self._keys:
            return np.empty(0, np.int64), np.empty(0)
        rows, keys = np.array([*self._keys], np.int64), np.stack([*self._keys.values()])
        active = np.zeros(self._width, np.uint8)
        active[self.key(cue)] = 1
        shared = active[keys].sum(axis=1, dtype=np.int64)
        order = np.lexsort((rows, -shared))[:n]
        return rows[order], shared[order] / self._winners


def complete(patterns: Vectors, cue: Vectors, beta: float) -> Vectors:
    """The fixed point to which a cue converges among stored patterns (`[m, dim]`, unit norm): `[dim]`, unit norm.

    Modern Hopfield update, `x <- X^T softmax(beta X x)`, X the patterns as rows (Ramsauer et al.: Hopfield
    Networks is All You Need, arXiv 2008.02217, equation 3). The state is brought back to length 1 after each
    step, so that `X x` are cosines; that is mean shift with von Mises-Fisher kernels of width `beta`, which
    climbs the density of the patterns. At large `beta` the state falls into the single nearest pattern, at
    small `beta` into the mean of a group.
    """
    state = cue
    for _ in range(_MAX_STEPS):
        fit = beta * (patterns @ state)
        weights = np.exp(fit - fit.max())
        mean = weights @ patterns
        length = float(np.linalg.norm(mean))
        if length == 0.0:  # the patterns cancel out: no direction
            return state
        state, before = mean / length, state
        if float(np.linalg.norm(state - before)) < _SETTLED:
            break
    return state


@lru_cache(maxsize=4)
def projection(dim: int, width: int, seed: int) -> tuple[NDArray[np.int32], Vectors]:
    """The dimensions that each unit reads and their signs, both `[width, inputs]`.

    Shared by all namespaces; made once a process.
    """
    rng = np.random.default_rng(seed)
    inputs = max(1, round(INPUTS * dim))
    reads = rng.random((width, dim)).argpartition(inputs - 1, axis=1)[:, :inputs].astype(np.int32)
    return reads, (2 * rng.integers(2, size=reads.shape) - 1).astype(np.float32)
