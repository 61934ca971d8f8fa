"""The spatial store: positions of places, relations between them, locations of things, and paths.

Observations ("the cafe is left of the library", "the museum is at (3, 4)") become positions (`observations`,
`layout`), events ("Ada went to the cafe", "the cup is carried by Ada") locations (`locations`), ways become paths
and, if often walked, macros (`routes`); `directions` lists the relations. Every answer names its supporting
memories. Names in answers are spelled as in their first memory.

Two threads may query at once: both then compute the same result, and one of the equal results is kept.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Literal

from common.errors import InvalidInput
from stores.places.directions import COMPASS, Step, by_sector, by_sign, read
from stores.places.layout import WORLD, Order, Point
from stores.places.locations import NOW, Holder, Visit
from stores.places.observations import PlaceGraph, Position
from stores.places.routes import Macro, RouteMap, Stand, count_walks

HERE = 0.5  # distance within which a thing that took some steps counts as in a place
By = Literal["connected", "observed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """`chain` is what the thing is in or carried by, nearest first; `place` the first that is not a
    carrier."""

    place: str | None
    chain: tuple[str, ...]
    memories: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bearing:
    """One place lies (dx, dy) from another; `relation` is a direction, as `north_east_of`, or `near`."""

    relation: str
    step: Step
    dx: float
    dy: float
    memories: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    place: str
    x: float
    y: float
    distance: float
    memories: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """`directions` holds one word a way, as `north`, or None without positions. `expanded` counts
    the places that the search looked at."""

    places: tuple[str, ...]
    directions: tuple[str | None, ...]
    cost: float
    expanded: int
    memories: tuple[str, ...]


class PlaceMap(PlaceGraph):
    """The queries of one namespace's map. Unknown names are no error: the answer is empty or None."""

    # Positions

    def position_of(self, thing: str, *, at: float | None = None) -> Position | None:
        """Position of a place or thing; `at` (seconds) matters for things that move."""
        return self.position(self.canonical(thing), _limit(at))

    def relation_of(self, a: str, b: str) -> Bearing | None:
        """Where `a` lies, seen from `b`, over any number of observations; None if nothing connects them. With
        coordinates, the nearest of eight directions; from words alone distances have no meaning, so the signs of
        the offset decide."""
        a, b = self.canonical(a), self.canonical(b)
        one, other = self.position(a), self.position(b)
        if one is None or other is None or one.frame != other.frame:
            return None
        dx, dy = one.x - other.x, one.y - other.y
        step = by_sector(dx, dy) if one.frame == WORLD else by_sign(dx, dy)
        layout = self.layout(a)
        if layout is not None and b in layout.at and not (self._moves(a) or self._moves(b)):
            memories = layout.support(a, b)
        else:
            memories = [*dict.fromkeys((*one.memories, *other.memories))]
        relation = f"{COMPASS[step]}_of" if step in COMPASS else "near"
        return Bearing(relation=relation, step=step, dx=dx, dy=dy, memories=tuple(memories))

    def related(self, relation: str, other: str) -> list[Found]:
        """Places that lie in that direction from `other`: those observed so first, then the nearest."""
        reading = read(relation)
        if reading is None or reading.kind not in ("direction", "near"):
            raise InvalidInput(
                f"relation = {relation[:64]!r}: must be a direction, as north_of, or near", param="relation"
            )
        origin = self.canonical(other)
        position = self.position(origin)
        observed = {c.a for c in self._seen_from(origin) if c.step == reading.step}
        found = []
        for place in self._frames().get(position.frame, {}) if position else {}:
            bearing = None if place == origin else self.relation_of(place, origin)
            if bearing and bearing.step == reading.step:
                found.append((place not in observed, math.hypot(bearing.dx, bearing.dy), place, bearing))
        found.sort(key=lambda row: row[:3])
        return [self._found(place, distance, bearing.memories) for _, distance, place, bearing in found]

    def nearest(
        self, place: str | None = None, *, x: float | None = None, y: float | None = None, k: int = 5
    ) -> list[Found]:
        """The `k` places nearest to a place (itself aside) or to a point, nearest first."""
        return [*islice(self._within(math.inf, place, x, y), max(0, k))]

    def within(
        self, radius: float, place: str | None = None, *, x: float | None = None, y: float | None = None
    ) -> list[Found]:
        """Places at most `radius` from a place (itself aside) or a point, nearest first."""
        return [*self._within(radius, place, x, y)]

    def _within(self, radius: float, place: str | None, x: float | None, y: float | None) -> Iterator[Found]:
        frame, point = self._origin(place, x, y)
        centre = None if place is None else self.canonical(place)
        return self._select(frame, point, lambda name, distance, _: name != centre and distance <= radius)

    # Locations

    def where(self, thing: str, *, at: float | None = None) -> Where:
        """What a thing is in, or carried by, and what that is in, now or at a time before (seconds)."""
        holders = self._chain(self.canonical(thing), _limit(at))
        place = next((holder.name for holder in holders if not holder.carried), None)
        return Where(
            place=None if place is None else self.label(place),
            chain=tuple(self.label(holder.name) for holder in holders),
            memories=tuple(dict.fromkeys(id for holder in holders for id in holder.memories)),
        )

    def trail(self, thing: str) -> list[Visit]:
        """The places a thing was in, oldest first, places its carriers took it to included."""
        return [
            Visit(self.label(self.canonical(visit.place)), visit.since, visit.memories)
            for visit in self._locations.trail(self.canonical(thing))
        ]

    # Paths

    def path(self, a: str, b: str, *, by: By = "connected") -> Path | None:
        """The cheapest way from `a` to `b`, or None. By `connected` along ways that were stated or
        walked; by `observed` also between places whose direction from each other was observed."""
        if by not in ("connected", "observed"):
            raise InvalidInput(f"by = {str(by)[:64]!r}: must be connected or observed", param="by")
        a, b = self.canonical(a), self.canonical(b)
        route = self._routes(by).path(a, b)
        if route is None:
            return None
        bearings = [self.relation_of(other, one) for one, other in pairwise(route.places)]
        return Path(
            places=tuple(map(self.label, route.places)),
            directions=tuple(COMPASS.get(bearing.step) if bearing else None for bearing in bearings),
            cost=route.cost,
            expanded=route.expanded,
            memories=route.memories,
        )

    def macros(self) -> list[Macro]:
        """Paths walked often, the most walked first."""
        macros = self._routes("connected").macros
        return [Macro(tuple(map(self.label, macro.places)), macro.count) for macro in macros]

    # Parts

    def _changed(self) -> None:
        super()._changed()
        self._route_maps: dict[str, RouteMap] = {}
        self._stands: dict[str, dict[str, Point]] | None = None

    def _moves(self, thing: str) -> bool:
        return bool(self._locations.events(thing))

    def _frames(self) -> dict[str, dict[str, Point]]:
        """Positions of all places, frame by frame."""
        if self._stands is None:
            frames: dict[str, dict[str, Point]] = {}
            for place in self._all_places():
                if self._moves(place):
                    if position := self.position(place):
                        frames.setdefault(position.frame, {})[place] = position.x, position.y
                elif layout := self.layout(place):
                    frames.setdefault(layout.frame, {})[place] = layout.at[place]
            self._stands = frames
        return self._stands

    def _origin(self, place: str | None, x: float | None, y: float | None) -> tuple[str | None, Point]:
        """Frame and point of a query; frame None if the place has no position."""
        if place is None:
            if x is None or y is None:
                raise InvalidInput("place: give a place, or x and y", param="place")
            return WORLD, (x, y)
        position = self.position_of(place)
        return (position.frame, (position.x, position.y)) if position else (None, (0.0, 0.0))

    def _select(
        self, frame: str | None, origin: Point, keep: Callable[[str, float, Point], bool]
    ) -> Iterator[Found]:
        """Places of a frame that `keep(name, distance, point)` admits, nearest to `origin` first."""
        if frame is not None:
            stands = self._frames().get(frame, {})
            for distance, name in self._by_distance(frame, origin):
                if keep(name, distance, stands[name]):
                    yield self._found(name, distance)

    def _by_distance(self, frame: str, origin: Point) -> list[tuple[float, str]]:
        stands = self._frames().get(frame, {})
        return sorted((math.dist(origin, at), name) for name, at in stands.items())

    def _found(self, place: str, distance: float, memories: tuple[str, ...] | None = None) -> Found:
        position = self.position(place)
        assert position is not None, "only places with a position are found"
        return Found(
            place=self.label(place),
            x=position.x,
            y=position.y,
            distance=distance,
            memories=position.memories if memories is None else memories,
        )

    def _chain(self, thing: str, limit: Order) -> list[Holder]:
        """The holder of the thing, its holder, and so on, in canonical names; at the end the place of the last one, if
        its steps lead to one."""
        chain = self._locations.chain(thing, limit)
        holders = [Holder(self._aliases.canonical(h.name), h.carried, h.memories) for h in chain]
        last = holders[-1].name if holders else thing
        position = self.position(last, limit) if self._locations.before(last, limit) else None
        if position is None:
            return holders
        centre = position.x, position.y
        for distance, place in self._by_distance(position.frame, centre):
            if distance <= HERE and place not in (last, thing) and not self._moves(place):
                here = self.position(place)
                memories = (*position.memories, *(here.memories if here else ()))
                return [*holders, Holder(place, False, memories)]
        return holders

    def _routes(self, by: By) -> RouteMap:
        if by not in self._route_maps:
            ways: dict[str, dict[str, str]] = {}
            for one, other, id in self._all_ways(by):
                ways.setdefault(one, {}).setdefault(other, id)
            at: dict[str, Stand] = {
                name: (frame, point)
                for frame, stands in self._frames().items()
                for name, point in stands.items()
            }
            walks: Counter[tuple[str, ...]] = Counter()
            for thing in self._locations.things():
                for run in self._runs(thing):
                    walks.update(count_walks(run, ways))
            self._route_maps[by] = RouteMap(ways, at, walks)
        return self._route_maps[by]

    def _all_ways(self, by: By) -> Iterator[tuple[str, str, str]]:
        """Ways between canonical places with the memory that supports each, in order of observation."""
        ways_of = [(one, other, id) for id, ways in self._roads.items() for one, other in ways]
        if by == "observed":
            for id, c in self._constraints.items():
                ways_of += [(c.a, c.b, id), (c.b, c.a, id)]
        ways_of.sort(key=lambda way: (self._observations[way[2]].order, way[:2]))
        for one, other, id in ways_of:
            if (one := self._aliases.canonical(one)) != (other := self._aliases.canonical(other)):
                yield one, other, id

    def _runs(self, thing: str) -> Iterator[list[str]]:
        """Sequences of places that a thing came to; a move by steps breaks the run."""
        run: list[str] = []
        for event in self._locations.own(thing):
            if event.arrives:
                run.append(self._aliases.canonical(event.other))
            elif event.kind != "not_in":
                yield run
                run = []
        yield run


def _limit(at: float | None) -> Order:
    return NOW if at is None else (at, 1 << 62)
