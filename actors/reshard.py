"""Change the number of shards of a store while it serves.

1. `build`: the next generation's shards start empty, beside the ones that serve.
2. `copy`: the old shards' logs are read in batches and their memories written to the new ones; repeated from
   the last position until little is left. Reads and writes go on at the old shards.
3. `hold`: writes wait while the rest is copied, with the results that make retried calls take effect only once.
4. `switch`: reads wait too, and the layout's record is swapped, which makes the new layout effective.
5. `end`: clients are notified, the old shards end and remove their files.

A process that dies in steps 1 to 3 leaves the old layout, in 5 the new one: leases expire
(`shards/shard_phase.py`), and the shards of the layout not in force remove themselves, or the next start does.
"""

import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from threading import Event, Thread
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.layout.layout import LayoutRecord, ShardLayout
from actors.layout.records import layout_record, publish
from actors.shards.calls import cause_of
from actors.shards.processes import clean, handle, start_generation
from common.config import Config
from common.errors import Conflict, InvalidInput, NotReady, SharpwaveError
from common.types import Json
from stores.log.base import RESULTS_KEPT
from stores.transfer.reshard import Changes
from stores.writes.kept_results import Result, Uses
from stores.writes.rewrite import Key, key_of

BATCH = 500  # records of an old log, and memories of a new one, at once
LITTLE = 2_000  # records that may be left to copy while writes wait
MOST_ROUNDS = 20  # of copying while writes go on: a store written faster than it is copied is held anyway
USES_AT_ONCE = 1_000
NOT_COUNTERS = ("memories", "seq", "epoch")  # among the numbers of `Shard.counts`

logger = logging.getLogger(__name__)

Say = Callable[[str], None]


def reshard(config: Config, to: int, *, spread: int | None = None, say: Say = lambda message: None) -> Json:
    """Divide the running store into `to` shards, `spread` (default: `store.spread`) of them a namespace.

    Returns `{shards, spread, generation, memories, seconds, held_s}`, where `held_s` is how long writes
    waited. Raises `Conflict` if another reshard is running or has taken over, `NotReady` if the store is
    not running or a shard was lost for too long: then the old layout stays in force.
    """
    if not 1 <= to <= 1024:
        raise InvalidInput(f"shards = {to}: must be 1 to 1024", param="shards")
    record = layout_record(config)
    with record.exclusive():
        old = record.read()
        if old is None:
            raise NotReady("the store has no layout; start it first")
        if old.moving:  # left by a reshard that died: no other can be running now
            record.swap(old, replace(old, moving=None))
            old = replace(old, moving=None)
        clean(config, old)
        new = ShardLayout(
            shards=to, spread=min(spread or config.store.spread, to), generation=old.generation + 1
        )
        return _Reshard(config, record, old, new, say).run()


