"""The fact graph after the writes being planned: an overlay that does not change the graph below."""

from collections import ChainMap
from copy import deepcopy
from dataclasses import replace

from common.types import Json
from stores.facts.fact import Fact, Key, keys
from stores.facts.graph import FactGraph
from stores.facts.names import Mentions

_PLANNED = 1 << 61  # `seq` of planned facts: after all written ones


class PlannedGraph(FactGraph):
    """A fact graph with planned changes (`add_planned`, `aggregate`, `drop`), which later plans take into account."""

    def __init__(self, base: FactGraph) -> None:
        self._functional, self._inverse = base._functional, base._inverse
        self._default_confidence = base._default_confidence
        self._aliases = deepcopy(base._aliases)
        self._facts = ChainMap({}, base._facts)  # type: ignore[assignment]
        self._assertions = ChainMap({}, base._assertions)  # type: ignore[assignment]
        self._gone: set[str] = set()
        self._index = _Layers(base._index, self._gone)  # type: ignore[assignment]
        self._mentions = Mentions()
        self._closed_by = {}
        self._timelines = {}
        self._planned = 0

    def add_planned(self, memory: Json) -> None:
        self.add(memory, _PLANNED + self._planned)
        self._planned += 1

    def aggregate(self, into: str, memory: Json) -> None:
        fact = self._facts[into]
        own = replace(fact, assertions=[*fact.assertions], closed={**fact.closed})
        self._facts[into] = own
        for key in keys(own.triple):
            self._index.setdefault(key, {})[into] = own
        super().aggregate(into, memory)

    def drop(self, id: str) -> None:
        """Leave out this fact."""
        for assertion in self._facts[id].assertions:
            self._assertions[assertion.id] = ""  # hides the one below; it can be told again
        self._gone.add(id)
        self._aliases.unlink(id)
        self._timelines.clear()


class _Layers:
    """An index over another: planned facts hide existing ones with the same id."""

    def __init__(self, base: dict[Key, dict[str, Fact]], gone: set[str]) -> None:
        self._base, self._gone = base, gone
        self._own: dict[Key, dict[str, Fact]] = {}

    def get(self, key: Key, default: dict[str, Fact]) -> dict[str, Fact]:
        below, own = self._base.get(key, default), self._own.get(key)
        if not self._gone and not own:
            return below
        return {id: fact for id, fact in below.items() if id not in self._gone} | (own or {})

    def setdefault(self, key: Key, default: dict[str, Fact]) -> dict[str, Fact]:
        return self._own.setdefault(key, default)
