"""What a put does with each of its memories: one decision an item, in the order given."""

from collections.abc import Sequence

from common.config import StoreConfig
from common.errors import Conflict
from common.types import Json
from stores.facts.fact import not_a_triple
from stores.index.vectors import nearest_earlier
from stores.log.base import Draft
from stores.log.record import Op, Record
from stores.memory.memory import Memory, to_json
from stores.view.memory_state import MemoryState
from stores.view.view import View
from stores.writes import lookups, near_duplicates, write_gate
from stores.writes.graph_planner import GraphPlanner, closings, consequences, routed
from stores.writes.group_commit import Key, Pending, Planned, Sought, graph_key, id_key


def keys(memories: Sequence[Memory]) -> set[Key]:
    """What a put of these memories changes."""
    graphs = {graph_key(memory.namespace) for memory in memories if memory.kind != "episodic"}
    return graphs | {id_key(memory.namespace, memory.id) for memory in memories}


class Put:
    """One put being planned. An item is written (`new`), or its answer names a memory that is there
    already, or an item before it."""

    def __init__(
        self,
        view: View,
        pending: Pending,
        memories: Sequence[Memory],
        sought: Sought,
        *,
        config: StoreConfig,
        shard: int,
        elsewhere: Sequence[float] | None,
    ) -> None:
        self._view, self._config, self._shard = view, config, shard
        self._given, self._vectors = memories, sought.vectors
        self._memories = [*map(routed, memories)]
        self._planner = GraphPlanner(view)
        self._further: list[Draft] = []  # behind the memories: sightings, assertions, closings
        self._near = lookups.neighbours(view, pending, sought)
        self._within = nearest_earlier(sought.namespaces, sought.vectors)
        self._close = max(self._within, default=0.0) >= config.dedupe_similarity
        self._novelties = lookups.novelties(self._near, self._within, elsewhere)
        self._answers: list[Json] = []
        self._written: dict[tuple[str, str], int] = {}  # id -> place of the item that is written
        self._sources: dict[int, int] = {}  # place -> place of the written item that its answer names
        self._texts: dict[tuple[str, ...], list[int]] = {}  # words -> places of written items

    def plan(self) -> Planned:
        """Raises `Conflict` where an id exists with other content."""
        for conflict in lookups.conflicts(self._view, self._memories):
            if conflict:
                raise Conflict(conflict, param="id")
        for place, memory in enumerate(self._memories):
            told = self._decide(place, memory)
            self._answers.append(
                {"kind": memory.kind, "shard": self._shard, "anchor": None, "seq": None, **told}
            )
        statuses = [told["status"] for told in self._answers]
        stored = statuses.count("new") + statuses.count("routed")
        return Planned(
            drafts=[*(self._draft(place) for place in self._written.values()), *self._further],
            settle=self._settle,
            counts={
                "gate_attempts": stored + statuses.count("refused"),
                "gate_accepts": stored,
                "duplicates": sum(draft[0] is Op.AGGREGATE for draft in self._further),
            },
        )

    def _decide(self, place: int, memory: Memory) -> Json:
        key = memory.namespace, memory.id
        if entry := self._view.find(*key):
            return _known(entry, "existing", "written before")
        if key in self._written:
            self._sources[place] = self._written[key]
            return _told(memory.id, "duplicate", "given before in this call")
        if memory.kind != "episodic":
            return self._decide_graph(place, memory)
        near = self._near[place]
        at = near_duplicates.find(memory, [(cosine, entry.memory) for cosine, entry in near], self._config)
        if at is not None:
            cosine, entry = near[at]
            return self._duplicate(memory, _known(entry, "duplicate", _reason(entry.memory["id"], cosine)))
        if (earlier := self._earlier_duplicate(place, memory)) is not None:
            self._sources[place] = earlier
            id = self._memories[earlier].id
            return self._duplicate(memory, _told(id, "duplicate", _reason(id, self._cosine(place, earlier))))
        if self._given[place].kind != memory.kind:  # never a silent drop: the gate has no say
            self._written[key] = self._sources[place] = place
            return _told(memory.id, "routed", not_a_triple(to_json(self._given[place])) or "")
        stored, gated = write_gate.decide(memory, self._novelties[place], self._config)
        if stored:
            self._written[key] = self._sources[place] = place
        return {"id": memory.id, "stored": stored, "status": "new" if stored else "refused", "gate": gated}

    def _decide_graph(self, place: int, memory: Memory) -> Json:
        """Facts and places: the whole graph decides, and nothing is refused."""
        decision = self._planner.decide(memory)
        if decision.into is not None:
            status = "aggregated" if decision.action == "aggregate" else "existing"
            if status == "aggregated":
                self._further.append(_assertion(memory, decision.into))
            told = self._naming(place, memory.namespace, decision.into, status, decision.reason)
            return {**told, "confidence": decision.confidence}
        self._written[memory.namespace, memory.id] = self._sources[place] = place
        self._further += closings(memory.namespace, decision)
        return _told(memory.id, "new", decision.reason) | consequences(decision)

    def _naming(self, place: int, namespace: str, id: str, status: str, reason: str) -> Json:
        """The answer that names a memory that is there, or is written by this call."""
        if entry := self._view.find(namespace, id):
            return _known(entry, status, reason)
        self._sources[place] = self._written[namespace, id]
        return _told(id, status, reason)

    def _duplicate(self, memory: Memory, told: Json) -> Json:
        self._further.append(_sighting(memory, told["id"]))
        return told

    def _earlier_duplicate(self, place: int, memory: Memory) -> int | None:
        """The place of the written item of this call that says the same. Texts are compared only where
        the vectors of the call come close at all."""
        if not self._close:
            return None
        alike = self._texts.setdefault((memory.namespace, *near_duplicates.words(memory.text)), [])
        stored = [(self._cosine(place, other), to_json(self._memories[other])) for other in alike]
        at = near_duplicates.find(memory, stored, self._config)
        if at is not None:
            return alike[at]
        alike.append(place)
        return None

    def _cosine(self, one: int, other: int) -> float:
        return float(self._vectors[one] @ self._vectors[other])

    def _draft(self, place: int) -> Draft:
        content = {"memory": to_json(self._memories[place]), "novelty": self._novelties[place]}
        return Op.PUT, content, self._vectors[place].tobytes()

    def _settle(self, staged: Sequence[Record]) -> list[Json]:
        """Say where each written memory went."""
        records = dict(zip(self._written.values(), staged, strict=False))  # behind them come the further ones
        for place, source in self._sources.items():
            record = records[source]
            self._answers[place] |= {"anchor": record.anchor.hex(), "seq": record.seq}
        return self._answers