class _Reshard:
    def __init__(
        self, config: Config, record: LayoutRecord, old: ShardLayout, new: ShardLayout, say: Say
    ) -> None:
        self._config, self._record, self._old, self._new, self._say = config, record, old, new, say
        self._name = uuid.uuid4().hex
        self._moving = replace(old, moving=self._name)
        self._sources = [_Remote(config, old, number) for number in old.placement.numbers]
        self._targets: list[_Remote] = []
        self._marks = [0] * old.shards
        self._batches = 0
        self._gone: dict[Key, None] = {}
        self._uses = Uses()
        self._results: deque[Result] = deque(maxlen=RESULTS_KEPT)
        self._writes_wait = self._reads_wait = False

    def run(self) -> Json:
        started = time.monotonic()
        try:
            self._build()
            with _Beat(self._beat, self._config.store.reshard_lease_s / 5):
                self._copy()
                held = time.monotonic()
                self._hold()
                memories = self._check()
            self._switch()
        except BaseException:
            self._undo()
            raise
        self._end()
        done = time.monotonic()
        return {
            "shards": self._new.shards,
            "spread": self._new.spread,
            "generation": self._new.generation,
            "memories": memories,
            "seconds": done - started,
            "held_s": done - held,
        }

    def _build(self) -> None:
        self._say(f"starting {self._new.shards} shards of generation {self._new.generation}")
        dim = self._sources[0].call("about")["dim"]
        start_generation(self._config, self._new, dim)
        self._targets = [_Remote(self._config, self._new, number) for number in self._new.placement.numbers]
        for source in self._sources:
            self._note(*source.call("remembered"))

    def _copy(self) -> None:
        """Copy everything, then repeatedly what changed meanwhile, until that is little."""
        for _ in range(MOST_ROUNDS):
            before = sum(self._marks)
            for number in self._old.placement.numbers:
                self._copy_from(number)
            copied = sum(self._marks) - before
            self._say(f"copied {copied} log records")
            if copied <= LITTLE:
                return

    def _copy_from(self, number: int) -> None:
        """Copy from one shard's log up to its present end."""
        source = self._sources[number]
        waiting: _Started | None = source.start("changes", self._marks[number], BATCH)
        while waiting is not None:
            changes: Changes = source.finish(waiting)
            self._marks[number] = changes.upto
            waiting = source.start("changes", changes.upto, BATCH) if changes.more else None
            self._gone.update(dict.fromkeys(changes.gone))
            self._note(changes.uses, changes.results)
            self._place(changes.rows, [], changes.turns)

    def _place(self, rows: Iterable[Json], gone: Iterable[Key], turns: Iterable[Json] = ()) -> None:
        """Write rows and turns to the new shards that they belong to, and erase there what is gone."""
        placement = self._new.placement
        routed: dict[int, tuple[list[Json], list[Key], list[Json]]] = {}
        for namespace, id in gone:
            for number in placement.lookups(namespace, id):
                routed.setdefault(number, ([], [], []))[1].append((namespace, id))
        for row in rows:
            owner = placement.owner(*key_of(row), row["memory"]["kind"])
            routed.setdefault(owner, ([], [], []))[0].append(row)
        for kept in turns:
            picked = placement.pick(kept["namespace"], kept["conversation"])
            routed.setdefault(picked, ([], [], []))[2].append(kept)
        started = []
        for number, batch in routed.items():
            self._batches += 1
            call = self._targets[number].start("adopt", *batch, f"{self._name}/{self._batches}")
            started.append((number, call))
        for number, call in started:
            self._targets[number].finish(call)

    def _hold(self) -> None:
        """Writes wait from here on. A memory gone from one old shard may exist on another, so it is looked up when
        nothing changes any more."""
        if not self._record.swap(self._old, self._moving):
            raise Conflict("the layout changed while the store was being copied; try again")
        self._say("holding writes")
        self._writes_wait = True
        self._beat()
        for number in self._old.placement.numbers:
            self._copy_from(number)
        keys = [*self._gone]
        for start in range(0, len(keys), BATCH):
            some = keys[start : start + BATCH]
            self._place((row for source in self._sources for row in source.call("rows", some)), some)
        self._remember()

    def _note(self, uses: Iterable[tuple[str, Json]], results: Iterable[Result]) -> None:
        """Collect uses, results and counters that retried calls will need."""
        self._uses.add(uses)
        self._results.extend(results)

    def _remember(self) -> None:
        """Pass the last uses to every new shard, each result to the shard that receives its retry, and the counters to
        the first shard."""
        uses, results = [*self._uses.by_op.items()], [*self._results]
        totals = [source.call("totals") for source in self._sources]
        names = [name for name, value in totals[0].items() if _counts(name, value)]
        counters = {name: sum(total.get(name, 0) for total in totals) for name in names}
        longest = max(len(uses), len(results), 1)
        for part, start in enumerate(range(0, longest, USES_AT_ONCE)):
            some = slice(start, start + USES_AT_ONCE)
            for number, target in enumerate(self._targets):
                counts = counters if (part, number) == (0, 0) else {}
                kept = [result for result in results[some] if self._home_of(result) == number]
                target.call("remember", part, uses[some], kept, counts)

    def _home_of(self, result: Result) -> int:
        placement = self._new.placement
        if result.kind is None:
            return placement.pick(result.namespace, result.name)
        return placement.owner(result.namespace, result.name, result.kind)

    def _check(self) -> int:
        """Check that both layouts hold equally many memories of every namespace; returns their number."""
        sides = []
        for shards in (self._sources, self._targets):
            namespaces: dict[str, int] = {}
            for shard in shards:
                for name, count in shard.call("totals")["namespaces"].items():
                    namespaces[name] = namespaces.get(name, 0) + count
            sides.append(namespaces)
        if sides[0] != sides[1]:
            raise NotReady("the new shards do not hold what the old ones do; the old layout stays")
        return sum(sides[1].values())

    def _switch(self) -> None:
        self._say("switching")
        self._reads_wait = True
        self._beat()
        if not self._record.swap(self._moving, self._new):
            raise Conflict("the reshard took too long and was given up by the shards; try again")

    def _end(self) -> None:
        """End the old shards after the switch; one that cannot be reached finds out when its lease expires."""
        publish(self._config, self._new)
        for shard in (*self._targets, *self._sources):
            with suppress(SharpwaveError):
                shard.call("settle")
        clean(self._config, self._new)
        self._say(f"{self._new.shards} shards serve")

    def _undo(self) -> None:
        """Return to the old layout, unless the switch was made."""
        self._record.swap(self._moving, self._old)
        if self._record.read() != self._old:
            return
        clean(self._config, self._old)
        for source in self._sources:
            with suppress(SharpwaveError):
                source.start("settle")

    def _beat(self) -> None:
        """Renew the leases of all shards."""
        calls = [(target, target.start("keep")) for target in self._targets]
        if self._writes_wait:
            calls += [
                (source, source.start("hold", self._name, self._reads_wait)) for source in self._sources
            ]
        for shard, call in calls:
            shard.finish(call)


