"""How memories get from the shards of one layout to those of the next.

`changes` reads a log from some record on and gives the present state of every memory it speaks of, so
reading on from where the last batch ended catches up with what was written meanwhile. `adopt` makes those
memories the new shard's own, whole: one that came before is replaced. `Uses` are the touches and scores of
the last operations, which the new shards must know, or one that is sent again would count twice.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, islice
from typing import Any

from stores.locks import ReadWriteLock
from stores.log.base import RESULTS_KEPT, Operation
from stores.log.record import Op, Record
from stores.shard.writer import Writes
from stores.view.keyed import key_of as key_of_line
from stores.view.view import View
from stores.writes import lookups, updates
from stores.writes.group_commit import Planned
from stores.writes.rewrite import Key, adopting, key_of, rows_of

Json = dict[str, Any]

_REMEMBERED = "remembered"  # stands for the request of those operations
USES = {Op.TOUCH: "touch", Op.SCORE: "score"}  # an operation's ids may lie on several shards
Whole = tuple[Key, bool]  # what an operation changed, and is it a conversation?
Place = tuple[str, str, str, str | None]  # of a `Result`: op_id, namespace, name, kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a retry gets of an operation of which one shard did all, in either layout: a new version, a line, a
    race, turns. It goes where the memory lives that it changed (where `kind` is None, the conversation), and
    with it. `request` and `result` are None where that has been erased."""

    op_id: str
    request: str | None
    result: Any
    namespace: str
    name: str
    kind: str | None

    @property
    def place(self) -> Place:
        return self.op_id, self.namespace, self.name, self.kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Records behind `after` up to `upto`: `rows` of the memories still here, oldest first, the keys of
    those that are `gone`, the conversations of which turns came or went, whole, the `uses`, and
    the `results` of operations of which one shard did all. `more`: the log goes on behind `upto`."""

    upto: int
    more: bool
    rows: Sequence[Json] = ()
    gone: Sequence[Key] = ()
    turns: Sequence[Json] = ()
    uses: Sequence[tuple[str, Json]] = ()
    results: Sequence[Result] = ()


@dataclass(slots=True)
class Touched:
    """What up to `limit` records speak of; `upto` is the last one's number."""

    upto: int
    keys: dict[Key, None] = field(default_factory=dict)
    conversations: dict[Key, None] = field(default_factory=dict)  # namespace, conversation
    uses: list[tuple[str, Json]] = field(default_factory=list)
    whole: dict[str, Whole] = field(default_factory=dict)  # by op_id; see `Result`


def read_touched(records: Iterator[Record], after: int, limit: int) -> Touched:
    found = Touched(after)
    for record in islice(records, limit):
        found.upto = record.seq
        if record.erased:
            continue  # another record says whose it was
        content = record.content()
        found.keys |= dict.fromkeys(_keys(content))
        found.conversations |= dict.fromkeys(_conversations(record, content))
        if record.op in USES:
            found.uses.append((record.op_id, _use(record, content)))
        elif record.op is Op.TURNS:
            found.whole[record.op_id] = (content["namespace"], content["conversation"]), True
        elif record.op in (Op.SUPERSEDE, Op.RACE) or (record.op is Op.PUT and key_of_line(content["memory"])):
            found.whole[record.op_id] = next(_keys(content)), False
    return found


def turns_of(view: View, conversations: Iterable[Key]) -> list[Json]:
    """Each conversation as a record of turns that stands for all before it; popped turns stay behind. One
    that is forgotten has none to follow."""
    found = []
    for namespace, conversation in conversations:
        space = view.spaces.get(namespace)
        kept, following = space.turns.present(conversation) if space else ([], 1)
        found.append(
            {"namespace": namespace, "conversation": conversation, "keep": kept, "following": following}
        )
    return found


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


