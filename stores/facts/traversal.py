"""Reading a graph of facts over several hops: PageRank, shortest paths, joined patterns."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from common.errors import InvalidInput
from stores.facts.fact import Fact
from stores.facts.names import normalise
from stores.locks import Took

# The facts about an entity, with the entity at the other end and the confidence, always in one order.
Edges = Callable[[str], Iterable[tuple[Fact, str, float]]]
Pattern = tuple[str, str, str]  # names, or variables that begin with "?"

RESTART = 0.5
PRECISION = 1e-4


@dataclass(frozen=True, slots=True)
class Solution:
    """Values of the variables, and the supporting facts (see `FactGraph.describe`)."""

    values: dict[str, str]
    facts: tuple[dict[str, Any], ...]


class Facts(Protocol):
    """The part of `FactGraph` that joins of patterns need."""

    def query(
        self,
        subject: str | None = None,
        relation: str | None = None,
        object: str | None = None,
        *,
        at: float | None = None,
        took: Took = ...,
    ) -> list[dict[str, Any]]: ...

    def canonical(self, name: str) -> str: ...


def pagerank(
    seeds: Mapping[str, float],
    edges: Edges,
    *,
    restart: float = RESTART,
    precision: float = PRECISION,
    took: Took = lambda things: None,
) -> dict[str, float]:
    """Personalised PageRank of the entities around `seeds` (weights, which are normalised).

    The fixed point of `p = restart * s + (1 - restart) * W p`, W the column-normalised confidences of the
    edges in both directions; an entity without edges hands its mass back to the seeds. Found by local push
    (Andersen, Chung, Lang: Local graph partitioning using PageRank vectors, 2006): only entities near the
    seeds are visited, and the mass not handed on at one of them is below `precision`.
    """
    total = sum(seeds.values())
    if total <= 0:
        return {}
    start = {seed: weight / total for seed, weight in seeds.items()}
    ranks: dict[str, float] = {}
    waiting = dict(start)
    queue, queued = deque(start), set(start)
    shares: dict[str, dict[str, float]] = {}
    while queue:
        entity = queue.popleft()
        queued.discard(entity)
        mass = waiting.pop(entity)
        ranks[entity] = ranks.get(entity, 0.0) + restart * mass
        if entity not in shares:
            shares[entity] = _shares(entity, edges) or start
        took(len(shares[entity]))
        for other, share in shares[entity].items():
            waiting[other] = waiting.get(other, 0.0) + (1.0 - restart) * mass * share
            if waiting[other] > precision and other not in queued:
                queued.add(other)
                queue.append(other)
    return ranks


def _shares(entity: str, edges: Edges) -> dict[str, float]:
    weights: dict[str, float] = {}
    for _, other, confidence in edges(entity):
        if other != entity and confidence > 0.0:
            weights[other] = weights.get(other, 0.0) + confidence
    total = sum(weights.values())
    return {other: weight / total for other, weight in weights.items()}


def shortest(start: str, goal: str, edges: Edges, max_hops: int) -> list[Fact] | None:
    """The fewest facts from `start` to `goal`; of equals, the one through facts written first."""
    came: dict[str, tuple[str, Fact] | None] = {start: None}
    ring = [start]
    for _ in range(max_hops):
        if goal in came:
            break
        reached: dict[str, tuple[str, Fact]] = {}
        for entity in ring:
            for fact, other, _ in edges(entity):
                if other not in came:
                    reached.setdefault(other, (entity, fact))
        came |= reached
        ring = [*reached]
    if goal not in came:
        return None
    facts: list[Fact] = []
    while step := came[goal]:
        goal = step[0]
        facts.append(step[1])
    return facts[::-1]


def solve(
    graph: Facts, patterns: Sequence[Pattern], at: float | None, at_most: int | None, took: Took
) -> list[Solution]:
    """Join the patterns from the first to the last; see `FactGraph.solve`."""
    partial = [Solution({}, ())]
    for number, pattern in enumerate(patterns):
        grown = (grown for solution in partial for grown in _extend(graph, solution, pattern, at, took))
        partial = [*islice(grown, None if at_most is None else at_most + 1)]
        if at_most is not None and len(partial) > at_most:
            raise InvalidInput(
                f"patterns[{number}]: more than {at_most} ways to join it; put patterns that fit few facts, "
                "and share variables, first",
                param="patterns",
            )
    return sorted(partial, key=lambda s: max((f["valid_from"] for f in s.facts), default=0.0), reverse=True)


def _extend(
    graph: Facts, solution: Solution, pattern: Pattern, at: float | None, took: Took
) -> Iterable[Solution]:
    known = [solution.values.get(part, None if part.startswith("?") else part) for part in pattern]
    for fact in graph.query(*known, at=at, took=took):
        values = dict(solution.values)
        for part, name in zip(pattern, ("subject", "relation", "object"), strict=True):
            value = values.setdefault(part, fact[name]) if part.startswith("?") else fact[name]
            if part.startswith("?") and not _same(graph, value, fact[name]):
                break
        else:
            yield Solution(values, (*solution.facts, fact))


def _same(graph: Facts, one: str, other: str) -> bool:
    return one == other or graph.canonical(normalise(one)) == graph.canonical(normalise(other))
