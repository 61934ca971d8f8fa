"""Planning of facts and places: what becomes of each, given those planned before it in the same write."""

from common.types import Json
from stores.facts.decision import Decision
from stores.facts.fact import as_episodic, not_a_triple
from stores.facts.planned_graph import PlannedGraph
from stores.log.base import Draft
from stores.log.record import Op
from stores.memory.memory import Memory, to_json
from stores.view.graph_views import FactsView, PlacesView
from stores.view.memory_state import MemoryState
from stores.view.view import View


class GraphPlanner:
    """Decides on the facts and places of one write in order, each given those before it."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._ahead: dict[str, PlannedGraph] = {}

    def decide(self, memory: Memory) -> Decision:
        """What becomes of a relational or spatial memory. Later decisions take it into account."""
        content = to_json(memory)
        if memory.kind == "spatial":
            space = self._view.spaces.get(memory.namespace)
            return (space.places if space else PlacesView(self._view.config)).map.plan(content)
        facts = self._facts(memory.namespace)
        decision = facts.plan(content)
        if decision.action == "insert":
            facts.add_planned(content)
        elif decision.action == "aggregate" and decision.into:
            facts.aggregate(decision.into, content)
        return decision

    def replace(self, memory: Memory) -> Decision:
        """As `decide`, for a new version of a fact."""
        facts = self._facts(memory.namespace)
        facts.drop(memory.id)
        return facts.plan(to_json(memory))

    def drop(self, namespace: str, id: str) -> None:
        """Leave out a fact in later decisions."""
        self._facts(namespace).drop(id)

    def _facts(self, namespace: str) -> PlannedGraph:
        if namespace not in self._ahead:
            space = self._view.spaces.get(namespace)
            self._ahead[namespace] = PlannedGraph(
                (space.facts if space else FactsView(self._view.config)).graph
            )
        return self._ahead[namespace]


def routed(memory: Memory, before: MemoryState | None = None) -> Memory:
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
    """Records that end the facts which the decision contradicts."""
    return [
        (Op.CLOSE, {"namespace": namespace, "id": c.id, "valid_to": c.valid_to, "by": c.by}, b"")
        for c in decision.closes
    ]


def consequences(decision: Decision) -> Json:
    """Effects of a fact or an observation on others, by name, for the answer."""
    found = {
        "closes": [closing.id for closing in decision.closes],
        "contradicts": [*decision.contradicts],
        "merges": [*decision.merges],
    }
    return {name: ids for name, ids in found.items() if ids}