class Moving(Writes):
    """A shard's part in a reshard; `Shard` sets these."""

    _viewing: ReadWriteLock
    _state: Json

    def changes(self, after: int, limit: int) -> Changes:
        """What became of the memories that up to `limit` records behind number `after` speak of."""
        with self._writes.lock:  # a scrub puts another file in the log's place
            last = self._log.seq
            found = read_touched(self._log.records(after), after, limit)
            results = self._results(
                (op_id, *key, None if turned else self._kind(key))
                for op_id, (key, turned) in found.whole.items()
            )
        with self._viewing.read():
            rows, gone = rows_of(self._view, found.keys, self.number)
            turns = turns_of(self._view, found.conversations)
        return Changes(
            upto=found.upto,
            more=found.upto < last,
            rows=rows,
            gone=gone,
            turns=turns,
            uses=found.uses,
            results=results,
        )

    def rows(self, keys: Sequence[Key]) -> Sequence[Json]:
        """Those of the memories that are here, as `changes` gives them."""
        with self._viewing.read():
            return rows_of(self._view, keys, self.number)[0]

    def adopt(
        self, rows: Sequence[Json], gone: Sequence[Key], turns: Sequence[Json], *, op_id: str, now: float
    ) -> Json:
        """Take rows and turns of another shard over, past the gate, in place of what came of them before;
        erase what is `gone`. Returns `{rows, gone}`, their numbers."""
        spaces = {namespace for namespace, _ in (*map(key_of, rows), *gone)}
        spaces |= {kept["namespace"] for kept in turns}
        adopted: Json = self.write(
            op_id,
            lookups.request_digest("adopt", op_id),
            lambda pending: adopting(self._view, rows, gone, turns),
            now=now,
            owns=spaces,
        )
        if (gone or turns) and self._log.scrub_due:
            with self._writes.lock:
                self._log.scrub()
        return adopted

    def remember(
        self,
        part: int,
        uses: Sequence[tuple[str, Json]],
        results: Sequence[Result],
        counts: Mapping[str, int],
        *,
        now: float,
    ) -> None:
        """Keep a part of the last uses and results, numbered from 0, as long as those of our own operations
        are kept; add the former shards' counters."""
        operations = [
            Operation(op_id=r.op_id, request=r.request, records=(), result=r.result) for r in results
        ]
        with self._writes.lock:
            self._log.commit(operations)
        kept = {"uses": [*uses], "results": [result.place for result in results]}
        planned = Planned(drafts=[], result=kept, counts=counts)
        self.write(_part(part), _REMEMBERED, lambda pending: planned, now=now)
        self.__dict__.pop("_uses", None)

    def remembered(self) -> tuple[list[tuple[str, Json]], list[Result]]:
        """The uses and results that `remember` was told of."""
        with self._writes.lock:
            results = self._results(self._moved())
        return [*self._uses.by_op.items()], results

    def _results(self, places: Iterable[Place]) -> list[Result]:
        """Those that are kept. Of a put that wrote a line among other memories one shard did not do all: its
        result is a list."""
        found = ((place, self._log.seen(place[0], None)) for place in places)
        return [
            Result(op_id=op_id, namespace=namespace, name=name, kind=kind, **kept)
            for (op_id, namespace, name, kind), kept in found
            if kept is not None and not isinstance(kept["result"], list)
        ]

    def _moved(self) -> Iterator[Place]:
        """Of the results that `remember` was told of."""
        return (place for kept in self._parts() for place in kept.get("results", ()))

    def _kind(self, key: Key) -> str:
        entry = self._view.find(*key)
        return str(entry.memory["kind"]) if entry else "episodic"

    def _told_of(self, namespace: str, erasure: Planned, ids: Iterable[str] = ()) -> list[str]:
        """Also the operations that changed what goes when it was on the shards of another layout."""
        gone = {*ids, *updates.named(erasure)}
        moved = (op_id for op_id, space, name, _ in self._moved() if space == namespace and name in gone)
        return [*super()._told_of(namespace, erasure, ids), *moved]

    def _parts(self) -> Iterator[Json]:
        for part in count():
            if (kept := self._log.seen(_part(part), _REMEMBERED)) is None:
                return
            yield kept

    @cached_property
    def _uses(self) -> Uses:
        uses = Uses()
        for kept in self._parts():
            uses.add(kept["uses"])
        return uses

    def touch(self, namespace: str, ids: Sequence[str], *, op_id: str, now: float) -> Json:
        """Count one use of each memory. Returns `{touched, unknown}`."""
        done = self._uses.done(op_id, "touch", namespace)
        reply = super().touch(namespace, [id for id in ids if id not in done], op_id=op_id, now=now)
        known = {*done, *reply["touched"]}
        return {**reply, "touched": [id for id in ids if id in known]}

    def score(self, namespace: str, scores: Sequence[tuple[str, float]], *, op_id: str, now: float) -> Json:
        """Take measured divergences (nats, signed) into salience. Returns `{scored: {id: salience},
        unknown}`. An id may come once a call."""
        done = self._uses.done(op_id, "score", namespace)
        rest = [pair for pair in scores if pair[0] not in done]
        reply = super().score(namespace, rest, op_id=op_id, now=now)
        before = {id: done[id] for id, _ in scores if id in done}
        return {**reply, "scored": before | reply["scored"]}


def _part(number: int) -> str:
    return f"remembered/{number}"


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


def _conversations(record: Record, content: Json) -> Iterator[Key]:
    """The conversations whose turns a record changes."""
    if record.op is Op.TURNS:
        yield content["namespace"], content["conversation"]
    elif record.op is Op.FORGET:
        yield from ((content["namespace"], name) for name in content.get("conversations", ()))
