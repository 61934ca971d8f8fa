"""What a store does with a fact or an observation, decided before anything is written."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """The fact `id` ends at `valid_to` (seconds), because `by` contradicts it."""

    id: str
    valid_to: float
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`insert` it, `aggregate` it into the memory `into`, do nothing since `into` has it under this id
    (`existing`), or `route` it to the episodic store.

    An inserted memory may close older facts (or be closed by a newer one that was written before it) and may
    contradict observations, which then no longer count. `reason` is returned to the caller.
    """

    action: Literal["insert", "aggregate", "existing", "route"]
    reason: str
    into: str | None = None
    confidence: float | None = None
    closes: tuple[Closing, ...] = ()
    contradicts: tuple[str, ...] = ()
    merges: tuple[str, ...] = ()
