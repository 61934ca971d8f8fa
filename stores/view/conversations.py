"""Short-term memory: the turns of each conversation of one namespace, newest last.

`Conversations` is a view: a function of the operations applied in order. A caller plans an operation
(`plan_push`, `plan_pop`, `plan_rewind`), the shard logs it and applies it:

    {"conversation", "push": [{role, text, time}, ...], "first": number, "keep_from": number}
    {"conversation", "pop": number}        the newest turn, which has this number, was removed
    {"conversation", "rewind": number}     all turns from this number on are gone
    {"conversation", "keep": [turns], "following": number}     these turns remain, whatever was there before

Conversations are numbered from 1 and no number is used twice, so an operation identifies its turns exactly: replay
gives the same conversation even if the contents of earlier operations have been erased. A rewind by any number of
turns is one cut of a list.
"""

import json
from bisect import bisect_left
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from operator import itemgetter
from typing import Any, Literal, get_args

from common.errors import InvalidInput
from common.types import Json
from stores.log.record import Record

Role = Literal["user", "assistant", "system", "tool"]
ROLES: tuple[str, ...] = get_args(Role)
POPPED_KEPT = 256  # turns that a retried pop can still answer with, a conversation


@dataclass(slots=True)
class ConversationState:
    """`turns` are `{number, role, text, time}`; `popped` the last removed ones, by number; `records` the numbers of
    the log's records about the conversation; `dead` is true if those hold turns that are no longer in it."""

    turns: list[Json] = field(default_factory=list)
    popped: dict[int, Json] = field(default_factory=dict)
    records: list[int] = field(default_factory=list)
    following: int = 1  # number of the next turn
    dead: bool = False

    def place(self, number: int) -> int:
        """Index of the first turn with this number or a later one."""
        return bisect_left(self.turns, number, key=itemgetter("number"))


class Conversations:
    """The conversations of one namespace, by name. Changes need the shard's lock; see `Shard`."""

    def __init__(self) -> None:
        self._conversations: dict[str, ConversationState] = {}

    def __len__(self) -> int:
        """Number of conversations; one without turns still counts, since it has records to forget."""
        return len(self._conversations)

    @property
    def conversations(self) -> list[str]:
        return [*self._conversations]

    # Planning

    def plan_push(
        self, conversation: str, turns: Sequence[Mapping[str, Any]], *, now: float, limit: int = 0
    ) -> tuple[Json, Json]:
        """The operation that adds turns `{role, text}`, and its answer `{pushed, length, dropped}`.

        With a `limit`, only the newest `limit` turns are kept; `dropped` counts the others.
        Raises `InvalidInput` naming the first bad turn.
        """
        fresh = [_turn(turn, index, now) for index, turn in enumerate(turns)]
        here = self._conversations.get(conversation, ConversationState())
        length = len(here.turns) + len(fresh)
        dropped = max(0, length - limit) if limit else 0
        beyond = dropped - len(here.turns)  # of the fresh ones, those that go at once
        oldest = here.following + beyond if beyond >= 0 else here.turns[dropped]["number"]
        operation = {
            "conversation": conversation,
            "push": fresh,
            "first": here.following,
            "keep_from": oldest,
        }
        return operation, {"pushed": len(fresh), "length": length - dropped, "dropped": dropped}

    def plan_pop(self, conversation: str) -> tuple[Json | None, Json]:
        """The operation that removes the newest turn, and its answer `{popped: number | None, length}`; no
        operation if there is no turn."""
        turns = self._turns(conversation)
        if not turns:
            return None, {"popped": None, "length": 0}
        number = turns[-1]["number"]
        return {"conversation": conversation, "pop": number}, {"popped": number, "length": len(turns) - 1}

    def plan_rewind(self, conversation: str, n: int) -> tuple[Json | None, Json]:
        """The operation that removes the newest `n` turns, and its answer `{removed, length}`."""
        _check_count(n, "n")
        turns = self._turns(conversation)
        removed = min(n, len(turns))
        answer = {"removed": removed, "length": len(turns) - removed}
        if not removed:
            return None, answer
        return {"conversation": conversation, "rewind": turns[-removed]["number"]}, answer

    def plan_forget(self, conversation: str, texts: Container[str]) -> tuple[Json | None, int]:
        """The operation that removes the turns whose text, or `role: text`, is one of `texts`, and their number. It
        replaces all earlier records, which lose their content, so that turns popped, rewound and dropped are
        erased too. None if there is nothing to remove."""
        here = self._conversations[conversation]
        kept = [turn for turn in here.turns if not _says(turn, texts)]
        if len(kept) == len(here.turns) and not here.dead:
            return None, 0
        operation = {"conversation": conversation, "keep": kept, "following": here.following}
        return operation, len(here.turns) - len(kept)

    # Applying records

    def apply(self, record: Record, operation: Mapping[str, Any]) -> None:
        """Apply a record; `operation` is its content."""
        here = self._conversations.setdefault(operation["conversation"], ConversationState())
        here.records.append(record.seq)
        if "keep" in operation:
            kept, following = [*operation["keep"]], operation["following"]
            self._conversations[operation["conversation"]] = ConversationState(
                turns=kept, following=following, records=[record.seq]
            )
        elif "push" in operation:
            self._push(here, operation)
        elif "pop" in operation:
            gone = here.turns[here.place(operation["pop"]) :]
            self._cut(here, operation["pop"])
            here.popped |= {turn["number"]: turn for turn in gone}
            for number in [*islice(here.popped, max(0, len(here.popped) - POPPED_KEPT))]:
                del here.popped[number]
        else:
            self._cut(here, operation["rewind"])

    def forget(self, conversation: str) -> int:
        """Remove a conversation; returns how many turns it had."""
        gone = self._conversations.pop(conversation, None)
        return len(gone.turns) if gone else 0

    @staticmethod
    def _push(here: ConversationState, operation: Mapping[str, Any]) -> None:
        fresh = operation["push"]
        here.turns += [{"number": number, **turn} for number, turn in enumerate(fresh, operation["first"])]
        here.following = operation["first"] + len(fresh)
        dropped = here.place(operation["keep_from"])
        here.dead |= dropped > 0
        del here.turns[:dropped]

    @staticmethod
    def _cut(here: ConversationState, number: int) -> None:
        here.dead = True
        del here.turns[here.place(number) :]

    # Reads

    def peek(self, conversation: str, n: int = 1) -> list[Json]:
        """Copies of the newest `n` turns, oldest first."""
        _check_count(n, "n")
        turns = self._turns(conversation)
        return [dict(turn) for turn in turns[max(0, len(turns) - n) :]]

    def popped(self, conversation: str, number: int) -> Json | None:
        """A recently removed turn, or None. With it a retried pop answers as the first did, although results kept for
        retries hold no content."""
        here = self._conversations.get(conversation)
        turn = here.popped.get(number) if here else None
        return dict(turn) if turn else None

    def length(self, conversation: str) -> int:
        return len(self._turns(conversation))

    def present(self, conversation: str) -> tuple[list[Json], int]:
        """The turns in the form of a `keep` operation, and the number of the next one."""
        here = self._conversations.get(conversation, ConversationState())
        return [dict(turn) for turn in here.turns], here.following

    def records(self, conversation: str) -> list[int]:
        """Numbers of the log's records that lose their content when the conversation is forgotten."""
        here = self._conversations.get(conversation)
        return [*here.records] if here else []

    def everything(self) -> Iterator[tuple[str, list[Json]]]:
        """Every conversation with all its held turns, popped ones included."""
        for name, here in self._conversations.items():
            yield name, [*here.turns, *here.popped.values()]

    def dump(self) -> bytes:
        """The whole state, for a snapshot."""
        return json.dumps({name: asdict(here) for name, here in self._conversations.items()}).encode()

    def load(self, data: bytes | memoryview) -> None:
        """The inverse of `dump`."""
        for name, kept in json.loads(bytes(data)).items():
            popped = {int(number): turn for number, turn in kept.pop("popped").items()}
            self._conversations[name] = ConversationState(**kept, popped=popped)

    def _turns(self, conversation: str) -> list[Json]:
        here = self._conversations.get(conversation)
        return here.turns if here else []


