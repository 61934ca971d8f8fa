"""The fact graph and the place map of a namespace as parts of its `Space`: functions of the memories there.

A fact's further assertions and what contradicts it are kept in its memory state (`tellings`, `closings`), so that a
snapshot, an export and a move to another shard take them along.
"""

from typing import Any

from common.config import StoreConfig
from stores.facts.graph import FactGraph
from stores.index.vectors import Vectors
from stores.places.map import PlaceMap
from stores.view.memory_state import Entry

Json = dict[str, Any]


class Facts:
    """Told of every memory; takes in the relational ones."""

    of_entries = True  # their `tellings` and `closings`: a snapshot need not take the graph along

    def __init__(self, config: StoreConfig) -> None:
        self.graph = FactGraph(
            functional=config.functional_relations,
            inverses=config.inverse_relations,
            aliases=config.aliases,
            default_confidence=config.fact_confidence,
        )
        self._closed_by: dict[str, set[str]] = {}

    def add(self, entry: Entry, vector: Vectors) -> None:
        if entry.memory["kind"] != "relational":
            return
        self.graph.add(entry.memory, entry.seq)
        for telling in entry.tellings:
            self.graph.aggregate(entry.memory["id"], telling)
        for by in entry.closings:
            self._closed(entry, by)

    def remove(self, entry: Entry) -> None:
        if entry.memory["kind"] == "relational":
            self.graph.remove(entry.memory["id"])
            for by in entry.closings:
                self._closed_by.get(by, set()).discard(entry.memory["id"])

    def aggregate(self, entry: Entry, content: Json) -> None:
        """One more telling of a fact."""
        if "telling" in content:
            self.graph.aggregate(entry.memory["id"], content["telling"])

    def close(self, entry: Entry, content: Json) -> None:
        """Another fact contradicts this one. When it ends the graph works out for itself."""
        self._closed(entry, content["by"])

    def _closed(self, entry: Entry, by: str) -> None:
        self._closed_by.setdefault(by, set()).add(entry.memory["id"])

    def ended_by(self, by: str) -> set[str]:
        """Ids of the facts that `by` contradicts."""
        return {*self._closed_by.get(by, ())}

    def told_in(self, id: str) -> str | None:
        """The fact that the memory of this id is a further telling of."""
        return self.graph.told_in(id)

    def reopened(self, by: str) -> set[str]:
        """Ids of the facts that hold again where `by` is gone."""
        return self._closed_by.pop(by, set())


class Places:
    """Told of every memory; takes in the spatial ones."""

    def __init__(self, config: StoreConfig) -> None:
        self.map = PlaceMap(aliases=config.aliases, epsilon=config.place_epsilon)
        self._still: PlaceMap | None = None

    def add(self, entry: Entry, vector: Vectors) -> None:
        if entry.memory["kind"] == "spatial":
            self.map.add(entry.memory, entry.seq)
            self._still = None

    def remove(self, entry: Entry) -> None:
        if entry.memory["kind"] == "spatial":
            self.map.remove(entry.memory["id"])
            self._still = None

    def still(self) -> PlaceMap:
        """The map as it is now, for questions that take long; one copy between two changes."""
        if self._still is None:
            self._still = self.map.still()
        return self._still

    def learn(self, still: PlaceMap) -> None:
        """What a question to `still` has worked out, where nothing has changed since."""
        if still is self._still:
            self.map.learn(still)
