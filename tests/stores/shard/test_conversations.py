import asyncio
import json
import os
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from common.errors import Conflict, InvalidInput
from stores.log import record as records
from stores.log.record import Op
from stores.view.conversations import ROLES, Conversations, parse_transcript
from stores.writes.batch import MemoryBatch
from tests.support.stores import axis, memory, open_shard
from tests.support.transcripts import format_transcript

NOW = 1_700_000_000.0
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=30)
given_turns = st.lists(st.fixed_dictionaries({"role": st.sampled_from(ROLES), "text": texts}), max_size=4)
conversations = st.sampled_from(["c1", "c2"])


def apply(turns, operation, seq=1):
    """Through the log's own record and back."""
    body = json.dumps(operation).encode()
    record = records.make(
        Op.TURNS, seq=seq, epoch=1, time=NOW, op_id="o", previous=bytes(8), body=body, vector=b""
    )
    turns.apply(record, record.content())


def said(turns):
    return [(turn["role"], turn["text"]) for turn in turns]


class TurnsAgainstLists(RuleBasedStateMachine):
    """Any operations leave what a plain list would hold; and so does their replay from JSON."""

    def __init__(self):
        super().__init__()
        self.turns, self.model, self.log = Conversations(), {"c1": [], "c2": []}, []

    def do(self, operation):
        if operation is not None:
            self.log.append(operation)
            apply(self.turns, operation, len(self.log))

    @rule(name=conversations, fresh=given_turns, limit=st.integers(0, 5))
    def push(self, name, fresh, limit):
        operation, answer = self.turns.plan_push(name, fresh, now=NOW, limit=limit)
        assert said(self.turns.peek(name, 99)) == self.model[name], "planning changes nothing"
        self.do(operation)
        whole = self.model[name] + said(fresh)
        self.model[name] = whole[-limit:] if limit else whole
        left = len(self.model[name])
        assert answer == {"pushed": len(fresh), "length": left, "dropped": len(whole) - left}

    @rule(name=conversations)
    def pop(self, name):
        operation, answer = self.turns.plan_pop(name)
        self.do(operation)
        if self.model[name]:
            wanted = self.model[name].pop()
            assert said([self.turns.popped(name, answer["popped"])]) == [wanted]
        else:
            assert operation is None and answer["popped"] is None

    @rule(name=conversations, n=st.integers(0, 8))
    def rewind(self, name, n):
        operation, answer = self.turns.plan_rewind(name, n)
        self.do(operation)
        removed = min(n, len(self.model[name]))
        self.model[name] = self.model[name][: len(self.model[name]) - removed]
        assert answer == {"removed": removed, "length": len(self.model[name])}

    @invariant()
    def holds_what_the_list_holds(self):
        replayed, loaded = Conversations(), Conversations()
        for seq, operation in enumerate(self.log, start=1):
            apply(replayed, operation, seq)
        loaded.load(memoryview(self.turns.dump()))
        assert loaded.dump() == self.turns.dump()
        for name, turns in self.model.items():
            for view in (self.turns, replayed, loaded):
                assert said(view.peek(name, 99)) == turns and view.length(name) == len(turns)
                assert said(view.peek(name, 2)) == turns[-2:] and view.peek(name, 0) == []
            numbers = [turn["number"] for turn in self.turns.peek(name, 99)]
            assert numbers == sorted(set(numbers))
            assert replayed.records(name) == self.turns.records(name)


TestTurnsAgainstLists = TurnsAgainstLists.TestCase
TestTurnsAgainstLists.settings = settings(max_examples=30, deadline=None)


def test_fifty_thousand_turns_are_pushed_popped_and_rewound_without_recursion():
    turns = Conversations()
    deep = sys.getrecursionlimit()
    sys.setrecursionlimit(200)
    try:
        for start in range(0, 50_000, 1000):
            fresh = [{"role": "user", "text": str(i)} for i in range(start, start + 1000)]
            apply(turns, turns.plan_push("c", fresh, now=NOW)[0])
        for i in range(100):
            operation, answer = turns.plan_pop("c")
            apply(turns, operation)
            assert turns.popped("c", answer["popped"])["text"] == str(49_999 - i)
        operation, answer = turns.plan_rewind("c", 49_000)
        apply(turns, operation)
    finally:
        sys.setrecursionlimit(deep)
    assert answer == {"removed": 49_000, "length": 900}
    assert [turn["text"] for turn in turns.peek("c", 2)] == ["898", "899"]


def test_replay_is_right_where_earlier_pushes_were_erased():
    """Forgotten records are skipped on replay; what came after must not lean on them."""
    turns, log = Conversations(), []

    def do(operation):
        log.append(operation)
        apply(turns, operation, len(log))

    do(turns.plan_push("c", [{"role": "user", "text": "old"}] * 3, now=NOW)[0])
    do(turns.plan_pop("c")[0])
    erased = turns.records("c")
    assert erased == [1, 2] and turns.forget("c") == 2 and turns.conversations == []
    do(turns.plan_push("c", [{"role": "user", "text": f"new {i}"} for i in range(3)], now=NOW)[0])
    do(turns.plan_rewind("c", 1)[0])

    replayed = Conversations()
    for seq, operation in enumerate(log, start=1):
        if seq not in erased:
            apply(replayed, operation, seq)
    assert replayed.peek("c", 9) == turns.peek("c", 9)
    assert [turn["text"] for turn in turns.peek("c", 9)] == ["new 0", "new 1"]


