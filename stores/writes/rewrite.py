"""Replace memories with complete new records: when they move to another shard, and when part of the content of one
of their records is erased."""

from collections.abc import Container, Iterable, Iterator, Sequence
from operator import itemgetter

from common.types import Json
from stores.log.base import Draft
from stores.log.record import Op
from stores.view.memory_state import MemoryState, row_of
from stores.view.view import Space, View
from stores.writes.group_commit import Planned

Key = tuple[str, str]  # namespace, id


def rows_of(view: View, keys: Iterable[Key], shard: int) -> tuple[list[Json], list[Key]]:
    """Rows of the memories that this shard holds, oldest first, with the facts that they end; and the keys of
    those that it does not hold."""
    found = {key: view.find(*key) for key in keys}
    here = sorted(((entry.seq, key[0], entry) for key, entry in found.items() if entry), key=itemgetter(0))
    rows = []
    for seq, namespace, entry in here:
        row = row_of(entry, view.spaces[namespace].index.vectors_of([seq])[0], shard)
        row["statistics"]["written"] = entry.written
        row["ends"] = _ends(view.spaces[namespace], entry.memory["id"])
        rows.append(row)
    return rows, [key for key, entry in found.items() if entry is None]


def replace_memories(
    view: View, rows: Sequence[Json], gone: Sequence[Key], turns: Sequence[Json] = ()
) -> Planned:
    """Write `rows` and `turns` and remove the memories in `gone`. Earlier records of all of them are erased."""
    keys = dict.fromkeys((*gone, *map(key_of, rows)))
    replaced: dict[str, list[MemoryState]] = {}
    for namespace, id in keys:
        if entry := view.find(namespace, id):
            replaced.setdefault(namespace, []).append(entry)
    drafts: list[Draft] = [
        (Op.FORGET, {"namespace": namespace, "ids": [entry.memory["id"] for entry in entries]}, b"")
        for namespace, entries in replaced.items()
    ]
    for row in rows:
        body = {name: value for name, value in row.items() if name not in ("vector", "ends")}
        drafts.append((Op.IMPORT, body, row["vector"].tobytes()))
    drafts += _ended(view, rows, keys)
    erase = [seq for entries in replaced.values() for entry in entries for seq in entry.seqs]
    for kept in turns:
        drafts.append((Op.TURNS, kept, b"") if kept["following"] > 1 else _no_turns(kept))
        if space := view.spaces.get(kept["namespace"]):
            erase += space.conversations.records(kept["conversation"])
    return Planned(
        drafts=drafts, result={"rows": len(rows), "gone": len(gone)}, erase=[*dict.fromkeys(erase)]
    )


def _ends(space: Space, id: str) -> Json:
    """The facts that the fact `id` contradicts, each with the time (seconds) at which it ended."""
    found = {other: space.entries[other] for other in sorted(space.facts.ended_by(id) & space.entries.keys())}
    return {other: entry.closings[id] for other, entry in found.items() if id in entry.closings}


def _ended(view: View, rows: Sequence[Json], keys: Container[Key]) -> Iterator[Draft]:
    """Closings of the facts that the rows contradict, which forgetting the rows has reopened. Facts among `keys`
    bring their own closings or are removed."""
    for row in rows:
        namespace, by = key_of(row)
        for id, valid_to in row["ends"].items():
            if (namespace, id) not in keys and view.find(namespace, id):
                yield Op.CLOSE, {"namespace": namespace, "id": id, "valid_to": valid_to, "by": by}, b""


def _no_turns(kept: Json) -> Draft:
    return (
        Op.FORGET,
        {"namespace": kept["namespace"], "ids": [], "conversations": [kept["conversation"]]},
        b"",
    )


def key_of(row: Json) -> Key:
    return row["memory"]["namespace"], row["memory"]["id"]
