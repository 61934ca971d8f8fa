"""The write gate: S = a novelty + b reward + c pin, stored where S > tau. Never a silent drop."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from common.config import StoreConfig
from stores.index import Vectors
from stores.memory import Memory


def decide(memory: Memory, novelty: float, config: StoreConfig) -> tuple[bool, dict[str, Any]]:
    """Is the memory stored, and the `{score, reason}` that goes back to the caller."""
    score = config.gate_novelty * novelty + config.gate_reward * memory.reward + config.gate_pin * memory.pin
    parts = f"novelty {novelty:.3f}, reward {memory.reward:g}, pin {str(memory.pin).lower()}"
    if config.gate_tau <= 0:
        return True, {"score": score, "reason": f"{parts}: every write is stored"}
    stored = score > config.gate_tau
    rule = f"{'over' if stored else 'not over'} {config.gate_tau:g}"
    return stored, {"score": score, "reason": f"{parts}: {rule}"}


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
    """Places of each namespace's items."""
    places: dict[str, list[int]] = {}
    for i, namespace in enumerate(namespaces):
        places.setdefault(namespace, []).append(i)
    return places


def clip(cosine: float) -> float:
    """Rounding can push a cosine over 1; being opposite is no more novel than being unrelated."""
    return min(1.0, max(0.0, float(cosine)))
