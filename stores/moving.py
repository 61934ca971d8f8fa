"""How memories get from the shards of one layout to those of the next.

`changes` reads a log from some record on and gives the present state of every memory it speaks of, so
reading on from where the last batch ended catches up with what was written meanwhile. `adopt` makes those
memories the new shard's own, whole: one that came before is replaced. `Uses` are the touches and scores of
the last operations, which the new shards must know, or one that is sent again would count twice.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from stores.logs.base import RESULTS_KEPT, Draft
from stores.record import Op, Record
from stores.view import Entry, View

Json = dict[str, Any]
Key = tuple[str, str]  # namespace, id

USES = {Op.TOUCH: "touch", Op.SCORE: "score"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Records behind `after` up to `upto`: `rows` of the memories still here, oldest first, the keys of
    those that are `gone`, and the `uses`. `more`: the log goes on behind `upto`."""

    upto: int
    more: bool
    rows: Sequence[Json] = ()
    gone: Sequence[Key] = ()
    uses: Sequence[tuple[str, Json]] = ()


def read_changes(records: Iterator[Record], after: int, limit: int) -> tuple[int, list[Key], list[Any]]:
    """Of up to `limit` records: the last number, the memories they speak of, the uses."""
    upto, keys, uses = after, dict[Key, None](), []
    for record in islice(records, limit):
        upto = record.seq
        if record.erased:
            continue  # another record says whose it was
        content = record.content()
        keys |= dict.fromkeys(_keys(content))
        if record.op in USES:
            uses.append((record.op_id, _use(record, content)))
    return upto, [*keys], uses


def rows_of(view: View, keys: Iterable[Key]) -> tuple[list[Json], list[Key]]:
    """Rows of the memories that are here, oldest first, and the keys of the others."""
    found = {key: view.find(*key) for key in keys}
    entries = sorted((entry for entry in found.values() if entry), key=lambda entry: entry.seq)
    return [_row(view, entry) for entry in entries], [key for key, entry in found.items() if entry is None]


def adopting(view: View, rows: Sequence[Json], gone: Sequence[Key]) -> tuple[list[Draft], list[int]]:
    """Drafts that make the rows this shard's own and take the others away; numbers of the records that
    lose their content by it."""
    keys = dict.fromkeys((*gone, *((row["memory"]["namespace"], row["memory"]["id"]) for row in rows)))
    replaced: dict[str, list[Entry]] = {}
    for namespace, id in keys:
        if entry := view.find(namespace, id):
            replaced.setdefault(namespace, []).append(entry)
    drafts: list[Draft] = [
        (Op.FORGET, {"namespace": namespace, "ids": [entry.memory["id"] for entry in entries]}, b"")
        for namespace, entries in replaced.items()
    ]
    for row in rows:
        body = {name: value for name, value in row.items() if name != "vector"}
        drafts.append((Op.IMPORT, body, row["vector"]))
    return drafts, [seq for entries in replaced.values() for entry in entries for seq in entry.seqs]


@dataclass(slots=True)
class Uses:
    """For each of the last operations what it has done to which memory."""

    by_op: dict[str, Json] = field(default_factory=dict)

    def add(self, uses: Iterable[tuple[str, Json]]) -> None:
        """`uses` are pairs of op_id and `{namespace, method, done: {id: value}}`."""
        for op_id, use in uses:
            known = self.by_op.pop(op_id, None)
            done = {**(known["done"] if known else {}), **use["done"]}
            self.by_op[op_id] = {**use, "done": done}
        for op_id in [*islice(self.by_op, max(0, len(self.by_op) - RESULTS_KEPT))]:
            del self.by_op[op_id]

    def done(self, op_id: str, method: str, namespace: str) -> Json:
        """Values by id of what this operation did in another layout."""
        use = self.by_op.get(op_id)
        return use["done"] if use and (use["method"], use["namespace"]) == (method, namespace) else {}


def _use(record: Record, content: Json) -> Json:
    done = (
        {id: None for id in content["ids"]} if "ids" in content else {s[0]: s[2] for s in content["scores"]}
    )
    return {"namespace": content["namespace"], "method": USES[record.op], "done": done}


def _keys(content: Json) -> Iterator[Key]:
    """The memories that a record speaks of, whatever its operation."""
    if "memory" in content:
        yield content["memory"]["namespace"], content["memory"]["id"]
        return
    namespace = content["namespace"]
    yield from ((namespace, id) for id in content.get("ids", ()))
    yield from ((namespace, score[0]) for score in content.get("scores", ()))
    if "id" in content:
        yield namespace, content["id"]
