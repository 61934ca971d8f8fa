"""Reading the log of one shard for the shards of the next layout.

A log is read from some record on, and the present state of every memory that it names is passed on; so continuing
where the last batch ended catches up with concurrent writes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from common.types import Json
from stores.log.record import Op, Record
from stores.view.keyed import key_of
from stores.view.view import View
from stores.writes.kept_results import Result
from stores.writes.rewrite import Key

USES = {Op.TOUCH: "touch", Op.SCORE: "score"}  # an operation's ids may lie on several shards
Whole = tuple[Key, bool]  # what an operation changed, and whether that is a conversation


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """The records after `after` up to `upto`: `rows` of the memories that still exist, oldest first; keys of those that
    are `gone`; `turns`, every changed conversation whole; the `uses`; and the `results` of operations that one shard
    did alone. `more`: the log goes on after `upto`."""

    upto: int
    more: bool
    rows: Sequence[Json] = ()
    gone: Sequence[Key] = ()
    turns: Sequence[Json] = ()
    uses: Sequence[tuple[str, Json]] = ()
    results: Sequence[Result] = ()


@dataclass(slots=True)
class Touched:
    """Keys of memories and conversations named by up to `limit` records; `upto` is the last one's number."""

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
            continue  # another record names its owner
        content = record.content()
        found.keys |= dict.fromkeys(_keys(content))
        found.conversations |= dict.fromkeys(_conversations(record, content))
        if record.op in USES:
            found.uses.append((record.op_id, _use(record, content)))
        elif record.op is Op.TURNS:
            found.whole[record.op_id] = (content["namespace"], content["conversation"]), True
        elif record.op in (Op.SUPERSEDE, Op.RACE) or (record.op is Op.PUT and key_of(content["memory"])):
            found.whole[record.op_id] = next(_keys(content)), False
    return found


def turns_of(view: View, conversations: Iterable[Key]) -> list[Json]:
    """Each conversation as a record of turns that replaces all before it; popped turns are left out.
    A forgotten one has no turns and `following` 1."""
    found = []
    for namespace, conversation in conversations:
        space = view.spaces.get(namespace)
        kept, following = space.conversations.present(conversation) if space else ([], 1)
        found.append(
            {"namespace": namespace, "conversation": conversation, "keep": kept, "following": following}
        )
    return found


def _use(record: Record, content: Json) -> Json:
    done = (
        {id: None for id in content["ids"]} if "ids" in content else {s[0]: s[2] for s in content["scores"]}
    )
    return {"namespace": content["namespace"], "method": USES[record.op], "done": done}


def _keys(content: Json) -> Iterator[Key]:
    """Keys of the memories that a record names, whatever its operation."""
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