def _counts(name: str, value: Any) -> bool:
    return isinstance(value, int) and name not in NOT_COUNTERS


_Started = tuple[Any, str, Sequence[Any]]  # a call under way, and how to send it again


class _Remote:
    """One remote shard. Calls are repeated while it restarts, within `serve.deadline_s`; all are idempotent."""

    def __init__(self, config: Config, layout: ShardLayout, number: int) -> None:
        self._name, self._deadline_s = layout.actor_name(number), config.serve.deadline_s

    def call(self, method: str, *args: Any) -> Any:
        return self.finish(self.start(method, *args))

    def start(self, method: str, *args: Any) -> _Started:
        return getattr(self._actor(), method).remote(*args), method, args

    def finish(self, started: _Started) -> Any:
        reference, method, args = started
        deadline = time.monotonic() + self._deadline_s
        while True:
            try:
                return ray.get(reference, timeout=max(0.0, deadline - time.monotonic()))
            except RayTaskError as error:
                raise cause_of(error) from None
            except RayActorError as error:
                if time.monotonic() > deadline:
                    raise NotReady(f"{self._name} was lost: {error}") from error
                time.sleep(0.1)
                reference = getattr(self._actor(), method).remote(*args)
            except ray.exceptions.GetTimeoutError:
                raise NotReady(f"{self._name}.{method}: no answer within {self._deadline_s:g} s") from None

    def _actor(self) -> Any:
        try:
            return handle(self._name)
        except ValueError:
            raise NotReady(f"{self._name} is not running; start the store first") from None


class _Beat:
    """Calls `beat` periodically in a thread. An error ends it: the shards' leases then expire, and the switch
    fails."""

    def __init__(self, beat: Callable[[], None], every_s: float) -> None:
        self._beat, self._every_s, self._stop = beat, every_s, Event()
        self._thread = Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self._beat()
            except Exception as error:
                logger.warning("reshard: leases are no longer renewed: %s", error)
                return
