"""Routing of a call to its shard: which layout is in force, which actor, until which deadline."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import PendingCallsLimitExceeded, RayActorError, RayTaskError

from actors.layout.layout import ShardLayout
from actors.layout.placement import Placement
from actors.layout.records import published, shards_folder
from actors.shards.actor import MAX_PENDING_CALLS
from actors.shards.calls import GROUP_OF, Call, cause_of
from actors.shards.processes import handle
from common.config import Config
from common.errors import Conflict, NotReady, Overloaded

Answer = TypeVar("Answer")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
HELD_PAUSE_S = 0.1  # a reshard's last step is short


class Moved(Exception):
    """Raised if the layout has changed: find the shards again."""


class Router:
    """Holds the layout and the shards' handles; looks them up when needed, and again when they change."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._deadline_s = config.serve.deadline_s
        self._layout: ShardLayout | None = None
        self._handles: dict[str, Any] = {}

    async def run(self, operation: Callable[["Route"], Awaitable[Answer]]) -> Answer:
        """The result of `operation` on a route; repeated from the start if the layout changed meanwhile.

        So `operation` must send the same `op_id` each time. Ends within `serve.deadline_s`.
        """
        deadline, pause = time.monotonic() + self._deadline_s, FIRST_PAUSE_S
        while True:
            layout = self._layout or self._load()
            try:
                return await operation(Route(self, layout, deadline, self._deadline_s))
            except Moved:
                if self._load().generation == layout.generation:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise NotReady("the store is being resharded; send it again") from None
                    await asyncio.sleep(min(pause, left))
                    pause = min(2 * pause, LONGEST_PAUSE_S)

    async def on_home(self, namespace: str, method: str, *args: Any, **options: Any) -> Any:
        """The answer of the namespace's home shard, which holds facts, places and keyed memories whole."""

        async def ask(route: Route) -> Any:
            return await route.call(route.placement.home(namespace), method, namespace, *args, **options)

        return await self.run(ask)

    async def on_pick(self, namespace: str, key: str, method: str, *args: Any, **options: Any) -> Any:
        """The answer of the shard that a conversation picks."""

        async def ask(route: Route) -> Any:
            number = route.placement.pick(namespace, key)
            return await route.call(number, method, namespace, key, *args, **options)

        return await self.run(ask)

    async def on_each(self, namespace: str, method: str, *args: Any, **options: Any) -> list[Any]:
        """The answers of each of the namespace's shards."""

        async def ask(route: Route) -> list[Any]:
            return await route.ask(route.placement.asked([namespace]), method, namespace, *args, **options)

        return await self.run(ask)

    async def on_all(self, method: str, *args: Any, **options: Any) -> list[Any]:
        """The answers of all shards, by number."""

        async def ask(route: Route) -> list[Any]:
            return await route.ask(route.placement.numbers, method, *args, **options)

        return await self.run(ask)

    def _load(self) -> ShardLayout:
        layout = published(self.config)
        if layout.generation == 1 and self.config.store.shards > layout.shards:
            raise NotReady(
                f"{layout.actor_name(layout.shards)} is not running: {shards_folder(self.config)} has "
                f"{layout.shards} shards, not store.shards = {self.config.store.shards}"
            )
        if self._layout is None or layout.generation != self._layout.generation:
            self._layout, self._handles = layout, {}
        return layout

    @property
    def generation(self) -> int:
        """Generation of the layout as known here: the one in force, or an earlier one."""
        return (self._layout or self._load()).generation

    def find(self, layout: ShardLayout, number: int) -> Any:
        name = layout.actor_name(number)
        if name not in self._handles:
            try:
                self._handles[name] = handle(name)
            except ValueError:
                if self._load().generation != layout.generation:
                    raise Moved from None
                raise NotReady(f"{name} is not running; start the store first") from None
        return self._handles[name]

    def forget(self, layout: ShardLayout, number: int) -> None:
        self._handles.pop(layout.actor_name(number), None)


class Route:
    """Calls under one layout, all before one deadline."""

    def __init__(self, router: Router, layout: ShardLayout, deadline: float, deadline_s: float) -> None:
        self._router, self._layout, self._deadline, self._deadline_s = router, layout, deadline, deadline_s
        self.placement: Placement = layout.placement
        self.generation = layout.generation

    @property
    def folder(self) -> Path:
        """The folder of a shard of this layout."""
        return (shards_folder(self._router.config) / self._layout.folder(0)).parent

    async def ask(self, numbers: Iterable[int], method: str, *args: Any, **options: Any) -> list[Any]:
        """Call several shards; answers in the given order."""
        return await together(self.call(number, method, *args, **options) for number in numbers)

    async def call(self, number: int, method: str, *args: Any, **options: Any) -> Any:
        """Call a shard until it answers or the deadline passes.

        A shard that is gone is called again until then; after that raises `NotReady`. Raises `Moved` if another
        layout is in force, `Overloaded` if too many calls wait, and the shard's own errors.
        """
        name = self._layout.actor_name(number)
        pause, problem = FIRST_PAUSE_S, "no answer"
        while (left := self._deadline - time.monotonic()) > 0:
            try:
                remote = getattr(self._router.find(self._layout, number), GROUP_OF[method])
                call = Call(self._layout.generation, time.time() + left)
                return await asyncio.wait_for(remote.remote(call, method, *args, **options), left)
            except RayTaskError as error:
                problem = self._again(number, cause_of(error))
            except PendingCallsLimitExceeded:
                raise Overloaded(f"{name} has {MAX_PENDING_CALLS} calls waiting") from None
            except RayActorError as error:  # restarting, or a new actor of this name has to be found
                if error.actor_init_failed:
                    raise NotReady(f"{name} cannot start: {error}") from error
                problem = str(error).strip().splitlines()[0]
                self._router.forget(self._layout, number)
            except TimeoutError:
                break
            longest = HELD_PAUSE_S if problem == "held" else LONGEST_PAUSE_S
            await asyncio.sleep(min(pause, longest, max(0.0, self._deadline - time.monotonic())))
            pause = 2 * pause
        raise NotReady(f"{name}.{method}: {problem} within {self._deadline_s:g} s; send it again")

    def kill(self, number: int) -> None:
        """End a shard's process, even a stuck one; Ray restarts it."""
        ray.kill(self._router.find(self._layout, number), no_restart=False)

    def _again(self, number: int, error: Exception) -> str:
        """Why the call must be sent again after an error of the shard; raises the error if it must not."""
        if isinstance(error, NotReady) and error.code == "moved":
            raise Moved from None
        if isinstance(error, NotReady) and error.code in ("held", "late"):
            return error.code
        if isinstance(error, Conflict) and error.code == "fenced":  # its successor is to be asked
            self._router.forget(self._layout, number)
            return error.message
        raise error from None


async def together(calls: Iterable[Awaitable[Answer]]) -> list[Answer]:
    """All answers, in order. An error is raised only when every call has ended, so that nothing of an operation is
    still running when it is sent again."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    failed = [answer for answer in answers if isinstance(answer, BaseException)]
    if failed:  # an error of the call itself goes before "moved", which would only repeat it
        raise min(failed, key=lambda error: isinstance(error, Moved))
    return [answer for answer in answers if not isinstance(answer, BaseException)]
