"""Queries of the fact graph and the place map.

Such queries can take long, and writers must not wait for them. Facts are read in parts, between which the lock goes
to writers (`ReadWriteLock.read_in_parts`), so a long answer may or may not hold concurrent writes. Places are read
from a copy of the map, a consistent state.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from common.errors import InvalidInput
from common.types import Page
from stores.facts.graph import FactGraph
from stores.places.map import PlaceMap
from stores.shard.core import ShardCore

MAX_SOLUTIONS = 10_000  # of a join of patterns, partial solutions included


class Graph:
    def __init__(self, core: ShardCore) -> None:
        self._core = core

    def query_facts(
        self,
        namespace: str,
        *,
        subject: str | None = None,
        relation: str | None = None,
        object: str | None = None,
        at: float | None = None,
    ) -> Page:
        """See `FactGraph.query`."""
        with self._core.view_lock.read_in_parts() as took:
            graph = self._graph(namespace)
            return graph.query(subject, relation, object, at=at, took=took) if graph else []

    def solve_facts(
        self,
        namespace: str,
        patterns: Sequence[tuple[str, str, str]],
        *,
        at: float | None = None,
        limit: int = MAX_SOLUTIONS,
    ) -> Page:
        """See `FactGraph.solve`: `{values: {"?x": name}, facts}`, at most `limit`. Raises `InvalidInput` if
        any step has more than `MAX_SOLUTIONS`."""
        with self._core.view_lock.read_in_parts() as took:
            graph = self._graph(namespace)
            found = graph.solve(patterns, at=at, at_most=MAX_SOLUTIONS, took=took) if graph else []
        return [asdict(solution) for solution in found[:limit]]

    def recall_facts(self, namespace: str, text: str, *, k: int = 10, at: float | None = None) -> Page:
        """See `FactGraph.recall`."""
        with self._core.view_lock.read_in_parts() as took:
            graph = self._graph(namespace)
            return graph.recall(text, k=k, at=at, took=took) if graph else []

    def fact_path(self, namespace: str, a: str, b: str, *, at: float | None = None) -> Page | None:
        """See `FactGraph.path`."""
        with self._core.view_lock.read_in_parts() as took:
            graph = self._graph(namespace)
            return graph.path(a, b, at=at, took=took) if graph else None

    def query_places(self, namespace: str, op: str, **asked: Any) -> Any:
        """The answer of `PlaceMap` to one of the queries in `PLACES`, as JSON: an object, a list of them, or None."""
        if op not in PLACES:
            raise InvalidInput(f"op = {op[:64]!r}: must be one of {', '.join(PLACES)}", param="op")
        with self._core.view_lock.read():
            space = self._core.space(namespace)
            places = space.places.still() if space else PlaceMap()
        found = PLACES[op](places, **asked)
        with self._core.view_lock.read():
            if space is not None:
                space.places.learn(places)
        return [asdict(each) for each in found] if isinstance(found, list) else found and asdict(found)

    def _graph(self, namespace: str) -> FactGraph | None:
        space = self._core.space(namespace)
        return space.facts.graph if space else None


def _path(places: PlaceMap, *, place: str, other: str) -> Any:
    return places.path(place, other) or places.path(place, other, by="observed")


PLACES: dict[str, Callable[..., Any]] = {
    "position": lambda places, place, at=None: places.position_of(place, at=at),
    "nearest": lambda places, place=None, **asked: places.nearest(place, **asked),
    "within": lambda places, radius, place=None, **asked: places.within(radius, place, **asked),
    "relation": lambda places, place, other: places.relation_of(place, other),
    "path": _path,
    "where": lambda places, place, at=None: places.where(place, at=at),
    "macros": lambda places: places.macros(),
}