def parse_transcript(text: str) -> list[Json]:
    r"""Conversations `{role, text}` of a transcript. A turn begins with its role and a colon:

        user: where is it?
        assistant: see http://example.org // it has moved
        and bring https://example.org/b
        \user: this line belongs to the assistant's turn

    Only known roles begin a turn, so `http:` does not; there are no comments, so `//` is text. A line of a turn that
    looks like a beginning, or starts with a backslash, is escaped by a backslash. Raises `InvalidInput` if text comes
    before the first turn.
    """
    turns: list[Json] = []
    for number, line in enumerate(text.split("\n"), start=1):
        role, colon, rest = line.partition(":")
        if colon and role.strip().lower() in ROLES:
            turns.append({"role": role.strip().lower(), "text": [rest.removeprefix(" ")]})
        elif turns:
            turns[-1]["text"].append(line.removeprefix("\\"))
        elif line.strip():
            raise InvalidInput(
                f"transcript line {number} belongs to no turn; begin it with one of {', '.join(ROLES)} "
                "and a colon",
                param="transcript",
            )
    return [{"role": turn["role"], "text": "\n".join(turn["text"])} for turn in turns]


def _says(turn: Mapping[str, Any], texts: Container[str]) -> bool:
    text = turn["text"].strip()
    return text in texts or f"{turn['role']}: {text}" in texts


def _turn(turn: Any, index: int, now: float) -> Json:
    where = f"turns[{index}]"
    if not isinstance(turn, Mapping) or not set(turn) <= {"role", "text", "time"}:
        raise InvalidInput(f"{where}: must be an object of role, text and perhaps time", param="turns")
    if turn.get("role") not in ROLES:
        role = str(turn.get("role"))[:64]
        raise InvalidInput(f"{where}: role {role!r}; valid: {', '.join(ROLES)}", param="turns")
    text = turn.get("text")
    if not isinstance(text, str):
        raise InvalidInput(f"{where}: text must be text", param="turns")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{where}: text holds half of a surrogate pair", param="turns") from None
    return {"role": turn["role"], "text": text, "time": float(turn.get("time", now))}


def _check_count(n: Any, name: str) -> None:
    if not isinstance(n, int) or isinstance(n, bool) or n < 0:
        raise InvalidInput(f"{name} = {str(n)[:64]}: must be a whole number, 0 or more", param=name)
