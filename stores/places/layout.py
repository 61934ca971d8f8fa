"""Positions from observations: one connected group of places, laid out together.

Every "A is left of B" asks that A stand one step from B in that direction. The steps of a spanning tree of
the newest observations give a first layout; where observations close loops, least squares settles them all.
An observation is contradicted if A then does not lie in the stated direction: the oldest of those is left out, and
the rest laid out again. Coordinates are kept as given, and no words contradict them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stores.places.directions import Step

Point = tuple[float, float]
Order = tuple[float, int]  # time, then seq: later is newer

WORLD = ""  # the frame of coordinates; any other frame is named after its first place
_AGREES = 0.05  # of a step: an offset below this is not in the stated direction
_MAX_ITERATIONS = 500


@dataclass(frozen=True, slots=True)
class Constraint:
    """`a` lies a `step` from `b`. A step of (0, 0) is "near": it is used only for places without other
    constraints."""

    a: str
    b: str
    step: Step
    id: str
    order: Order


@dataclass(slots=True)
class PlaceLayout:
    """`parent` is the tree towards the root (or the coordinates) that positions were read along."""

    frame: str
    at: dict[str, Point] = field(default_factory=dict)
    parent: dict[str, tuple[str, str]] = field(default_factory=dict)
    contradicted: list[str] = field(default_factory=list)

    def support(self, a: str, b: str) -> list[str]:
        """Ids of the observations along the tree from `a` to `b`."""
        up, down = self.ancestry(a), self.ancestry(b)
        while up and down and up[-1] == down[-1]:
            up.pop()
            down.pop()
        return [id for _, id in (*up, *reversed(down))]

    def ancestry(self, place: str) -> list[tuple[str, str]]:
        """The steps from a place to its root, with the ids of their observations."""
        steps = []
        while place in self.parent:
            place, id = self.parent[place]
            steps.append((place, id))
        return steps


def lay_out(
    places: Sequence[str], constraints: Sequence[Constraint], fixed: Mapping[str, Point]
) -> PlaceLayout:
    """`places` are connected by `constraints`; those in `fixed` have coordinates."""
    known = [c for c in constraints if c.a != c.b and not (c.a in fixed and c.b in fixed)]
    newest = sorted(known, key=lambda c: (c.step != (0, 0), c.order), reverse=True)
    contradicted: list[str] = []
    while True:
        layout = _spread(places, newest, fixed)
        directed = [c for c in newest if c.step != (0, 0)]
        if directed:
            _relax(layout, directed, fixed)
        wrong = [c for c in directed if not _agrees(c, layout.at)]
        if not wrong:
            layout.contradicted = contradicted + [
                c.id for c in constraints if c.a in fixed and c.b in fixed and not _agrees(c, fixed)
            ]
            return layout
        newest.remove(wrong[-1])
        contradicted.append(wrong[-1].id)


def _spread(places: Sequence[str], newest: Sequence[Constraint], fixed: Mapping[str, Point]) -> PlaceLayout:
    """Walk the spanning tree (a forest, from each fixed place) that takes the newest observations."""
    near: dict[str, list[tuple[str, Constraint, int]]] = {place: [] for place in places}
    leader = {place: place for place in places}

    def find(place: str) -> str:
        while leader[place] != place:
            leader[place] = place = leader[leader[place]]
        return place

    roots = sorted(fixed) or [min(places)]
    for place in roots[1:]:
        leader[find(place)] = find(roots[0])
    for c in newest:
        one, other = find(c.a), find(c.b)
        if one != other:
            leader[one] = other
            near[c.b].append((c.a, c, 1))
            near[c.a].append((c.b, c, -1))
    layout = PlaceLayout(WORLD if fixed else roots[0], {root: fixed.get(root, (0.0, 0.0)) for root in roots})
    waiting = [*roots]
    for root in sorted(places):  # more roots only if a constraint that held the group together was left out
        if not waiting and root not in layout.at:
            layout.at[root] = (0.0, 0.0)
            waiting = [root]
        while waiting:
            place = waiting.pop()
            x, y = layout.at[place]
            for other, c, sign in near[place]:
                if other not in layout.at:
                    layout.at[other] = x + sign * c.step[0], y + sign * c.step[1]
                    layout.parent[other] = place, c.id
                    waiting.append(other)
    return layout


def _relax(layout: PlaceLayout, directed: Sequence[Constraint], fixed: Mapping[str, Point]) -> None:
    """Least squares over all observations, from the tree's layout on: conjugate gradients, each axis."""
    names = [*layout.at]
    number = {name: i for i, name in enumerate(names)}
    a = np.array([number[c.a] for c in directed])
    b = np.array([number[c.b] for c in directed])
    steps = np.array([c.step for c in directed], dtype=float)
    at = np.array([layout.at[name] for name in names])
    free = np.array([name not in fixed for name in names])
    if not fixed:
        free[0] = False
    for axis in range(2):
        at[:, axis] = _least_squares(a, b, steps[:, axis], at[:, axis], free)
    layout.at = {name: (float(x), float(y)) for name, (x, y) in zip(names, at, strict=True)}


def _least_squares(
    a: NDArray[np.int64],
    b: NDArray[np.int64],
    wanted: NDArray[np.float64],
    x: NDArray[np.float64],
    free: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """argmin over the free x of sum (x[a] - x[b] - wanted)^2, by CGLS."""

    def gradient(residual: NDArray[np.float64]) -> NDArray[np.float64]:
        count = len(x)
        return free * (np.bincount(a, residual, count) - np.bincount(b, residual, count))

    residual = wanted - (x[a] - x[b])
    slope = gradient(residual)
    direction, size = slope, float(slope @ slope)
    for _ in range(_MAX_ITERATIONS):
        if size < 1e-18:
            break
        moved = direction[a] - direction[b]
        rate = size / float(moved @ moved)
        x = x + rate * direction
        residual = residual - rate * moved
        slope = gradient(residual)
        size, before = float(slope @ slope), size
        direction = slope + size / before * direction
    return x


def _agrees(c: Constraint, at: Mapping[str, Point]) -> bool:
    """True if `a` lies on the stated side of `b`, on each stated axis."""
    if c.step == (0, 0):
        return True
    offset = at[c.a][0] - at[c.b][0], at[c.a][1] - at[c.b][1]
    return all(part * step > _AGREES for part, step in zip(offset, c.step, strict=True) if step)
