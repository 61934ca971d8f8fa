"""The view: its parts follow the memories in the order of the log, and a namespace lives while it holds something."""

import pytest

from stores.log.record import Op
from stores.view.view import View
from stores.writes.batch import MemoryBatch
from stores.writes.group_commit import Planned
from tests.support.stores import DIM, NOW, axis, memory, open_shard, unit


class Recorder:
    """A part that notes what it is given."""

    def __init__(self):
        self.calls = []

    def add(self, entry, vector):
        assert vector.shape == (DIM,)
        self.calls.append(("add", entry.memory["id"], entry.memory["text"]))

    def remove(self, entry):
        self.calls.append(("remove", entry.memory["id"], entry.memory["text"]))


@pytest.fixture
def shard(tmp_path):
    shard = open_shard(tmp_path / "shard")
    yield shard
    shard.close()


def write(shard, op_id, op, **content):
    planned = Planned(drafts=[(op, {"namespace": "acme", **content}, b"")], result=op_id)
    return shard.core.write(op_id, op_id, lambda pending: planned, now=NOW, spaces=["acme"])


def test_parts_follow_the_memories_in_the_order_of_the_log(shard):
    fact = {"kind": "relational", "subject": "Ada", "relation": "lives_in", "text": "Ada lives there."}
    first, second = memory("f1", object="Oslo", **fact), memory("f2", object="Oslo", **fact)
    shard.memories.put(
        MemoryBatch.of([(memory("m1", text="one"), axis(0)), (first, unit(1))]), op_id="p", now=NOW
    )
    answers = [
        shard.memories.put(MemoryBatch.of([(memory("m3", text="ONE"), axis(0))]), op_id="near", now=NOW),
        shard.memories.put(MemoryBatch.of([(second, unit(2))]), op_id="same", now=NOW),
    ]
    assert [answer["status"] for (answer,) in answers] == ["duplicate", "aggregated"]
    shard.memories.supersede(memory("m1", text="uno"), axis(1), generation=1, op_id="s", now=NOW)
    assert write(shard, "c", Op.CLOSE, id="f1", valid_to=7.0) == "c"
    assert shard.memories.get("acme", "f1")["valid_to"] == 7.0

    recorder, view = Recorder(), View(DIM)
    records = [*shard.core.log.records()]
    view.apply(records[0])
    space = view.spaces["acme"]
    space.parts = (*space.parts, recorder)
    view.replay(records[1:])
    assert recorder.calls == [
        ("add", "f1", "Ada lives there."),
        ("remove", "m1", "one"),
        ("add", "m1", "uno"),
    ]
    (described,) = space.facts.graph.query("Ada")
    assert [source["id"] for source in described["provenance"]] == ["f1", "f2"]

    shard.erasure.forget("acme", ids=["f1"], op_id="f", now=NOW)
    assert shard.memories.get("acme", "f1") is None
    erased = {record.seq for record in shard.core.log.records() if record.erased}
    closing = next(record.seq for record in records if record.op is Op.CLOSE)
    assert closing in erased, "the record that closed it goes as well"


def test_a_namespace_lives_as_long_as_something_is_in_it(shard):
    shard.conversations.rewind("acme", "c", 1, op_id="t1", now=NOW)
    assert "acme" not in shard.core.view.spaces
    shard.conversations.push("acme", "c", [{"role": "user", "text": "hello"}], op_id="t2", now=NOW)
    assert shard.counts()["namespaces"] == {"acme": 0}
    shard.memories.put(MemoryBatch.of([(memory("m1"), axis(0))]), op_id="p", now=NOW)
    shard.erasure.forget("acme", ids=["m1"], op_id="f1", now=NOW)
    assert "acme" in shard.core.view.spaces
    receipt = shard.erasure.forget("acme", everything=True, op_id="f2", now=NOW)
    assert receipt["log_records"] == 1 and "acme" not in shard.core.view.spaces
    assert [record.seq for record in shard.core.log.records() if record.erased] == [1, 2]
