"""What a shard may do while the layout changes around it: serve, wait, or end. Independent of Ray.

    building    filled by a reshard; not in the layout yet
    serving     in the layout
    held        in the layout, a reshard copies the rest: writes wait
    closed      in the layout, the reshard is about to switch: reads wait too
    ended       the layout is another one: the shard's data is removed

Building, held and closed are leases. A reshard that is killed or stopped no longer renews them; the first shard to
notice removes the reshard's name from the layout's record, after which the reshard cannot switch any more, and all
shards return to the phase that the record implies. So callers wait for a bounded time, and no write is accepted by a
layout that is about to be replaced.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum

from actors.layout.layout import LayoutRecord, ShardLayout
from common.errors import Conflict, NotReady

RECORD_AGAIN_S = 1.0  # after the record could not be read


class Phase(StrEnum):
    BUILDING = "building"
    SERVING = "serving"
    HELD = "held"
    CLOSED = "closed"
    ENDED = "ended"


class PhaseGuard:
    """The phase of one shard of `generation`. Safe for many threads.

    `ended(layout)` is called once, when the record has a layout that this shard does not belong to.
    """

    def __init__(
        self,
        record: LayoutRecord,
        generation: int,
        ended: Callable[[ShardLayout], None],
        *,
        lease_s: float,
    ) -> None:
        self._record, self.generation, self._ended, self._lease_s = record, generation, ended, lease_s
        self._changed = threading.Condition()
        self._running: Counter[str] = Counter()
        self._until = 0.0
        self._timer: threading.Timer | None = None
        self.phase = Phase.BUILDING
        self.settle()

    @contextmanager
    def turn(self, generation: int, group: str) -> Iterator[None]:
        """Context of a client's call of the group "write", "read" or "control".

        Raises `NotReady` with code "moved" if the caller has another layout than this shard, and with "held" if the
        call has to wait.
        """
        with self._changed:
            if generation == self.generation and self.phase is Phase.BUILDING:
                self.settle()  # a client knows this layout, so the switch is done
            if generation != self.generation or self.phase in (Phase.BUILDING, Phase.ENDED):
                raise NotReady(
                    f"this shard is of generation {self.generation} ({self.phase}), the call of {generation}",
                    code="moved",
                )
            if self.phase is Phase.CLOSED or (self.phase is Phase.HELD and group == "write"):
                raise NotReady("the store is being resharded; send it again", code="held")
            self._running[group] += 1
        try:
            yield
        finally:
            with self._changed:
                self._running[group] -= 1
                self._changed.notify_all()

    def hold(self, moving: str, *, reads: bool) -> None:
        """Make writes wait, and with `reads` everything; returns when none is running any more.

        Called repeatedly, since it is a lease. Raises `Conflict` if `moving` has lost its right to switch.
        """
        with self._changed:
            found = self._record.read()
            if self.phase in (Phase.BUILDING, Phase.ENDED) or found is None or found.moving != moving:
                raise Conflict(f"reshard {moving} has taken too long and lost its right to switch")
            self.phase = Phase.CLOSED if reads else Phase.HELD
            self._renew()
            groups = ("write", "read") if reads else ("write",)
            if not self._changed.wait_for(lambda: not any(map(self._running.get, groups)), self._lease_s / 2):
                raise NotReady(f"calls that run do not end within {self._lease_s / 2:g} s")

    def keep(self) -> None:
        """Renew the lease of a shard that is being built. Raises `Conflict` if it has expired."""
        with self._changed:
            if self.phase is not Phase.BUILDING:
                raise Conflict(f"this shard is {self.phase}, not building")
            self._renew()

    def settle(self, *, expired: bool = False) -> Phase:
        """Enter the phase that the record implies. `expired`: the lease ran out, so remove the reshard's right to
        switch."""
        with self._changed:
            if self.phase is Phase.ENDED:
                return self.phase
            found = self._record.read()
            while expired and found is not None and found.moving:
                self._record.swap(found, replace(found, moving=None))
                found = self._record.read()
            if found is None:
                raise NotReady("the store has no layout; start it first")
            if found.generation == self.generation:
                self.phase = Phase.CLOSED if found.moving else Phase.SERVING
            elif found.generation < self.generation and not expired:
                self.phase = Phase.BUILDING
            else:
                self.phase = Phase.ENDED
                self._ended(found)
            if self.phase in (Phase.BUILDING, Phase.CLOSED):
                self._renew()
            self._changed.notify_all()
            return self.phase

    def _renew(self) -> None:
        self._until = time.monotonic() + self._lease_s
        if self._timer is None:
            self._watch(self._lease_s)

    def _watch(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True
        self._timer.start()

    def _expire(self) -> None:
        with self._changed:
            self._timer = None
            if self.phase in (Phase.SERVING, Phase.ENDED):
                return
            left = self._until - time.monotonic()
            if left > 0:
                self._watch(left)
                return
            try:
                self.settle(expired=True)
            except (OSError, NotReady):  # a record that cannot be read now decides nothing
                self._watch(RECORD_AGAIN_S)
