"""Paths between places: A* over the known ways, with shortcuts along paths that are often walked."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import pairwise

from stores.places.layout import Point

MACRO_HOPS = 5  # the longest macro
MACRO_COUNT = 3  # a path walked this often becomes one
MAX_MACROS = 64

Stand = tuple[str, Point]  # frame, position
Ways = Mapping[str, Mapping[str, str]]  # place -> neighbour -> id of the supporting memory


@dataclass(frozen=True, slots=True)
class Macro:
    """A path that was walked `count` times and is as short as any between its ends."""

    places: tuple[str, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Route:
    """A path found. `expanded`: places that the search visited."""

    places: tuple[str, ...]
    cost: float
    memories: tuple[str, ...]
    expanded: int


class RouteMap:
    """Ways between places. A way costs the distance of its ends if both have positions in one frame
    (`at`: place -> frame, point), else 1. The straight line is the search's lower bound in a connected
    group that has all its positions in one frame; elsewhere there is none, and A* is Dijkstra's search."""

    def __init__(self, ways: Ways, at: Mapping[str, Stand], walks: Counter[tuple[str, ...]]) -> None:
        self._ways = ways
        self._at = at
        self._lined = set(_lined(ways, at))
        self.macros: list[Macro] = []
        self.macros = [*self._worthy(walks)]

    def path(self, a: str, b: str) -> Route | None:
        """The cheapest path, or None.

        A macro through `b` gives the exact rest of the path from each of its places: the search ends at the first
        of them that it reaches.
        """
        rests = self._rests(b)
        costs, came, expanded = {a: 0.0}, {a: a}, 0
        heap = [(0.0, a)]
        while heap:
            bound, place = heappop(heap)
            cost = costs[place]
            if bound > cost + self._bound(place, b, rests):
                continue  # a cheaper path here was found since
            if place == b or place in rests:
                head = _walk_back(came, place)
                return self._route((*head, *rests[place][1:]) if place in rests else head, expanded)
            expanded += 1
            for other in self._ways.get(place, ()):
                reached = cost + self.cost(place, other)
                if reached < costs.get(other, math.inf):
                    costs[other], came[other] = reached, place
                    heappush(heap, (reached + self._bound(other, b, rests), other))
        return None

    def cost(self, a: str, b: str) -> float:
        one, other = self._at.get(a), self._at.get(b)
        distance = math.dist(one[1], other[1]) if one and other and one[0] == other[0] else 0.0
        return distance or 1.0

    def _bound(self, place: str, goal: str, rests: Mapping[str, Sequence[str]]) -> float:
        if place in rests:
            return self._length(rests[place])
        if place in self._lined and goal in self._lined:
            return math.dist(self._at[place][1], self._at[goal][1])
        return 0.0

    def _length(self, places: Sequence[str]) -> float:
        return sum(self.cost(one, other) for one, other in pairwise(places))

    def _rests(self, goal: str) -> dict[str, tuple[str, ...]]:
        """For each place that a macro leads from to `goal`: the rest of the macro."""
        rests: dict[str, tuple[str, ...]] = {}
        for macro in self.macros:
            if goal in macro.places:
                end = macro.places.index(goal)
                for i in range(end):
                    rests.setdefault(macro.places[i], macro.places[i : end + 1])
        return rests

    def _worthy(self, walks: Counter[tuple[str, ...]]) -> Iterator[Macro]:
        """The most walked paths, without those that are detours or lead through a way that is gone."""
        often = [(count, places) for places, count in walks.items() if count >= MACRO_COUNT]
        for count, places in sorted(often, key=lambda pair: (-pair[0], -len(pair[1]), pair[1]))[:MAX_MACROS]:
            shortest = self.path(places[0], places[-1])
            if shortest and math.isclose(shortest.cost, self._length(places)):
                yield Macro(places, count)

    def _route(self, places: tuple[str, ...], expanded: int) -> Route:
        hops = list(pairwise(places))
        memories = tuple(dict.fromkeys(self._ways[one][other] for one, other in hops))
        return Route(places, self._length(places), memories, expanded)


def count_walks(visits: Sequence[str], ways: Ways) -> Counter[tuple[str, ...]]:
    """How often each path of 2 to `MACRO_HOPS` ways was walked: n-grams of places one after another."""
    counts: Counter[tuple[str, ...]] = Counter()
    for start in range(len(visits)):
        for end in range(start + 1, min(start + MACRO_HOPS + 1, len(visits))):
            if visits[end] not in ways.get(visits[end - 1], ()):
                break
            walk = tuple(visits[start : end + 1])
            if len(walk) > 2 and len(set(walk)) == len(walk):
                counts[walk] += 1
    return counts


def _lined(ways: Ways, at: Mapping[str, Stand]) -> Iterator[str]:
    """Places whose whole connected group has positions in one frame."""
    both: dict[str, set[str]] = {}
    for place, others in ways.items():
        for other in others:
            both.setdefault(place, set()).add(other)
            both.setdefault(other, set()).add(place)
    seen: set[str] = set()
    for place in both:
        if place not in seen:
            group = _group(place, both)
            seen |= group
            frames = {at[member][0] if member in at else None for member in group}
            if len(frames) == 1 and None not in frames:
                yield from group


def _group(place: str, both: Mapping[str, Iterable[str]]) -> set[str]:
    found, waiting = {place}, [place]
    while waiting:
        new = [other for other in both[waiting.pop()] if other not in found]
        found.update(new)
        waiting += new
    return found


def _walk_back(came: Mapping[str, str], place: str) -> tuple[str, ...]:
    places = [place]
    while came[place] != place:
        place = came[place]
        places.append(place)
    return tuple(reversed(places))
