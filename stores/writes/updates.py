"""What the smaller writes do to the memories that are there: touch, score, forget, take."""

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from common.errors import Conflict, InvalidInput
from stores.index.vectors import Vectors
from stores.log.base import Draft
from stores.log.record import Op, Record
from stores.memory.filters import Predicate
from stores.memory.memory import Memory, from_json
from stores.view.conversations import Turns
from stores.view.memory_state import Entry
from stores.view.view import Space, View
from stores.writes import lookups
from stores.writes.graph_planner import Planner, closings
from stores.writes.group_commit import Planned
from stores.writes.rewrite import adopting, rows_of

Json = dict[str, Any]


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
    """`rate` is the weight of a new divergence in salience's moving average."""
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


def chosen(entries: Mapping[str, Entry], ids: Sequence[str] | None, keep: Predicate | None) -> list[Entry]:
    """Those of `ids` (None: of all) that `keep` (None: anything) chooses."""
    names = entries if ids is None else dict.fromkeys(ids)
    return [e for id in names if (e := entries.get(id)) and (keep is None or keep(e.memory))]


def said(entries: Iterable[Entry], tellings: Iterable[Json] = ()) -> set[str]:
    """Every text of these memories, of earlier versions and further tellings as well, and of `tellings`."""
    memories = [m for entry in entries for m in (*(v.memory for v in entry.versions), *entry.tellings)]
    return {memory["text"].strip() for memory in (*memories, *tellings)}


def retold(
    space: Space | None, gone: Sequence[Entry], ids: Sequence[str] | None, keep: Predicate | None
) -> dict[str, list[Json]]:
    """Further tellings that the same choice means, of facts that stay: by the facts' ids."""
    if space is None:
        return {}
    left = space.entries.keys() - {entry.memory["id"] for entry in gone}
    if ids is not None:
        left &= {space.facts.told_in(id) for id in ids}
    found = {}
    for id in sorted(left):
        tellings = space.entries[id].tellings
        chosen = [t for t in tellings if (ids is None or t["id"] in ids) and (keep is None or keep(t))]
        if chosen:
            found[id] = chosen
    return found


def without(
    view: View, namespace: str, tellings: Mapping[str, Sequence[Json]], gone: Sequence[Entry], shard: int
) -> Planned:
    """Facts written anew without some of their tellings; what `gone` contradicted is none of theirs."""
    rows, _ = rows_of(view, [(namespace, id) for id in tellings], shard)
    ids = {entry.memory["id"] for entry in gone}
    for row in rows:
        dropped, statistics = tellings[row["memory"]["id"]], row["statistics"]
        statistics["tellings"] = [each for each in statistics["tellings"] if each not in dropped]
        statistics["closings"] = {by: end for by, end in statistics["closings"].items() if by not in ids}
        statistics["closed"] = min(statistics["closings"].values(), default=None)
    return adopting(view, rows, ())


def forget(
    view: View, namespace: str, ids: Sequence[str] | None, keep: Predicate | None, shard: int
) -> Planned:
    """Erase those of `ids` (None: of all) that `keep` (None: anything) chooses: every record that holds
    something of them, and the turns that say what they say. A further telling of a fact is chosen by itself;
    a fact of which others are left is written anew. All of all is the whole namespace, short-term memory
    included."""
    space = view.spaces.get(namespace)
    gone = chosen(space.entries if space else {}, ids, keep)
    tellings = retold(space, gone, ids, keep)
    kept = without(view, namespace, tellings, gone, shard)
    untold = [telling for some in tellings.values() for telling in some]
    texts = said(gone, untold)
    turns: Turns = space.turns if space else Turns()
    whole = ids is None and keep is None
    if whole:
        turned = forget_conversations(turns, namespace, turns.conversations)
    else:
        turned = forget_texts(turns, namespace, texts)
    forgotten = [entry.memory["id"] for entry in gone]
    erased = [*dict.fromkeys([*(seq for entry in gone for seq in entry.seqs), *kept.erase])]
    receipt = {
        "namespace": namespace,
        "forgotten": [*forgotten, *(telling["id"] for telling in untold)],
        "log_records": len(erased) + len(turned.erase),
        "versions": sum(len(entry.versions) for entry in gone),
        "index_rows": len(gone),
        "lexical_docs": len(gone) if space and space.lexical is not None else 0,
        "turns": turned.result["turns"],
    }
    content: Json = {"namespace": namespace, "ids": forgotten}
    if whole:  # a reshard learns from the names what to take away elsewhere
        content |= {"whole": True, "conversations": turns.conversations}
    drafts: list[Draft] = [(Op.FORGET, content, b"")] if gone or (whole and turned.erase) else []
    drafts += kept.drafts
    if not whole:
        drafts += turned.drafts
    return Planned(drafts=drafts, result=receipt, erase=[*erased, *turned.erase])


