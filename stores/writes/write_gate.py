"""The write gate: S = a surprise + b novelty + c reward + d pin, stored if S > tau or pinned.

Surprise comes with the memory, as a number of 0 or more in `context.surprise` (for instance the nats a token that a
model needed for its text). Never a silent drop: score and reason go back to the caller.
"""

import math
from typing import Any

from common.config import StoreConfig
from stores.memory.memory import Memory


def decide(memory: Memory, novelty: float, config: StoreConfig) -> tuple[bool, dict[str, Any]]:
    """Whether the memory is stored, and the `{score, reason}` returned to the caller."""
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
    """`context.surprise` if it is a finite number above 0, else 0."""
    value = memory.context.get("surprise")
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return max(0.0, float(value))
    return 0.0
