"""The write gate: S = a surprise + b novelty + c reward + d pin, stored where S > tau or where pinned.

Surprise comes with the memory, as a number of 0 or more in `context.surprise` (for instance the nats a token that a
model needed for its text). Never a silent drop: score and reason go back to the caller.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from common.config import StoreConfig
from stores.index import Vectors
from stores.memory import Memory


def decide(memory: Memory, novelty: float, config: StoreConfig) -> tuple[bool, dict[str, Any]]:
    """Is the memory stored, and the `{score, reason}` that goes back to the caller."""
    surprise = surprise_of(memory)
    score = (
        config.gate_surprise * surprise
        + config.gate_novelty * novelty
        + config.gate_reward * memory.reward
        + config.gate_pin * memory.pin
    )
    parts = f"surprise {surprise:g}, novelty {novelty:.3f}, reward {memory.reward:g}"
    parts += f", pin {str(memory.pin).lower()}"
    if config.gate_tau <= 0:
        return True, {"score": score, "reason": f"{parts}: every write is stored"}
    if memory.pin:
        return True, {"score": score, "reason": f"{parts}: pinned"}
    stored = score > config.gate_tau
    rule = f"{'over' if stored else 'not over'} {config.gate_tau:g}"
    return stored, {"score": score, "reason": f"{parts}: {rule}"}


def surprise_of(memory: Memory) -> float:
    """`context.surprise` where it is a number above 0, else 0."""
    value = memory.context.get("surprise")
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return max(0.0, float(value))
    return 0.0


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