def forget_conversations(turns: Turns, namespace: str, conversations: Sequence[str]) -> Planned:
    """Leave nothing of these conversations. The result: `{namespace, turns, log_records}`."""
    known = [name for name in dict.fromkeys(conversations) if turns.records(name)]
    erased = [seq for name in known for seq in turns.records(name)]
    content = {"namespace": namespace, "ids": [], "conversations": known}
    gone = sum(turns.length(name) for name in known)
    return Planned(
        drafts=[(Op.FORGET, content, b"")] if known else [],
        result={"namespace": namespace, "turns": gone, "log_records": len(erased)},
        erase=erased,
    )


def forget_texts(turns: Turns, namespace: str, texts: Container[str]) -> Planned:
    """Leave no turn that says one of `texts`, in any conversation. The result as above."""
    drafts: list[Draft] = []
    erased: list[int] = []
    gone = 0
    for name in turns.conversations if texts else ():
        operation, removed = turns.plan_forget(name, texts)
        if operation is not None:
            drafts.append((Op.TURNS, {"namespace": namespace, **operation}, b""))
            erased += turns.records(name)
            gone += removed
    result = {"namespace": namespace, "turns": gone, "log_records": len(erased)}
    return Planned(drafts=drafts, result=result, erase=erased)


def named(planned: Planned) -> set[str]:
    """The memories and conversations that an erasure speaks of."""
    bodies = [body for _, body, _ in planned.drafts]
    found = {name for body in bodies for part in ("ids", "conversations") for name in body.get(part, ())}
    found |= {body[part] for body in bodies for part in ("id", "conversation") if part in body}
    return found | {body["memory"]["id"] for body in bodies if "memory" in body}


def unwritten(result: Any) -> set[str]:
    """The memories that an answer to a put is about though no record says so: written before, or refused."""
    answers = [answer for answer in result if isinstance(answer, dict)] if isinstance(result, list) else []
    return {answer["id"] for answer in answers if answer.get("status") in ("existing", "refused")}


def take(
    view: View, carried: Sequence[Json], memories: Sequence[Memory], vectors: Vectors, shard: int
) -> Planned:
    """Write memories as they were elsewhere (`entry.carried`), but for those already here. A fact keeps its id,
    also where another says the same; those that it contradicts end as they do by a put."""
    for conflict in lookups.conflicts(view, memories):
        if conflict:
            raise Conflict(conflict, param="id")
    fresh: dict[tuple[str, str], int] = {}
    for place, memory in enumerate(memories):
        if view.find(memory.namespace, memory.id) is None:
            fresh.setdefault((memory.namespace, memory.id), place)

    def settle(staged: Sequence[Record]) -> list[Json]:
        records = dict(zip(fresh, staged, strict=False))  # behind them come the ends of facts
        return [
            _taken(view, memory, records.get((memory.namespace, memory.id)), shard) for memory in memories
        ]

    drafts = [_import(carried[place], vectors[place]) for place in fresh.values()]
    drafts += _ended_by(view, [carried[place] for place in fresh.values()])
    return Planned(drafts=drafts, settle=settle)


def _ended_by(view: View, carried: Sequence[Json]) -> list[Draft]:
    """The ends of facts that the imported ones contradict, or are contradicted by, but for those that they
    bring along."""
    planner, drafts = Planner(view), []
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


def _taken(view: View, memory: Memory, record: Record | None, shard: int) -> Json:
    told = {"id": memory.id, "kind": memory.kind, "shard": shard}
    if record is not None:
        return {**told, "status": "new", "anchor": record.anchor.hex(), "seq": record.seq}
    entry = view.find(memory.namespace, memory.id)
    assert entry is not None, "what is not written was there"
    return {**told, "status": "existing", "anchor": entry.anchor, "seq": entry.seq}
