"""Locations of things: what is in what, who carries what, now and at earlier times.

The location of a thing follows from its events in order of (time, seq). A carried thing is where its carrier is; a
dropped one where its carrier was at that time.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field

from stores.facts.names import Aliases
from stores.places.directions import Step
from stores.places.layout import Order

NOW: Order = (float("inf"), 0)


@dataclass(frozen=True, slots=True, order=True)
class Event:
    """`kind` is one of in, not_in, carried, dropped, moved. Of a move, `steps` is how far it went, or None
    if it came to the place `other`."""

    order: Order
    id: str
    kind: str = field(compare=False)
    other: str = field(compare=False, default="")
    step: Step = field(compare=False, default=(0, 0))
    steps: float | None = field(compare=False, default=None)

    @property
    def arrives(self) -> bool:
        return self.kind == "in" or (self.kind == "moved" and self.steps is None)


@dataclass(frozen=True, slots=True)
class Holder:
    """What a thing is in or carried by, and the supporting memories."""

    name: str
    carried: bool
    memories: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Visit:
    """A thing was in `place` from `since` (seconds) on."""

    place: str
    since: float
    memories: tuple[str, ...]


class Locations:
    """Events by thing. Names are normalised; `aliases` joins names of one thing."""

    def __init__(self, aliases: Aliases) -> None:
        self._aliases = aliases
        self._events: dict[str, list[Event]] = {}

    def copy(self, aliases: Aliases) -> "Locations":
        other = Locations(aliases)
        other._events = {thing: [*events] for thing, events in self._events.items()}
        return other

    def add(self, thing: str, event: Event) -> None:
        insort(self._events.setdefault(thing, []), event)

    def remove(self, thing: str, id: str) -> None:
        left = [event for event in self._events[thing] if event.id != id]
        if left:
            self._events[thing] = left
        else:
            del self._events[thing]

    def things(self) -> Iterator[str]:
        return iter(self._events)

    def own(self, thing: str) -> list[Event]:
        """Events under this name itself, aliases aside, oldest first."""
        return self._events.get(thing, [])

    def events(self, thing: str) -> list[Event]:
        """All events of a thing, oldest first."""
        names = self._aliases.group(thing)
        if len(names) == 1:
            return self._events.get(thing, [])
        return sorted(event for name in names for event in self._events.get(name, ()))

    def before(self, thing: str, limit: Order) -> list[Event]:
        events = self.events(thing)
        return events[: _count(events, limit)]

    def holder(self, thing: str, limit: Order = NOW, depth: int = 16) -> Holder | None:
        """What the thing was in or carried by just before `limit`; None if unknown."""
        events = self.events(thing)
        return self._holder(events, _count(events, limit), depth)

    def _holder(self, events: list[Event], count: int, depth: int) -> Holder | None:
        """The holder after the first `count` events."""
        if not count or not depth:
            return None
        event = events[count - 1]
        if event.arrives or event.kind == "carried":
            return Holder(event.other, event.kind == "carried", (event.id,))
        if event.kind == "dropped":
            within = self.holder(event.other, event.order, depth - 1)
            return within and Holder(within.name, within.carried, (event.id, *within.memories))
        if event.kind == "not_in":
            earlier = self._holder(events, count - 1, depth - 1)
            gone = earlier and self._aliases.canonical(earlier.name) == self._aliases.canonical(event.other)
            return None if gone else earlier
        return None  # some steps away from there: needs positions

    def chain(self, thing: str, limit: Order = NOW) -> list[Holder]:
        """What the thing is in, what that is in, and so on, the nearest first."""
        found: list[Holder] = []
        seen = {self._aliases.canonical(thing)}
        while (holder := self.holder(thing, limit)) is not None:
            thing = self._aliases.canonical(holder.name)
            if thing in seen:
                break
            seen.add(thing)
            found.append(holder)
        return found

    def trail(self, thing: str) -> list[Visit]:
        """The places the thing was in, oldest first, what carried it followed; none twice in a row."""
        visits: list[Visit] = []
        for visit in self._visits(thing, (float("-inf"), 0), NOW, 8):
            if not visits or visits[-1].place != visit.place:
                visits.append(visit)
        return visits

    def _visits(self, thing: str, start: Order, end: Order, depth: int) -> Iterator[Visit]:
        """Visits that begin in `start` to `end`, and the one under way at `start`."""
        events = self.before(thing, end)
        if not depth:
            return
        for i, event in enumerate(events):
            until = events[i + 1].order if i + 1 < len(events) else end
            since = max(event.order, start)
            if until <= start:
                continue
            if event.kind == "carried":
                for visit in self._visits(event.other, since, until, depth - 1):
                    yield Visit(visit.place, max(visit.since, since[0]), (event.id, *visit.memories))
            elif holder := self._holder(events, i + 1, 16):
                if holder.carried:
                    for visit in self._visits(holder.name, since, until, depth - 1):
                        yield Visit(visit.place, visit.since, (*holder.memories, *visit.memories))
                else:
                    yield Visit(holder.name, since[0], holder.memories)


def _count(events: list[Event], limit: Order) -> int:
    """How many events came before `limit`."""
    return bisect_left(events, limit, key=lambda event: event.order)
