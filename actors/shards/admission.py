"""A bounded queue in front of a shard's threads. Independent of Ray."""

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from common.errors import NotReady, Overloaded

Answer = TypeVar("Answer")
LONGEST_HINT_S = 30
SMOOTHING = 0.1  # weight of the newest call in the average time of one


class Admission:
    """`threads` calls run, `max_waiting` wait, one more is refused. For one event loop."""

    def __init__(self, name: str, threads: int, max_waiting: int) -> None:
        self._name, self._threads, self._max_waiting = name, threads, max_waiting
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._inside = 0
        self._call_s = 0.0

    async def run(self, deadline: float, work: Callable[[], Answer]) -> Answer:
        """The answer of `work`, run in a thread. `deadline` is in seconds by `time.time`.

        Raises `Overloaded` at once if too many wait, and `NotReady` (code "late") if the deadline passed before a
        thread was free: then nothing was done.
        """
        if self._inside >= self._threads + self._max_waiting:
            raise Overloaded(
                f"{self._max_waiting} {self._name} calls wait for this shard (store.max_waiting); "
                f"retry in {self.hint_s()} s",
                retry_after_s=self.hint_s(),
            )
        self._inside += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._pool, partial(self._in_time, deadline, work)
            )
        finally:
            self._inside -= 1

    def hint_s(self) -> int:
        """Whole seconds until the present calls will be done, at the rate of the last ones."""
        return min(LONGEST_HINT_S, max(1, math.ceil(self._inside * self._call_s / self._threads)))

    def _in_time(self, deadline: float, work: Callable[[], Answer]) -> Answer:
        started = time.time()
        if started > deadline:
            raise NotReady(
                f"a {self._name} call waited past its deadline and was dropped; send it again", code="late"
            )
        try:
            return work()
        finally:
            self._call_s += SMOOTHING * (time.time() - started - self._call_s)
