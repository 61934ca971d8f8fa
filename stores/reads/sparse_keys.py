"""The episodic store: sparse keys that keep episodes apart, recall from a partial cue, and strength.

**Pattern separation.** A vector is projected on many units, each of which reads a few of its dimensions with
random signs; the k most active units are the memory's key (k-winners-take-all). Similar vectors get keys that
overlap far less than their cosine suggests. The scheme is that of the fly's olfactory system (Dasgupta, Stevens,
Navlakha: A neural algorithm for a fundamental computing problem, Science 2017).

**Pattern completion.** The memories whose keys overlap the cue's are the candidates, and the cue falls into one of
them by the update of the modern Hopfield network: see `complete`. It tells which stored memory a damaged vector came
from; it is no better search: for sentences that lost half their words, the plain cosine over all memories finds as
many.

**Decay.** Strength starts at 1, halves every half-life, and each use gives back a share of what was lost. It says
which memories are `weakest`; the ranking of a search does not use it, and nothing here deletes a memory.

Which memories may be written at all is `gate`'s decision.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from common.errors import InvalidInput
from stores.index.vectors import Vectors

Key = NDArray[np.uint16]  # names of units fit 16 bits: see `store.key_width`
Keys = NDArray[np.uint16]

SEED = 1337
INPUTS = 0.1  # share of the dimensions that one unit reads
CANDIDATES = 64
_SETTLED = 1e-5  # a step of the state shorter than this ends the completion
_MAX_STEPS = 64


@dataclass(frozen=True, slots=True)
class Recalled:
    """`completed` is the cosine to the completed cue, `cosine` to the cue as given, `overlap` the share of
    the key's units that the cue's key has too."""

    row: int
    completed: float
    cosine: float
    overlap: float


class Episodes:
    """Keys and strengths of the memories of one namespace, by row (the record's `seq`).

    Vectors stay in the dense index: recall reads those of its candidates through `vectors_of`.
    """

    def __init__(
        self,
        dim: int,
        *,
        width: int = 4096,
        winners: int = 64,
        beta: float = 32.0,
        half_life_s: float = 30 * 86_400.0,
        refresh: float = 0.5,
        seed: int = SEED,
    ) -> None:
        if winners > width:
            raise InvalidInput(f"key_winners = {winners}: must be at most key_width, {width}: lower it")
        self._width = width
        self._reads, self._signs = projection(dim, width, seed)
        self._winners = winners
        self._beta = beta
        self._half_life_s = half_life_s
        self._refresh = refresh
        self._slots: dict[int, int] = {}  # row -> place in the arrays, which have no gaps
        self._rows = np.empty(0, np.int64)
        self._keys: Keys = np.empty((0, winners), np.uint16)
        self._strengths = np.empty(0)  # just after the last use
        self._used = np.empty(0)  # seconds

    def __len__(self) -> int:
        return len(self._slots)

    # Writing

    def add(self, row: int, vector: Vectors, time: float) -> None:
        """A new memory: its vector (`[dim]`, unit norm) becomes a key, its strength is 1."""
        assert row not in self._slots, "a row is added once"
        slot = len(self._slots)
        if slot == len(self._rows):
            self._grow(max(64, 2 * slot))
        self._slots[row] = slot
        self._rows[slot], self._keys[slot] = row, self.key(vector)
        self._strengths[slot], self._used[slot] = 1.0, time

    def remove(self, row: int) -> None:
        """Forget a row: the last one takes its place. One that is not there is passed over."""
        slot = self._slots.pop(row, None)
        if slot is None:
            return
        last = len(self._slots)
        for array in (self._rows, self._keys, self._strengths, self._used):
            array[slot] = array[last]
            array[last] = 0
        if slot != last:
            self._slots[int(self._rows[slot])] = slot

    def touch(self, row: int, time: float) -> None:
        """One use: strength regains a share of what it lost."""
        strength, slot = self.strength(row, time), self._slots[row]
        self._strengths[slot] = strength + self._refresh * (1.0 - strength)
        self._used[slot] = max(time, self._used[slot])

    # Reading

    def strength(self, row: int, now: float) -> float:
        """In 0 to 1; a clock that went back does not strengthen."""
        slot = self._slots[row]
        age_s = max(0.0, now - float(self._used[slot]))
        return float(self._strengths[slot]) * 0.5 ** (age_s / self._half_life_s)

    def weakest(self, n: int, now: float) -> list[tuple[int, float]]:
        """The `n` rows of least strength, weakest first, older rows first among equals."""
        count = len(self)
        # All decay at one rate, so this order holds at any time; a logarithm does not underflow.
        level = np.log2(self._strengths[:count]) + self._used[:count] / self._half_life_s
        order = np.lexsort((self._rows[:count], level))[: max(0, n)]
        return [(row, self.strength(row, now)) for row in map(int, self._rows[order])]

    def key(self, vector: Vectors) -> Key:
        """The units that win, `[winners]`, in ascending order."""
        activity = np.einsum("ui,ui->u", vector[self._reads], self._signs)
        return np.sort(np.argpartition(activity, -self._winners)[-self._winners :]).astype(np.uint16)

    def overlap(self, row: int, other: int) -> float:
        """Share of units that two memories' keys have in common."""
        one, two = (self._keys[self._slots[r]] for r in (row, other))
        return len(np.intersect1d(one, two)) / self._winners

    def recall(
        self,
        cue: Vectors,
        k: int,
        vectors_of: Callable[[Sequence[int]], Vectors],
        *,
        among: Sequence[int] | None = None,
        candidates: int = CANDIDATES,
    ) -> list[Recalled]:
        """The memory nearest to the completed cue, then the others by cosine to the cue as given, `k` in all:
        the completed cue has fallen into one memory and no longer tells the others apart.

        `cue` is `[dim]`, unit norm; `vectors_of(rows)` gives `[len(rows), dim]`; `among` limits the rows.
        The candidates are the memories of the largest key overlap, however small.
        """
        rows, overlaps = self._nearest_keys(cue, among, max(k, candidates))
        if not len(rows) or k <= 0:
            return []
        patterns = vectors_of(rows.tolist())
        completed = patterns @ complete(patterns, cue, self._beta)
        cosines = patterns @ cue
        order = np.lexsort((rows, -cosines, np.arange(len(rows)) != completed.argmax()))[:k]
        return [
            Recalled(int(rows[i]), float(completed[i]), float(cosines[i]), float(overlaps[i])) for i in order
        ]

    def _nearest_keys(
        self, cue: Vectors, among: Sequence[int] | None, n: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Rows of the largest overlap with the cue's key, and their overlaps."""
        if among is None:
            slots = np.arange(len(self))
        else:
            slots = np.array([self._slots[row] for row in among if row in self._slots], np.int64)
        active = np.zeros(self._width, np.uint8)
        active[self.key(cue)] = 1
        shared = active[self._keys[slots]].sum(axis=1, dtype=np.int64)
        order = np.lexsort((self._rows[slots], -shared))[:n]
        return self._rows[slots[order]], shared[order] / self._winners

    def _grow(self, capacity: int) -> None:
        for name in ("_rows", "_keys", "_strengths", "_used"):
            old = getattr(self, name)
            new = np.zeros((capacity, *old.shape[1:]), old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)


def complete(patterns: Vectors, cue: Vectors, beta: float) -> Vectors:
    """The fixed point that a cue falls into among stored patterns (`[m, dim]`, unit norm): `[dim]`, unit norm.

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
        if length == 0.0:  # patterns that cancel out: nowhere to fall
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