def test_answers_are_copies():
    turns = Conversations()
    apply(turns, turns.plan_push("c", [{"role": "user", "text": "a"}], now=NOW)[0])
    turns.peek("c")[0]["text"] = "changed"
    assert turns.peek("c")[0]["text"] == "a"


@pytest.mark.parametrize(
    "bad",
    [
        {"role": "pirate", "text": "a"},
        {"role": "user"},
        {"role": "user", "text": "\ud800"},
        "user: a",
        {"x": 1},
    ],
)
def test_a_bad_turn_is_named(bad):
    with pytest.raises(InvalidInput, match=r"turns\[1\]"):
        Conversations().plan_push("c", [{"role": "user", "text": "a"}, bad], now=NOW)


@pytest.mark.parametrize("n", [-1, True, 1.5, "2"])
def test_a_bad_count_is_refused(n):
    for call in (Conversations().peek, Conversations().plan_rewind):
        with pytest.raises(InvalidInput):
            call("c", n)


# Transcripts


@given(given_turns)
def test_a_transcript_survives_its_text(turns):
    assert parse_transcript(format_transcript(turns)) == turns


def test_addresses_and_comments_inside_text_stay():
    text = (
        'user: fetch "http://example.org/a?b=c#d" // not a comment\n'
        "http://example.org: is a line of its own\n"
        'Assistant: {"url": "http://x//y"} /* kept */ é 漢字 👩‍🚀\n'
        "note: this is no role\n"
        "\\user: nor is this\n"
        "user:"
    )
    assert parse_transcript(text) == [
        {
            "role": "user",
            "text": 'fetch "http://example.org/a?b=c#d" // not a comment\n'
            "http://example.org: is a line of its own",
        },
        {
            "role": "assistant",
            "text": '{"url": "http://x//y"} /* kept */ é 漢字 👩‍🚀\nnote: this is no role\nuser: nor is this',
        },
        {"role": "user", "text": ""},
    ]


def test_text_before_the_first_turn_is_named():
    with pytest.raises(InvalidInput, match="line 2"):
        parse_transcript("\nhttp://example.org\nuser: a")


def test_ten_thousand_lines_parse_without_recursion():
    turns = [{"role": "user", "text": f"http://{i}\n//{i}"} for i in range(10_000)]
    assert parse_transcript(format_transcript(turns)) == turns


# Through a shard


@pytest.fixture
def shard(tmp_path):
    shard = open_shard(tmp_path / "shard")
    yield shard
    shard.close()


def push(shard, conversation, *words, namespace="acme", **options):
    turns = [{"role": "user", "text": word} for word in words]
    return shard.conversations.push(
        namespace, conversation, turns, op_id=os.urandom(8).hex(), now=NOW, **options
    )


def pop(shard, conversation="c", op_id=None):
    return shard.conversations.pop("acme", conversation, op_id=op_id or os.urandom(8).hex(), now=NOW)


def words(shard, conversation="c", n=99_999, namespace="acme"):
    return [turn["text"] for turn in shard.conversations.peek(namespace, conversation, n)]


def disk(shard):
    return b"".join(file.read_bytes() for file in shard.core.log.path.rglob("*") if file.is_file())


def test_turns_are_durable_and_namespaces_apart(tmp_path):
    shard = open_shard(tmp_path / "shard")
    push(shard, "c", "a", "é 漢字", "http://x // y")
    push(shard, "c", "theirs", namespace="other")
    assert pop(shard)["turn"]["text"] == "http://x // y"
    assert shard.conversations.rewind("acme", "c", 1, op_id="r", now=NOW) == {"removed": 1, "length": 1}
    push(shard, "c", "b")
    for _ in range(2):
        assert words(shard) == ["a", "b"] and words(shard, namespace="other") == ["theirs"]
        assert words(shard, namespace="nobody") == [] and pop(shard, "empty") == {"turn": None, "length": 0}
        assert shard.chain.verify() is None
        shard.close()
        shard = open_shard(tmp_path / "shard")
    shard.close()


def test_every_operation_counts_once_however_often_it_is_sent(shard):
    for _ in range(3):
        assert (
            shard.conversations.push("acme", "c", [{"role": "user", "text": "a"}] * 5, op_id="push", now=NOW)[
                "length"
            ]
            == 5
        )
    for _ in range(3):
        popped = pop(shard, op_id="pop")
        assert popped["length"] == 4 and popped["turn"]["text"] == "a" and popped["turn"]["number"] == 5
        assert shard.conversations.rewind("acme", "c", 2, op_id="rewind", now=NOW) == {
            "removed": 2,
            "length": 2,
        }
    with pytest.raises(Conflict):
        shard.conversations.rewind("acme", "c", 3, op_id="rewind", now=NOW)
    assert len(words(shard)) == 2


