"""The fact graph and the place map of a namespace as parts of its `Space`: functions of the memories there.

A fact's further assertions and what contradicts it are kept in its memory state (`assertions`, `closings`), so a
snapshot, an export and a reshard include them.
"""

from common.config import StoreConfig
from common.types import Json
from stores.facts.graph import FactGraph
from stores.index.vectors import Vectors
from stores.memory.period import Period
from stores.places.map import PlaceMap
from stores.view.memory_state import MemoryState


class FactsView:
    """The relational memories as a fact graph. `add` and `remove` are called for every memory of the namespace."""

    def __init__(self, config: StoreConfig) -> None:
        self.graph = FactGraph(
            functional=config.functional_relations,
            inverses=config.inverse_relations,
            aliases=config.aliases,
            default_confidence=config.fact_confidence,
        )
        self._closed_by: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self.graph)

    def validity(self, id: str) -> Period | None:
        """From when to when (seconds; infinite while it holds) the fact `id` holds; None if there is no such fact."""
        return self.graph.validity(id)

    def holds(self, id: str, period: Period) -> bool:
        """Whether the fact holds at some time of the period."""
        valid = self.graph.validity(id)
        return valid is None or (valid[0] <= period[1] and valid[1] > period[0])

    def add(self, entry: MemoryState, vector: Vectors) -> None:
        if entry.memory["kind"] != "relational":
            return
        self.graph.add(entry.memory, entry.seq)
        for assertion in entry.assertions:
            self.graph.aggregate(entry.memory["id"], assertion)
        for by in entry.closings:
            self.close(entry, by)

    def remove(self, entry: MemoryState) -> None:
        if entry.memory["kind"] == "relational":
            self.graph.remove(entry.memory["id"])
            for by in entry.closings:
                self._closed_by.get(by, set()).discard(entry.memory["id"])

    def aggregate(self, entry: MemoryState, assertion: Json) -> None:
        """Add an assertion (a memory in the API's shape) to a fact."""
        self.graph.aggregate(entry.memory["id"], assertion)

    def close(self, entry: MemoryState, by: str) -> None:
        """The fact `by` contradicts this one, and the graph computes when it ends; without `by` it ends as recorded."""
        if by:
            self._closed(entry, by)
        else:
            self.graph.close(entry.memory["id"], entry.closings[by])

    def _closed(self, entry: MemoryState, by: str) -> None:
        self._closed_by.setdefault(by, set()).add(entry.memory["id"])

    def ended_by(self, by: str) -> set[str]:
        """Ids of the facts that `by` contradicts."""
        return {*self._closed_by.get(by, ())}

    def fact_of_assertion(self, id: str) -> str | None:
        """The id of the fact of which the memory with this id is a further assertion, or None."""
        return self.graph.fact_of_assertion(id)

    def reopened(self, by: str) -> set[str]:
        """Ids of the facts that hold again without `by`."""
        return self._closed_by.pop(by, set())


class PlacesView:
    """The spatial memories as a place map. `add` and `remove` are called for every memory of the namespace."""

    def __init__(self, config: StoreConfig) -> None:
        self.map = PlaceMap(aliases=config.aliases, epsilon=config.place_epsilon)
        self._still: PlaceMap | None = None

    def add(self, entry: MemoryState, vector: Vectors) -> None:
        if entry.memory["kind"] == "spatial":
            self.map.add(entry.memory, entry.seq)
            self._still = None

    def remove(self, entry: MemoryState) -> None:
        if entry.memory["kind"] == "spatial":
            self.map.remove(entry.memory["id"])
            self._still = None

    def still(self) -> PlaceMap:
        """A copy of the present map for long queries; at most one copy between two changes."""
        if self._still is None:
            self._still = self.map.still()
        return self._still

    def learn(self, still: PlaceMap) -> None:
        """Take over layouts computed by a query of `still`, if nothing has changed since."""
        if still is self._still:
            self.map.learn(still)
