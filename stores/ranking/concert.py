"""Concert weight: the weight of a memory from its recency, similarity and novelty.

    w_i = alpha r_i + beta s_i + gamma n_i        if s_i >= floor, else 0
    r_i = exp(-(now - t_i) / tau)                 recency, 1 just now
    s_i = cosine of memory i to the query         similarity
    n_i = 1 - max_j cos(i, j), j other than i     novelty

All functions are pure, over arrays of n memories.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.errors import InvalidInput

Weights = NDArray[np.float64]
BLOCK = 1024  # rows of the pairwise cosines held at once by `novelty`


@dataclass(frozen=True, slots=True, kw_only=True)
class Concert:
    """The constants of the weight; `tau_s` in seconds."""

    alpha: float = 0.35
    beta: float = 0.50
    gamma: float = 0.08
    tau_s: float = 6 * 3600.0
    floor: float = 0.15

    def __post_init__(self) -> None:
        if not self.tau_s > 0.0:
            raise InvalidInput(f"concert tau = {self.tau_s}: must be above 0 seconds", param="tau_s")
        for name in ("alpha", "beta", "gamma"):
            if not getattr(self, name) >= 0.0:
                raise InvalidInput(f"concert {name} = {getattr(self, name)}: must be at least 0", param=name)


def recency(times: ArrayLike, now: float, tau_s: float) -> Weights:
    """exp(-(now - t) / tau), `[n]` in 0 to 1, of times in seconds `[n]`; a future time counts as now."""
    ages = np.maximum(0.0, now - np.asarray(times, np.float64))
    return np.exp(-ages / tau_s)


def novelty(vectors: ArrayLike, others: ArrayLike | None = None) -> Weights:
    """1 - highest cosine, `[n]` in 0 to 1, of unit vectors `[n, dim]` to `others` `[m, dim]`, or to each
    other if none are given. Without anything to compare with it is 1."""
    rows = np.asarray(vectors, np.float32)
    columns = rows if others is None else np.asarray(others, np.float32)
    highest = np.zeros(len(rows))
    if not len(rows) or not len(columns):
        return 1.0 - highest
    for start in range(0, len(rows), BLOCK):
        cosines = rows[start : start + BLOCK] @ columns.T
        if others is None:
            indices = np.arange(len(cosines))
            cosines[indices, start + indices] = -np.inf
        highest[start : start + BLOCK] = cosines.max(axis=1)
    return 1.0 - np.clip(highest, 0.0, 1.0)


def weights(
    similarity: ArrayLike, recency: ArrayLike, novelty: ArrayLike, concert: Concert | None = None
) -> Weights:
    """alpha r + beta s + gamma n, `[n]`, from three arrays `[n]`; 0 where similarity is below the floor."""
    chosen = concert or Concert()
    similar = np.asarray(similarity, np.float64)
    total = (
        chosen.alpha * np.asarray(recency, np.float64)
        + chosen.beta * similar
        + chosen.gamma * np.asarray(novelty, np.float64)
    )
    return np.where(similar >= chosen.floor, total, 0.0)


def bias_vector(weights: ArrayLike, values: ArrayLike) -> NDArray[np.float32]:
    """sum_i w_i v_i / sum_i w_i, `[dim]`, of weights `[n]` and value vectors `[n, dim]`; zeros if no
    weight is above 0."""
    chosen = np.asarray(weights, np.float64)
    vectors = np.asarray(values, np.float64)
    largest = chosen.max(initial=0.0)
    if not largest > 0.0:
        return np.zeros(vectors.shape[-1], np.float32)
    shares = chosen / largest  # so that a sum of the smallest numbers does not vanish
    return (shares @ vectors / shares.sum()).astype(np.float32)
