"""One shard as a Ray actor: named, detached, and restored from its log after a kill."""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import ray

from actors.layout.layout import ShardLayout
from actors.layout.records import beside_record, keys_record, layout_record, publish, shards_folder
from actors.shards.admission import Admission
from actors.shards.calls import GROUP_OF, Call
from actors.shards.shard_phase import Phase, PhaseGuard
from common.config import Config
from common.errors import Conflict, NotReady, SharpwaveError
from common.types import Json, Page
from stores.shard.shard import Shard
from stores.transfer.reshard import Changes
from stores.writes.rewrite import Key

MAX_PENDING_CALLS = 1000  # of one client to one shard, before `Overloaded`
FORMER_OWNER_S = 10.0  # a killed process may hold the log for a moment longer
CONTROL_THREADS = 4
REFUSALS = 10_000  # calls of a group that may be inside at once: enough to refuse each one explicitly
STEP_DOWN_S = 0.5

logger = logging.getLogger(__name__)


@ray.remote(
    max_restarts=-1,
    max_task_retries=0,  # ShardedStore repeats calls itself, within a deadline
    max_pending_calls=MAX_PENDING_CALLS,
    concurrency_groups={"write": REFUSALS, "read": REFUSALS, "control": REFUSALS},
)
class StoreShard:
    """One `Shard` in a process of its own. Arguments and answers are `Shard`'s.

    Calls are admitted in an event loop and run in threads, a pool for each group, so that a call beyond the limit is
    refused at once. A log that cannot be opened does not kill the actor: every call raises the reason and tries again.
    """

    def __init__(self, config: Config, generation: int, folder: str, number: int, dim: int) -> None:
        self._config, self._number, self._dim = config, number, dim
        self._folder, self._path = folder, shards_folder(config) / folder
        self._record = layout_record(config)
        self._opening = threading.Lock()
        self._opened: Shard | None = None
        store = config.store
        self._queues = {
            "write": Admission("write", store.write_threads, store.max_waiting),
            "read": Admission("read", store.read_threads, store.max_waiting),
            "control": Admission("control", CONTROL_THREADS, REFUSALS),
        }
        self._phase_guard = PhaseGuard(
            layout_record(config), generation, self._end, lease_s=store.reshard_lease_s
        )
        with suppress(SharpwaveError):
            self._shard()

    # A client's calls; see `calls.py` for what each of them takes

    @ray.method(concurrency_group="write")
    async def write(self, call: Call, method: str, *args: Any, **options: Any) -> Any:
        return await self._serve(call, method, args, options)

    @ray.method(concurrency_group="read")
    async def read(self, call: Call, method: str, *args: Any, **options: Any) -> Any:
        return await self._serve(call, method, args, options)

    @ray.method(concurrency_group="control")
    async def control(self, call: Call, method: str, *args: Any, **options: Any) -> Any:
        return await self._serve(call, method, args, options)

    async def _serve(self, call: Call, method: str, args: Sequence[Any], options: Json) -> Any:
        group = GROUP_OF[method]
        with self._phase_guard.turn(call.generation, group):
            work = partial(self._do, method, args, options)
            try:
                return await self._queues[group].run(call.deadline, work)
            except (Conflict, NotReady) as error:
                if error.code in ("fenced", "shard_failed"):
                    self._step_down(error)
                raise

    def _step_down(self, error: SharpwaveError) -> None:
        """End the process after the answer has been sent. Another process has taken the log over, and taking it back
        would never end; or memory no longer matches the log. If this is still the shard's actor, Ray restarts it
        from the log."""
        logger.error("shard %s ends: %s", self._number, error.message)
        threading.Timer(STEP_DOWN_S, os._exit, [1]).start()

    def _do(self, method: str, args: Sequence[Any], options: Json) -> Any:
        *part, name = method.split(".")
        owner = getattr(self._shard(), part[0]) if part else self._shard()
        return getattr(owner, name)(*args, **options)

    # The life of a shard; called by start and reshard

    @ray.method(concurrency_group="control")
    async def about(self) -> Json:
        """Identity of the actor: `{path, dim, pid, node, phase}`; answers once the log is open."""
        return await self._manage(self._about)

    @ray.method(concurrency_group="control")
    async def hold(self, moving: str, reads: bool) -> None:
        """See `PhaseGuard.hold`."""
        await self._manage(partial(self._phase_guard.hold, moving, reads=reads))

    @ray.method(concurrency_group="control")
    async def keep(self) -> None:
        """See `PhaseGuard.keep`."""
        await self._manage(self._phase_guard.keep)

    @ray.method(concurrency_group="control")
    async def settle(self) -> str:
        """See `PhaseGuard.settle`."""
        return str(await self._manage(self._phase_guard.settle))

    @ray.method(concurrency_group="control")
    async def changes(self, after: int, limit: int) -> Changes:
        """See `Reshard.changes`."""
        return await self._manage(lambda: self._shard().reshard.changes(after, limit))

    @ray.method(concurrency_group="control")
    async def rows(self, keys: Sequence[Key]) -> Page:
        """See `Reshard.rows`."""
        return await self._manage(lambda: self._shard().reshard.rows(keys))

    @ray.method(concurrency_group="control")
    async def remembered(self) -> Any:
        """See `Reshard.remembered`."""
        return await self._manage(lambda: self._shard().reshard.remembered())

    @ray.method(concurrency_group="control")
    async def totals(self) -> Json:
        """`Shard.counts`, whatever the phase."""
        return await self._manage(lambda: self._shard().counts())

    @ray.method(concurrency_group="control")
    async def adopt(self, rows: Page, gone: Sequence[Key], turns: Page, op_id: str) -> Json:
        """See `Reshard.adopt`; only while the shard is being built."""
        return await self._manage(partial(self._build, "adopt", rows, gone, turns, op_id=op_id))

    @ray.method(concurrency_group="control")
    async def remember(self, *args: Any) -> None:
        """See `Reshard.remember`; only while the shard is being built."""
        await self._manage(partial(self._build, "remember", *args))

    def _build(self, method: str, *args: Any, **options: Any) -> Any:
        self._phase_guard.keep()
        return getattr(self._shard().reshard, method)(*args, **options, now=time.time())

    async def _manage(self, work: Callable[[], Any]) -> Any:
        return await self._queues["control"].run(time.time() + self._config.serve.deadline_s, work)

    def _about(self) -> Json:
        self._shard()
        return {
            "path": str(self._path),
            "dim": self._dim,
            "pid": os.getpid(),
            "node": ray.get_runtime_context().get_node_id(),
            "phase": str(self._phase_guard.phase),
        }

    def _shard(self) -> Shard:
        with self._opening:
            if self._phase_guard.phase is Phase.ENDED:
                raise NotReady("this shard's data has moved", code="moved")
            if self._opened is None:
                self._opened = Shard(
                    self._path,
                    number=self._number,
                    dim=self._dim,
                    config=self._config.store,
                    wait_s=FORMER_OWNER_S,
                )
            return self._opened

    def _end(self, layout: ShardLayout) -> None:
        """Another layout is in force: publish it to clients, and remove this shard's data."""
        publish(self._config, layout)
        with self._opening:
            if self._opened is not None:
                self._opened.close()
            for record in (self._record, beside_record(self._config), keys_record(self._config)):
                if record is not None:
                    record.drop(self._folder)
