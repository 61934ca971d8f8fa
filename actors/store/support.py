"""Memories that were derived from others: are those still there, and do they hold?

A memory names its sources in `context.derived_from`, a list of ids. If one of them is erased, has ended, or has lost a
source of its own, the memory is unsupported: answers name those sources in `unsupported`, and chat and training leave
it out. This is looked up when memories are read, so that a source which is told again supports them again.
"""

import time
from collections.abc import Iterable, Mapping, Sequence

from actors.store.router import Router
from common.types import Json
from stores.memory.memory import sources_of
from stores.memory.period import Period

DEEPEST = 16  # steps from a memory to its sources, theirs, and so on


async def mark_unsupported(
    router: Router, namespace: str, memories: Sequence[Json], period: Period | None = None
) -> None:
    """Add `unsupported` (ids of sources) to those memories, as answers show them, that have lost one. A source must
    hold at some time of `period` (None: now)."""
    asked = {source for memory in memories for source in sources_of(memory)}
    if not asked:
        return
    now = time.time()
    known = await _known(router, namespace, asked, period or (now, now))
    lost: dict[str, bool] = {}
    for memory in memories:
        if missing := [source for source in sources_of(memory) if _is_lost(source, known, lost)]:
            memory["unsupported"] = missing


async def _known(
    router: Router, namespace: str, asked: Iterable[str], period: Period
) -> dict[str, list[str] | None]:
    """For each id of a memory that exists its sources, or None if it does not hold; those of the sources, too."""
    known: dict[str, list[str] | None] = {}
    left, seen = {*asked}, {*asked}
    for _ in range(DEEPEST):
        if not left:
            break
        for found in await router.on_each(namespace, "memories.support", sorted(left), period=period):
            known |= found
        left = {source for id in left for source in known.get(id) or ()} - seen
        seen |= left
    return known


def _is_lost(id: str, known: Mapping[str, list[str] | None], lost: dict[str, bool]) -> bool:
    """Whether a source is gone, does not hold, or has lost a source. Sources that depend on each other in a circle
    support each other."""
    if id not in lost:
        lost[id] = False  # while its own sources are looked at
        sources = known.get(id)
        lost[id] = sources is None or any([_is_lost(source, known, lost) for source in sources])
    return lost[id]
