"""The contents of a place map: observations, coordinates, events and ways, and the positions that follow.

`map.PlaceMap` has the queries. Layouts are computed group by group, on the first query after a change, from the
memories in order of (time, seq): the graph is a function of the memories it holds.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, replace
from typing import Self

from common.types import Json
from stores.facts.decision import Decision
from stores.facts.names import Aliases, normalise
from stores.places.directions import Reading, Step, read
from stores.places.layout import WORLD, Constraint, Order, PlaceLayout, Point, lay_out
from stores.places.locations import NOW, Event, Locations
from stores.places.near_duplicate_places import NearDuplicatePlaces

MAX_CARRIERS = 8  # of a carrier of a carrier ...
MAX_COORDINATE = 1e12  # beyond it a step would be lost in rounding
_STEPS = re.compile(r"\s*(\d{1,9}(?:\.\d{1,9})?)(?:\s+\w+)?\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """`frame` is "" for coordinates; positions of another frame compare only with each other."""

    x: float
    y: float
    frame: str
    memories: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Observation:
    """One spatial memory, read. `place` and `other` are normalised, and swapped if the relation is stated in
    the other direction; `steps` is the length of a move whose `other` is a number."""

    id: str
    order: Order
    place: str
    other: str
    reading: Reading | None
    point: Point | None
    steps: float | None


class PlaceGraph:
    """`plan` is pure; `add` and `remove` apply records."""

    def __init__(self, *, aliases: Mapping[str, str] | None = None, epsilon: float = 0.25) -> None:
        """`aliases` map a name to the name it stands for; places with similar names whose coordinates are
        within `epsilon` are one."""
        self._aliases = Aliases()
        for name, known in (aliases or {}).items():
            self._aliases.link(normalise(name), normalise(known), "")
        self._epsilon = epsilon
        self._near_duplicates = NearDuplicatePlaces(self._aliases, epsilon)
        self._locations = Locations(self._aliases)
        self._observations: dict[str, Observation] = {}
        self._labels: dict[str, dict[str, str]] = {}  # normalised name -> memory id -> name as written
        self._points: dict[str, dict[str, tuple[Order, Point]]] = {}
        self._constraints: dict[str, Constraint] = {}  # by memory id
        self._edges: dict[str, dict[str, Constraint]] = {}  # place -> the same by memory id
        self._roads: dict[str, list[tuple[str, str]]] = {}  # memory id -> ways (from, to)
        self._layouts: dict[str, PlaceLayout] = {}  # caches from here on
        self._changed()

    def __len__(self) -> int:
        return len(self._observations)

    # Writing

    def plan(self, memory: Json) -> Decision:
        """What writing a spatial memory (the API's shape) would do; changes nothing.

        Always an insert: every observation counts. `contradicts` are older observations of the same two places
        that state the opposite; `merges` the places of which this one is a near duplicate.
        """
        new = read_observation(memory, seq=0)
        if new.point is not None:
            merges = tuple(self._near_duplicates.of(new.place, new.point))
            reason = f"the same place as {', '.join(merges)}" if merges else "placed at coordinates"
            return Decision(action="insert", reason=reason, merges=merges)
        if new.reading is None:
            reason = f"relation {memory['relation'][:64]!r} is none of the map's: found by search only"
            return Decision(action="insert", reason=reason)
        if new.reading.kind != "direction":
            return Decision(action="insert", reason=f"read as {new.reading.kind}")
        place = self._aliases.canonical(new.place)
        opposite = tuple(
            c.id
            for c in self._seen_from(self._aliases.canonical(new.other))
            if c.a == place and any(a * b < 0 for a, b in zip(c.step, new.reading.step, strict=True))
        )
        reason = f"contradicts {len(opposite)} observations of these places" if opposite else "an observation"
        return Decision(action="insert", reason=reason, contradicts=opposite)

    def add(self, memory: Json, seq: int) -> None:
        """A spatial memory; `seq` is its record's."""
        seen = read_observation(memory, seq)
        self._observations[seen.id] = seen
        for name in ("place", "other"):
            if memory.get(name) is not None:
                self._labels.setdefault(normalise(memory[name]), {})[seen.id] = memory[name]
        if seen.point is not None:
            self._points.setdefault(seen.place, {})[seen.id] = seen.order, seen.point
            self._place(seen.place)
        elif seen.reading is not None:
            self._take_in(seen, seen.reading)
        self._changed()

    def _take_in(self, seen: Observation, reading: Reading) -> None:
        if reading.kind in ("direction", "near"):
            self._join(Constraint(seen.place, seen.other, reading.step, seen.id, seen.order))
        elif reading.kind in ("connected", "leads_to"):
            self._road(seen.id, seen.place, seen.other, both=reading.kind == "connected")
        elif reading.kind == "same":
            self._aliases.link(seen.place, seen.other, seen.id)
            self._layouts.clear()
        else:
            other = "" if seen.steps is not None else seen.other
            event = Event(seen.order, seen.id, reading.kind, other, reading.step, seen.steps)
            self._locations.add(seen.place, event)
            self._follow(seen.place, seen.order)

    def remove(self, id: str) -> None:
        """Remove a memory; an unknown one is ignored."""
        seen = self._observations.pop(id, None)
        if seen is None:
            return
        for name in (seen.place, seen.other):
            labels = self._labels.get(name, {})
            labels.pop(id, None)
            if not labels:
                self._labels.pop(name, None)
        if seen.point is not None:
            del self._points[seen.place][id]
            if not self._points[seen.place]:
                del self._points[seen.place]
            self._place(seen.place)
        self._part(id)
        if seen.reading and seen.reading.kind == "same":
            self._aliases.unlink(id)
            self._layouts.clear()
        elif seen.reading and seen.reading.kind in ("in", "not_in", "carried", "dropped", "moved"):
            self._locations.remove(seen.place, id)
            self._follow(seen.place, seen.order)
        self._changed()

    def _place(self, place: str) -> None:
        newest = self._newest_point([place])
        if self._near_duplicates.move(place, newest and newest[1]):
            self._layouts.clear()
        self._forget_layout(place)

    def _follow(self, thing: str, order: Order) -> None:
        """Where a move with a direction came to a place, that place lies so from the one before, and there
        is a way. The effects of the event at `order` and of the next one are recomputed."""
        events = self._locations.own(thing)
        for i in range(bisect_left(events, order, key=lambda event: event.order), len(events)):
            event = events[i]
            if event.kind == "moved" and event.steps is None:
                self._part(event.id)
                if i and events[i - 1].arrives and events[i - 1].other != event.other:
                    came = events[i - 1].other
                    self._join(Constraint(event.other, came, event.step, event.id, event.order))
                    self._road(event.id, came, event.other, both=True)
            if event.order > order:
                break

    def _join(self, c: Constraint) -> None:
        self._constraints[c.id] = c
        for place in {c.a, c.b}:
            self._forget_layout(place)
            self._edges.setdefault(place, {})[c.id] = c

    def _road(self, id: str, a: str, b: str, *, both: bool) -> None:
        self._roads[id] = [(a, b), (b, a)] if both else [(a, b)]

    def _part(self, id: str) -> None:
        self._roads.pop(id, None)
        if c := self._constraints.pop(id, None):
            for place in {c.a, c.b}:
                self._forget_layout(place)
                del self._edges[place][id]
                if not self._edges[place]:
                    del self._edges[place]

    def still(self) -> Self:
        """A copy of the present map, to be queried while this one changes. It starts with the layouts known here, and
        those that it computes may be taken over; see `learn`."""
        other = copy(self)
        other._aliases = self._aliases.copy()
        other._locations = self._locations.copy(other._aliases)
        other._observations = {**self._observations}
        other._labels = {name: {**by_id} for name, by_id in self._labels.items()}
        other._points = {place: {**by_id} for place, by_id in self._points.items()}
        other._constraints = {**self._constraints}
        other._edges = {place: {**by_id} for place, by_id in self._edges.items()}
        other._roads = {**self._roads}
        other._layouts = {**self._layouts}
        other._changed()
        return other

    def learn(self, still: "PlaceGraph") -> None:
        """Take over the layouts that a copy has computed; valid only if nothing changed since the copy."""
        if len(still._layouts) > len(self._layouts):
            self._layouts.update(still._layouts)

    # Positions

    def canonical(self, name: str) -> str:
        """The canonical name of a place, from any spelling."""
        return self._aliases.canonical(normalise(name))

    def label(self, place: str) -> str:
        """The place's name as spelled in the first memory of any of its aliases."""
        if place not in self._known_labels:
            names = (
                (self._observations[id].order, name)
                for alias in self._aliases.group(place)
                for id, name in self._labels.get(alias, {}).items()
            )
            self._known_labels[place] = min(names, default=(None, place))[1]
        return self._known_labels[place]

    def layout(self, place: str) -> PlaceLayout | None:
        """The layout of the group that a place (canonical) is in; None if it has no position."""
        if place not in self._layouts:
            edges = self._group_edges(place)
            places = sorted({place, *(c.a for c in edges), *(c.b for c in edges)})
            fixed = {
                name: newest[1]
                for name in places
                if (newest := self._newest_point(self._aliases.group(name)))
            }
            if len(places) == 1 and not fixed:
                return None
            layout = lay_out(places, edges, fixed)
            for name in places:
                self._layouts[name] = layout
        return self._layouts[place]

    def position(self, thing: str, limit: Order = NOW, depth: int = MAX_CARRIERS) -> Position | None:
        """Position of a place or thing (canonical): from its events since the newest coordinates, else from its group's
        layout."""
        events = self._locations.before(thing, limit)
        newest = self._newest_point(self._aliases.group(thing), limit)
        x = y = 0.0
        memories: list[str] = []
        left: set[str] = set()  # what it is no longer in, without a step since
        base: Position | None = None
        for event in reversed(events):
            if newest and newest[0] > event.order:
                break
            memories.append(event.id)
            other = self._aliases.canonical(event.other)
            if event.kind == "moved" and event.steps is not None:
                x += event.step[0] * event.steps
                y += event.step[1] * event.steps
            elif event.kind == "not_in":
                left |= set() if x or y else {other}
            elif other in left:
                return None
            else:
                base = self._carried_to(thing, event, limit, depth)
                break
        if base is None and newest:
            base = Position(x=newest[1][0], y=newest[1][1], frame=WORLD, memories=(newest[2],))
        if base is None:
            base = self._laid_out(thing)
        if base is None and (x or y):
            base = Position(x=0.0, y=0.0, frame=f"start of {thing}", memories=())
        if base is None:
            return None
        return replace(base, x=base.x + x, y=base.y + y, memories=(*memories, *base.memories))

    def _carried_to(self, thing: str, event: Event, limit: Order, depth: int) -> Position | None:
        if event.kind == "dropped":
            holder = self._locations.holder(event.other, event.order)
            other, limit = (event.other, event.order) if holder is None else (holder.name, limit)
        else:
            other = event.other
        other = self._aliases.canonical(other)
        return None if other == thing or not depth else self.position(other, limit, depth - 1)

    def _laid_out(self, place: str) -> Position | None:
        layout = self.layout(place)
        if layout is None:
            return None
        steps = layout.ancestry(place)
        root = steps[-1][0] if steps else place
        anchor = self._newest_point(self._aliases.group(root)) if layout.frame == WORLD else None
        memories = [id for _, id in steps] + ([anchor[2]] if anchor else [])
        return Position(
            x=layout.at[place][0], y=layout.at[place][1], frame=layout.frame, memories=tuple(memories)
        )

    def contradictions(self) -> list[str]:
        """Ids of the memories that do not count since newer ones state the opposite, oldest first."""
        layouts = [layout for place in self._all_places() if (layout := self.layout(place))]
        found = {id for layout in layouts for id in layout.contradicted}
        for points in self._points.values():
            *older, newest = sorted((order, point, id) for id, (order, point) in points.items())
            found |= {id for _, point, id in older if point != newest[1]}
        return sorted(found, key=lambda id: self._observations[id].order)

    def _all_places(self) -> list[str]:
        """Places with an observation or coordinates: canonical names, sorted."""
        return sorted({self._aliases.canonical(name) for name in (*self._edges, *self._points)})

    def _newest_point(self, names: list[str], limit: Order = NOW) -> tuple[Order, Point, str] | None:
        points = (
            (order, point, id)
            for name in names
            for id, (order, point) in self._points.get(name, {}).items()
            if order < limit
        )
        return max(points, default=None)

    def _edges_of(self, place: str) -> Iterator[Constraint]:
        for name in self._aliases.group(place):
            for c in self._edges.get(name, {}).values():
                a, b = self._aliases.canonical(c.a), self._aliases.canonical(c.b)
                yield c if (a, b) == (c.a, c.b) else replace(c, a=a, b=b)

    def _group_edges(self, place: str) -> list[Constraint]:
        """Observations of the group around a place, oldest first."""
        found: dict[str, Constraint] = {}
        seen, waiting = {place}, [place]
        while waiting:
            for c in self._edges_of(waiting.pop()):
                found[c.id] = c
                for other in (c.a, c.b):
                    if other not in seen:
                        seen.add(other)
                        waiting.append(other)
        return sorted(found.values(), key=lambda c: c.order)

    def _seen_from(self, place: str) -> Iterator[Constraint]:
        """Observations of a place (canonical) and another, turned so that they give the direction of the other."""
        for c in self._edges_of(place):
            if c.b == place:
                yield c
            else:
                step: Step = (-c.step[0], -c.step[1])
                yield replace(c, a=c.b, b=place, step=step)

    def _forget_layout(self, place: str) -> None:
        layout = self._layouts.pop(self._aliases.canonical(place), None)
        for name in layout.at if layout else ():
            self._layouts.pop(name, None)

    def _changed(self) -> None:
        """Invalidate the caches over all places."""
        self._known_labels: dict[str, str] = {}


def read_observation(memory: Json, seq: int) -> Observation:
    """A spatial memory (the API's shape) as the map reads it; coordinates are cut to `MAX_COORDINATE`."""
    place, other = normalise(memory["place"]), normalise(memory.get("other") or "")
    point = (_cut(memory["x"]), _cut(memory["y"])) if memory.get("x") is not None else None
    reading = None if point else read(memory["relation"])
    steps = None
    if reading and reading.kind == "moved" and (number := _STEPS.fullmatch(memory["other"])):
        steps = float(number[1])
    if reading and reading.swapped:
        place, other = other, place
    return Observation(memory["id"], (memory["time"], seq), place, other, reading, point, steps)


def _cut(coordinate: float) -> float:
    return max(-MAX_COORDINATE, min(MAX_COORDINATE, coordinate))
