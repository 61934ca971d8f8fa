"""Planning of a put: one decision for each memory, in the order given."""

from collections.abc import Mapping, Sequence

from common.config import StoreConfig
from common.errors import Conflict
from common.types import Json
from stores.facts.fact import not_a_triple
from stores.index.passages import encode
from stores.index.vectors import Vectors, nearest_earlier
from stores.log.base import Draft
from stores.log.record import Op, Record
from stores.memory.memory import Memory, plain_words, to_json
from stores.view.memory_state import MemoryState
from stores.view.view import View
from stores.writes import lookups, near_duplicates, write_gate
from stores.writes.graph_planner import GraphPlanner, closings, consequences, routed
from stores.writes.group_commit import Key, Pending, Planned, Sought, graph_key, id_key
from stores.writes.retell import Telling, assertion


def keys(memories: Sequence[Memory]) -> set[Key]:
    """The keys that a put of these memories changes; see `group_commit`."""
    graphs = {graph_key(memory.namespace) for memory in memories if memory.kind != "episodic"}
    return graphs | {id_key(memory.namespace, memory.id) for memory in memories}


class Put:
    """One put being planned. Each item is written (`new`), or its answer names an existing memory or an earlier
    item."""

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
        passages: Mapping[int, Vectors] | None = None,
    ) -> None:
        self._passages = passages or {}
        self._view, self._config, self._shard = view, config, shard
        self._given, self._vectors = memories, sought.vectors
        self._memories = [*map(routed, memories)]
        self._planner = GraphPlanner(view)
        self._further: list[Draft] = []  # after the memories: sightings, assertions, closings
        self._near = lookups.neighbours(view, pending, sought)
        self._within = nearest_earlier(sought.namespaces, sought.vectors)
        self._close = max(self._within, default=0.0) >= config.dedupe_similarity
        self._novelties = lookups.novelties(self._near, self._within, elsewhere)
        self._answers: list[Json] = []
        self._written: dict[tuple[str, str], int] = {}  # id -> index of the written item
        self._sources: dict[int, int] = {}  # index -> index of the written item that its answer names
        self._texts: dict[tuple[str, ...], list[int]] = {}  # words -> indices of written items

    def plan(self) -> Planned:
        """The plan of the whole put. Raises `Conflict` if an id exists with other content."""
        for conflict in lookups.conflicts(self._view, self._memories):
            if conflict:
                raise Conflict(conflict, param="id")
        for index, memory in enumerate(self._memories):
            answer = self._decide(index, memory)
            self._answers.append(
                {"kind": memory.kind, "shard": self._shard, "anchor": None, "seq": None, **answer}
            )
        statuses = [answer["status"] for answer in self._answers]
        stored = statuses.count("new") + statuses.count("routed")
        return Planned(
            drafts=[*(self._draft(index) for index in self._written.values()), *self._further],
            settle=self._settle,
            counts={
                "gate_attempts": stored + statuses.count("refused"),
                "gate_accepts": stored,
                "duplicates": sum(draft[0] is Op.AGGREGATE for draft in self._further),
            },
        )

    def _decide(self, index: int, memory: Memory) -> Json:
        key = memory.namespace, memory.id
        if entry := self._view.find(*key):
            return _known(entry, "existing", "written before")
        if key in self._written:
            self._sources[index] = self._written[key]
            return _answer(memory.id, "duplicate", "given before in this call")
        if memory.kind != "episodic":
            return self._decide_graph(index, memory)
        near = self._near[index]
        at = near_duplicates.find(memory, [(cosine, entry.memory) for cosine, entry in near], self._config)
        if at is not None:
            cosine, entry = near[at]
            if memory.id in (telling["id"] for telling in entry.assertions):
                return _known(entry, "existing", "told before under this id")
            known = _known(entry, "duplicate", _reason(entry.memory["id"], cosine))
            return self._duplicate(index, known, entry.memory["text"])
        if (earlier := self._earlier_duplicate(index, memory)) is not None:
            self._sources[index] = earlier
            first = self._memories[earlier]
            answer = _answer(first.id, "duplicate", _reason(first.id, self._cosine(index, earlier)))
            return self._duplicate(index, answer, first.text)
        if self._given[index].kind != memory.kind:  # never a silent drop: the gate does not apply
            self._written[key] = self._sources[index] = index
            return _answer(memory.id, "routed", not_a_triple(to_json(self._given[index])) or "")
        stored, gated = write_gate.decide(memory, self._novelties[index], self._config)
        if stored:
            self._written[key] = self._sources[index] = index
        return {"id": memory.id, "stored": stored, "status": "new" if stored else "refused", "gate": gated}

    def _decide_graph(self, index: int, memory: Memory) -> Json:
        """Facts and places: the decision depends on the whole graph, and nothing is refused."""
        decision = self._planner.decide(memory)
        if decision.into is not None:
            status = "aggregated" if decision.action == "aggregate" else "existing"
            if status == "aggregated":
                entry = self._view.find(memory.namespace, decision.into)
                text = (
                    entry.memory["text"]
                    if entry
                    else self._memories[self._written[memory.namespace, decision.into]].text
                )
                self._further.append(self._telling(index, decision.into, text))
            answer = self._naming(index, memory.namespace, decision.into, status, decision.reason)
            return {**answer, "confidence": decision.confidence}
        self._written[memory.namespace, memory.id] = self._sources[index] = index
        self._further += closings(memory.namespace, decision)
        return _answer(memory.id, "new", decision.reason) | consequences(decision)

    def _naming(self, index: int, namespace: str, id: str, status: str, reason: str) -> Json:
        """The answer that names an existing memory, or one written by this call."""
        if entry := self._view.find(namespace, id):
            return _known(entry, status, reason)
        self._sources[index] = self._written[namespace, id]
        return _answer(id, status, reason)

    def _duplicate(self, index: int, answer: Json, text: str) -> Json:
        self._further.append(self._telling(index, answer["id"], text))
        return answer

    def _telling(self, index: int, id: str, text: str) -> Draft:
        """The record of one more telling of the memory `id`, whose text is `text`."""
        memory = self._memories[index]
        return assertion(Telling(to_json(memory), self._vectors[index]), id, text)

    def _earlier_duplicate(self, index: int, memory: Memory) -> int | None:
        """The index of an earlier written item of this call that `memory` duplicates, or None. Texts are compared
        only if any two vectors of the call are close."""
        if not self._close:
            return None
        alike = self._texts.setdefault((memory.namespace, *plain_words(memory.text)), [])
        stored = [(self._cosine(index, other), to_json(self._memories[other])) for other in alike]
        at = near_duplicates.find(memory, stored, self._config)
        if at is not None:
            return alike[at]
        alike.append(index)
        return None

    def _cosine(self, one: int, other: int) -> float:
        return float(self._vectors[one] @ self._vectors[other])

    def _draft(self, index: int) -> Draft:
        content: Json = {"memory": to_json(self._memories[index]), "novelty": self._novelties[index]}
        if index in self._passages:
            content["passages"] = encode(self._passages[index])
        return Op.PUT, content, self._vectors[index].tobytes()

    def _settle(self, staged: Sequence[Record]) -> list[Json]:
        """The answers, with anchor and seq of each written memory."""
        records = dict(zip(self._written.values(), staged, strict=False))  # followed by the further drafts
        for index, source in self._sources.items():
            record = records[source]
            self._answers[index] |= {"anchor": record.anchor.hex(), "seq": record.seq}
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
    """Count the near duplicates of memories of this shard, as a put would; write none of the others."""
    near = lookups.neighbours(view, pending, sought)
    answers: list[Json | None] = []
    drafts: list[Draft] = []
    for memory, vector, pairs in zip(memories, sought.vectors, near, strict=True):
        at = near_duplicates.find(memory, [(cosine, entry.memory) for cosine, entry in pairs], config)
        if at is None:
            answers.append(None)
            continue
        cosine, entry = pairs[at]
        answer = _known(entry, "duplicate", _reason(entry.memory["id"], cosine))
        answers.append({"kind": memory.kind, "shard": shard, **answer})
        told = Telling(to_json(memory), vector)
        drafts.append(assertion(told, entry.memory["id"], entry.memory["text"]))
    return Planned(drafts=drafts, result=answers, counts={"duplicates": len(drafts)})


def _answer(id: str, status: str, reason: str) -> Json:
    return {"id": id, "stored": True, "status": status, "gate": {"score": None, "reason": reason}}


def _known(entry: MemoryState, status: str, reason: str) -> Json:
    return {**_answer(entry.memory["id"], status, reason), "anchor": entry.anchor, "seq": entry.seq}


def _reason(id: str, cosine: float) -> str:
    return f"says the same as {id} (cosine {cosine:.4f})"