def count_duplicates(
    view: View,
    pending: Pending,
    memories: Sequence[Memory],
    sought: Sought,
    *,
    config: StoreConfig,
    shard: int,
) -> Planned:
    """Count those that say the same as a memory here, as a put would, and write none of the others."""
    near = lookups.neighbours(view, pending, sought)
    answers: list[Json | None] = []
    drafts: list[Draft] = []
    for memory, pairs in zip(memories, near, strict=True):
        at = near_duplicates.find(memory, [(cosine, entry.memory) for cosine, entry in pairs], config)
        if at is None:
            answers.append(None)
            continue
        cosine, entry = pairs[at]
        told = _known(entry, "duplicate", _reason(entry.memory["id"], cosine))
        answers.append({"kind": memory.kind, "shard": shard, **told})
        drafts.append(_sighting(memory, entry.memory["id"]))
    return Planned(drafts=drafts, result=answers, counts={"duplicates": len(drafts)})


def _told(id: str, status: str, reason: str) -> Json:
    return {"id": id, "stored": True, "status": status, "gate": {"score": None, "reason": reason}}


def _known(entry: MemoryState, status: str, reason: str) -> Json:
    return {**_told(entry.memory["id"], status, reason), "anchor": entry.anchor, "seq": entry.seq}


def _reason(id: str, cosine: float) -> str:
    return f"says the same as {id} (cosine {cosine:.4f})"


def _assertion(memory: Memory, id: str) -> Draft:
    """One more assertion of a fact that is there."""
    told = {"namespace": memory.namespace, "id": id, "count": 1, "telling": to_json(memory)}
    return Op.AGGREGATE, told, b""


def _sighting(memory: Memory, id: str) -> Draft:
    """One more of a memory that is there: how often, and what came with it."""
    seen = {"id": memory.id, "time": memory.time}
    return Op.AGGREGATE, {"namespace": memory.namespace, "id": id, "count": 1, "from": seen}, b""
