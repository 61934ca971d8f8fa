"""Plans of erasures: which records, memories and turns are removed when memories are forgotten."""

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from common.types import Json
from stores.log.base import Draft
from stores.log.record import Op
from stores.memory.filters import Predicate
from stores.view.conversations import Conversations
from stores.view.memory_state import MemoryState
from stores.view.view import Space, View
from stores.writes.group_commit import Planned
from stores.writes.rewrite import replace_memories, rows_of


def chosen(
    entries: Mapping[str, MemoryState], ids: Sequence[str] | None, keep: Predicate | None
) -> list[MemoryState]:
    """The memories of `ids` (None: all) that the filter `keep` admits (None: any)."""
    names = entries if ids is None else dict.fromkeys(ids)
    return [e for id in names if (e := entries.get(id)) and (keep is None or keep(e.memory))]


def texts_of(entries: Iterable[MemoryState], assertions: Iterable[Json] = ()) -> set[str]:
    """The texts of all versions of these memories, of their further assertions, and of `assertions`."""
    memories = [m for entry in entries for m in (*(v.memory for v in entry.versions), *entry.assertions)]
    return {memory["text"].strip() for memory in (*memories, *assertions)}


def chosen_assertions(
    space: Space | None, gone: Sequence[MemoryState], ids: Sequence[str] | None, keep: Predicate | None
) -> dict[str, list[Json]]:
    """Further assertions that the same selection covers, of facts that stay, by the facts' ids."""
    if space is None:
        return {}
    left = space.entries.keys() - {entry.memory["id"] for entry in gone}
    if ids is not None:
        left &= {space.facts.fact_of_assertion(id) for id in ids}
    found = {}
    for id in sorted(left):
        assertions = space.entries[id].assertions
        chosen = [t for t in assertions if (ids is None or t["id"] in ids) and (keep is None or keep(t))]
        if chosen:
            found[id] = chosen
    return found


def without(
    view: View,
    namespace: str,
    assertions: Mapping[str, Sequence[Json]],
    gone: Sequence[MemoryState],
    shard: int,
) -> Planned:
    """Rewrite facts without the given assertions; drop closings caused by the erased facts `gone`."""
    rows, _ = rows_of(view, [(namespace, id) for id in assertions], shard)
    ids = {entry.memory["id"] for entry in gone}
    for row in rows:
        dropped, statistics = assertions[row["memory"]["id"]], row["statistics"]
        statistics["tellings"] = [each for each in statistics["tellings"] if each not in dropped]
        statistics["closings"] = {by: end for by, end in statistics["closings"].items() if by not in ids}
        statistics["closed"] = min(statistics["closings"].values(), default=None)
    return replace_memories(view, rows, ())


def forget(
    view: View, namespace: str, ids: Sequence[str] | None, keep: Predicate | None, shard: int
) -> Planned:
    """Erase those memories of `ids` (None: all) that the filter `keep` (None: any) admits: every record that holds
    content of them, and the turns with the same texts. A further assertion of a fact is selected by itself; a fact
    with assertions left is rewritten without those selected. With both None the whole namespace is erased,
    short-term memory included."""
    space = view.spaces.get(namespace)
    gone = chosen(space.entries if space else {}, ids, keep)
    assertions = chosen_assertions(space, gone, ids, keep)
    kept = without(view, namespace, assertions, gone, shard)
    dropped = [assertion for some in assertions.values() for assertion in some]
    texts = texts_of(gone, dropped)
    turns: Conversations = space.conversations if space else Conversations()
    whole = ids is None and keep is None
    if whole:
        turned = forget_conversations(turns, namespace, turns.conversations)
    else:
        turned = forget_texts(turns, namespace, texts)
    forgotten = [entry.memory["id"] for entry in gone]
    erased = [*dict.fromkeys([*(seq for entry in gone for seq in entry.seqs), *kept.erase])]
    receipt = {
        "namespace": namespace,
        "forgotten": [*forgotten, *(assertion["id"] for assertion in dropped)],
        "log_records": len(erased) + len(turned.erase),
        "versions": sum(len(entry.versions) for entry in gone),
        "index_rows": len(gone),
        "lexical_docs": len(gone) if space and space.lexical is not None else 0,
        "turns": turned.result["turns"],
    }
    content: Json = {"namespace": namespace, "ids": forgotten}
    if whole:  # a reshard reads the names to remove the same elsewhere
        content |= {"whole": True, "conversations": turns.conversations}
    drafts: list[Draft] = [(Op.FORGET, content, b"")] if gone or (whole and turned.erase) else []
    drafts += kept.drafts
    if not whole:
        drafts += turned.drafts
    return Planned(drafts=drafts, result=receipt, erase=[*erased, *turned.erase])


def forget_conversations(turns: Conversations, namespace: str, conversations: Sequence[str]) -> Planned:
    """Erase whole conversations. The result: `{namespace, turns, log_records}`."""
    known = [name for name in dict.fromkeys(conversations) if turns.records(name)]
    erased = [seq for name in known for seq in turns.records(name)]
    content = {"namespace": namespace, "ids": [], "conversations": known}
    gone = sum(turns.length(name) for name in known)
    return Planned(
        drafts=[(Op.FORGET, content, b"")] if known else [],
        result={"namespace": namespace, "turns": gone, "log_records": len(erased)},
        erase=erased,
    )


def forget_texts(turns: Conversations, namespace: str, texts: Container[str]) -> Planned:
    """Erase every turn whose text is one of `texts`, in any conversation. The result as above."""
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
    """Ids of the memories and names of the conversations that an erasure names."""
    bodies = [body for _, body, _ in planned.drafts]
    found = {name for body in bodies for part in ("ids", "conversations") for name in body.get(part, ())}
    found |= {body[part] for body in bodies for part in ("id", "conversation") if part in body}
    return found | {body["memory"]["id"] for body in bodies if "memory" in body}


def unwritten(result: Any) -> set[str]:
    """Ids in a put's answer that produced no record: already written, or refused."""
    answers = [answer for answer in result if isinstance(answer, dict)] if isinstance(result, list) else []
    return {answer["id"] for answer in answers if answer.get("status") in ("existing", "refused")}
