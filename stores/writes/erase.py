"""Plans of erasures: which records, memories and turns are removed when memories are forgotten."""

from collections.abc import Container, Sequence
from typing import Any

from common.types import Json
from stores.log.base import Draft
from stores.log.record import Op
from stores.memory.filters import Predicate
from stores.view.conversations import Conversations
from stores.view.view import View
from stores.writes.group_commit import Planned
from stores.writes.retell import Rewritten, choose, rewritten
from stores.writes.rewrite import replace_memories


def forget(
    view: View, namespace: str, ids: Sequence[str] | None, keep: Predicate | None, shard: int
) -> Planned:
    """Erase the tellings of `ids` (None: all) that the filter `keep` (None: any) admits, as `retell.choose` says: every
    record that holds content of them, and the turns with the same texts. What is left of a memory is told again. With
    both None the whole namespace is erased, short-term memory included."""
    space = view.spaces.get(namespace)
    chosen = choose(space, ids, keep)
    whole = ids is None and keep is None  # then nothing is left to be told again
    left = Rewritten([], set(), {}) if whole else rewritten(view, namespace, chosen, shard)
    kept = replace_memories(view, left.rows, ())
    turns: Conversations = space.conversations if space else Conversations()
    if whole:
        turned = forget_conversations(turns, namespace, turns.conversations)
    else:
        turned = forget_texts(turns, namespace, chosen.texts)
    merged = [space.entries[id] for id in sorted(left.merged)] if space else []
    gone = [*{entry.memory["id"]: entry for entry in (*chosen.gone, *merged)}.values()]
    erased = [*dict.fromkeys([*(seq for entry in gone for seq in entry.seqs), *kept.erase])]
    receipt = {
        "namespace": namespace,
        "forgotten": chosen.ids,
        "kept": left.went_on,
        "log_records": len(erased) + len(turned.erase),
        "versions": sum(len(entry.versions) for entry in chosen.gone),
        "index_rows": len(gone),
        "lexical_docs": len(gone),
        "turns": turned.result["turns"],
    }
    content: Json = {"namespace": namespace, "ids": [entry.memory["id"] for entry in gone]}
    if whole:  # a reshard reads the names to remove the same elsewhere
        content |= {"whole": True, "conversations": turns.conversations}
    drafts: list[Draft] = [(Op.FORGET, content, b"")] if gone or (whole and turned.erase) else []
    drafts += [*kept.drafts, *left.closings]
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