def test_ten_thousand_blocks_rewind_through_the_log(shard):
    for start in range(0, 12_000, 1000):
        push(shard, "c", *map(str, range(start, start + 1000)))
    assert shard.conversations.rewind("acme", "c", 11_000, op_id="r", now=NOW) == {
        "removed": 11_000,
        "length": 1000,
    }
    assert words(shard)[-1] == "999"


def test_a_conversation_can_be_bounded(tmp_path):
    shard = open_shard(tmp_path / "shard", max_turns=3)
    for i in range(10):
        push(shard, "c", f"{i}a", f"{i}b")
    shard.close()
    shard = open_shard(tmp_path / "shard")
    assert words(shard) == ["8b", "9a", "9b"], "what was dropped stays so under another setting"
    shard.close()


def test_many_threads_push_and_pop_and_no_turn_is_lost_or_given_twice(shard):
    popped, per_thread = [], 25

    def work(number):
        for i in range(per_thread):
            push(shard, f"c{i % 2}", f"{number} {i}")
            if i % 3 == 2 and (turn := pop(shard, f"c{i % 2}")["turn"]):
                popped.append(turn["text"])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = words(shard, "c0") + words(shard, "c1")
    pushed = [f"{number} {i}" for number in range(8) for i in range(per_thread)]
    assert sorted(left + popped) == sorted(pushed)
    for name in ("c0", "c1"):  # what one thread said stands in the order it said it
        said = [text.split() for text in words(shard, name)]
        for number in range(8):
            mine = [int(i) for who, i in said if who == str(number)]
            assert mine == sorted(mine)


def test_async_callers_share_a_conversation(shard):
    async def talk():
        calls = [asyncio.to_thread(push, shard, "c", f"{i}") for i in range(40)]
        lengths = [answer["length"] for answer in await asyncio.gather(*calls)]
        assert sorted(lengths) == list(range(1, 41)), "each saw a state of its own"

    asyncio.run(talk())
    assert sorted(map(int, words(shard))) == list(range(40))


def test_a_forgotten_conversation_leaves_nothing(tmp_path):
    shard = open_shard(tmp_path / "shard")
    push(shard, "c", "canary one", "canary two", "canary three")
    push(shard, "d", "kept")
    pop(shard)
    shard.conversations.rewind("acme", "c", 1, op_id="r", now=NOW)
    receipt = shard.erasure.forget_turns("acme", conversations=["c", "unknown"], op_id="f", now=NOW)
    assert receipt == {
        "namespace": "acme",
        "turns": 1,
        "log_records": 3,
        "scrubbed": True,
        "keys_destroyed": None,
    }
    assert shard.erasure.forget_turns("acme", conversations=["c", "unknown"], op_id="f", now=NOW) == receipt
    push(shard, "c", "new life")
    for _ in range(2):
        assert words(shard) == ["new life"] and words(shard, "d") == ["kept"]
        assert b"canary" not in disk(shard) and b"kept" in disk(shard) and shard.chain.verify() is None
        shard.close()
        shard = open_shard(tmp_path / "shard")
    shard.close()


def test_a_forgotten_memory_is_not_in_any_conversation(tmp_path):
    """Also what was said, then popped, rewound or dropped, since the log would still hold it."""
    shard = open_shard(tmp_path / "shard", max_turns=4)
    shard.memories.put(MemoryBatch.of([(memory("m", text="user: canary"), axis(0))]), op_id="put", now=NOW)
    push(shard, "c", "first", "canary", "last")
    push(shard, "popped", "stays", "canary")
    pop(shard, "popped")
    push(shard, "rewound", "canary", "x")
    shard.conversations.rewind("acme", "rewound", 2, op_id="r", now=NOW)
    push(shard, "dropped", "canary", "1", "2", "3", "4")
    push(shard, "untouched", "no bird")
    receipt = shard.erasure.forget("acme", ids=["m"], op_id="f", now=NOW)
    assert receipt["turns"] == 1 and receipt["scrubbed"]
    push(shard, "c", "more")
    for _ in range(2):
        assert words(shard) == ["first", "last", "more"] and words(shard, "popped") == ["stays"]
        assert words(shard, "dropped") == ["1", "2", "3", "4"] and words(shard, "untouched") == ["no bird"]
        assert b"canary" not in disk(shard) and shard.chain.verify() is None
        shard.close()
        shard = open_shard(tmp_path / "shard", max_turns=4)
    shard.close()


def test_a_forgotten_namespace_has_no_conversations(tmp_path):
    shard = open_shard(tmp_path / "shard")
    push(shard, "c", "canary")
    push(shard, "c", "theirs", namespace="other")
    assert shard.erasure.forget("acme", everything=True, op_id="f", now=NOW)["turns"] == 1
    for _ in range(2):
        assert words(shard) == [] and words(shard, namespace="other") == ["theirs"]
        assert b"canary" not in disk(shard)
        shard.close()
        shard = open_shard(tmp_path / "shard")
    shard.close()
