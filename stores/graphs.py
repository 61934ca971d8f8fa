"""The fact graph and the place map of a namespace as parts of its `Space`: functions of the entries there.

A fact's further tellings and what contradicts it are kept in its entry (`tellings`, `closings`), so that a
snapshot, an export and a move to another shard take them along.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from common.config import StoreConfig
from stores.ahead import Ahead
from stores.decision import Decision
from stores.entry import Entry
from stores.facts import as_episodic, not_a_triple
from stores.index import Vectors
from stores.logs.base import Draft
from stores.memory import Memory, to_json
from stores.record import Op
from stores.relational import FactGraph
from stores.spatial import PlaceMap

if TYPE_CHECKING:
    from stores.view import View

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


class Planner:
    """Decides on facts and places of one write one after another, each with those before it in view."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._ahead: dict[str, Ahead] = {}

    def decide(self, memory: Memory) -> Decision:
        """What becomes of a relational or spatial memory. What is to be written is in view from then on."""
        content = to_json(memory)
        if memory.kind == "spatial":
            space = self._view.spaces.get(memory.namespace)
            return (space.places if space else Places(self._view.config)).map.plan(content)
        facts = self._facts(memory.namespace)
        decision = facts.plan(content)
        if decision.action == "insert":
            facts.add_planned(content)
        elif decision.action == "aggregate" and decision.into:
            facts.aggregate(decision.into, content)
        return decision

    def replace(self, memory: Memory) -> Decision:
        """The same for a new version of a fact."""
        facts = self._facts(memory.namespace)
        facts.drop(memory.id)
        return facts.plan(to_json(memory))

    def _facts(self, namespace: str) -> Ahead:
        if namespace not in self._ahead:
            space = self._view.spaces.get(namespace)
            self._ahead[namespace] = Ahead((space.facts if space else Facts(self._view.config)).graph)
        return self._ahead[namespace]


def routed(memory: Memory, before: Entry | None = None) -> Memory:
    """The memory as it is stored: a relational one that is no usable triple is kept as an episode, and so is
    the next version of such an episode (`before`)."""
    kept = (
        before is not None
        and before.memory["kind"] == "episodic"
        and "relational" in before.memory["context"]
    )
    if memory.kind == "relational" and (kept or not_a_triple(to_json(memory))):
        return as_episodic(memory)
    return memory


def closings(namespace: str, decision: Decision) -> list[Draft]:
    """Facts that end because another contradicts them."""
    return [
        (Op.CLOSE, {"namespace": namespace, "id": c.id, "valid_to": c.valid_to, "by": c.by}, b"")
        for c in decision.closes
    ]


def consequences(decision: Decision) -> Json:
    """What a fact or an observation does to others, for the answer."""
    found = {
        "closes": [closing.id for closing in decision.closes],
        "contradicts": [*decision.contradicts],
        "merges": [*decision.merges],
    }
    return {name: ids for name, ids in found.items() if ids}
