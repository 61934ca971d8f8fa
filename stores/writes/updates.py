"""Plans of touch, score and import."""

import math
from collections.abc import Sequence

from common.errors import Conflict, InvalidInput
from common.types import Json
from stores.index.vectors import Vectors
from stores.log.base import Draft
from stores.log.record import Op, Record
from stores.memory.memory import Memory, from_json
from stores.view.view import View
from stores.writes import lookups
from stores.writes.graph_planner import GraphPlanner, closings
from stores.writes.group_commit import Planned


def touch(view: View, namespace: str, ids: Sequence[str]) -> Planned:
    touched = [id for id in ids if view.find(namespace, id)]
    return Planned(
        drafts=[(Op.TOUCH, {"namespace": namespace, "ids": touched}, b"")] if touched else [],
        result={"touched": touched, "unknown": [id for id in ids if id not in {*touched}]},
    )


def check_scores(scores: Sequence[tuple[str, float]]) -> None:
    if not all(math.isfinite(divergence) for _, divergence in scores):
        raise InvalidInput("scores: every divergence must be finite", param="scores")
    if len({id for id, _ in scores}) < len(scores):
        raise InvalidInput("scores: an id may come once a call", param="scores")


def score(view: View, namespace: str, scores: Sequence[tuple[str, float]], rate: float) -> Planned:
    """Average divergences (nats) into salience. `rate` is the weight of a new one in the moving average."""
    rows = [
        (id, float(divergence), entry.salience_after(divergence, rate))
        for id, divergence in scores
        if (entry := view.find(namespace, id))
    ]
    scored = {id: salience for id, _, salience in rows}
    return Planned(
        drafts=[(Op.SCORE, {"namespace": namespace, "scores": rows}, b"")] if rows else [],
        result={"scored": scored, "unknown": [id for id, _ in scores if id not in scored]},
    )


def import_rows(
    view: View, carried: Sequence[Json], memories: Sequence[Memory], vectors: Vectors, shard: int
) -> Planned:
    """Write memories with the state they had elsewhere (`memory_state.row_of`), except those that exist already. A fact
    keeps its id even if another fact is equal; facts that it contradicts end as in a put. Raises `Conflict` if an id
    exists with other content."""
    for conflict in lookups.conflicts(view, memories):
        if conflict:
            raise Conflict(conflict, param="id")
    fresh: dict[tuple[str, str], int] = {}
    for index, memory in enumerate(memories):
        if view.find(memory.namespace, memory.id) is None:
            fresh.setdefault((memory.namespace, memory.id), index)

    def settle(staged: Sequence[Record]) -> list[Json]:
        records = dict(zip(fresh, staged, strict=False))  # followed by the closings of facts
        return [
            _import_answer(view, memory, records.get((memory.namespace, memory.id)), shard)
            for memory in memories
        ]

    drafts = [_import(carried[index], vectors[index]) for index in fresh.values()]
    drafts += _ended_by(view, [carried[index] for index in fresh.values()])
    return Planned(drafts=drafts, settle=settle)


def _ended_by(view: View, carried: Sequence[Json]) -> list[Draft]:
    """Closings of facts that contradict the imported ones or are contradicted by them, except closings that the rows
    contain."""
    planner, drafts = GraphPlanner(view), []
    known: set[tuple[str, str, str]] = set()
    for row in carried:
        memory = from_json(row["memory"])
        known |= {(memory.namespace, memory.id, by) for by in row["statistics"].get("closings", ())}
        if memory.kind == "relational":
            drafts += closings(memory.namespace, planner.decide(memory))
    return [draft for draft in drafts if (draft[1]["namespace"], draft[1]["id"], draft[1]["by"]) not in known]


def _import(carried: Json, vector: Vectors) -> Draft:
    content = {name: carried[name] for name in ("memory", "novelty", "statistics", "origin", "older")}
    return Op.IMPORT, content, vector.tobytes()


def _import_answer(view: View, memory: Memory, record: Record | None, shard: int) -> Json:
    answer = {"id": memory.id, "kind": memory.kind, "shard": shard}
    if record is not None:
        return {**answer, "status": "new", "anchor": record.anchor.hex(), "seq": record.seq}
    entry = view.find(memory.namespace, memory.id)
    assert entry is not None, "what is not written was there"
    return {**answer, "status": "existing", "anchor": entry.anchor, "seq": entry.seq}
