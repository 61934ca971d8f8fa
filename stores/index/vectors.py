"""Types and checks of vectors as arguments."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import InvalidInput

Vectors = NDArray[np.float32]  # one vector `[dim]`, or several `[n, dim]`, of norm 1


def check_vectors(vectors: Any, dim: int) -> Vectors:
    """The vectors as float32 `[n, dim]`. Raises `InvalidInput` if a shape differs or a norm is not 1: a vector of
    another norm would win or lose every search."""
    if not len(vectors):
        return np.empty((0, dim), np.float32)
    try:
        array = np.asarray(vectors, dtype="<f4")
    except (TypeError, ValueError):  # of several shapes, or no numbers
        array = np.empty(0, np.float32)
    if array.shape != (len(vectors), dim):
        raise InvalidInput(f"vector: every one must have shape ({dim},)", param="vector")
    if not (abs(np.vecdot(array, array) - 1.0) < 2e-3).all():  # false for NaN as well
        raise InvalidInput("vector: must have norm 1; normalise it after the embedder", param="vector")
    return array


def clip(cosine: float) -> float:
    """A cosine cut to 0 to 1: rounding can exceed 1, and opposite is no more novel than unrelated."""
    return min(1.0, max(0.0, float(cosine)))


def nearest_earlier(namespaces: Sequence[str], vectors: Vectors) -> list[float]:
    """Highest cosine of each vector to an earlier one of its namespace, in 0 to 1; 0 for the first."""
    found = [0.0] * len(vectors)
    if len(vectors) < 2:
        return found
    for rows in group(namespaces).values():
        cosines = np.tril(vectors[rows] @ vectors[rows].T, k=-1).max(axis=1)
        for row, cosine in zip(rows, cosines, strict=True):
            found[row] = clip(cosine)
    return found


def group(namespaces: Iterable[str]) -> dict[str, list[int]]:
    """The indices of each namespace's items."""
    indices: dict[str, list[int]] = {}
    for i, namespace in enumerate(namespaces):
        indices.setdefault(namespace, []).append(i)
    return indices
