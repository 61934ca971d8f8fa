"""Records that other parts of a namespace take: which of them hears of what, in which order."""

import pytest

from stores.log.record import Op
from stores.view import view as views
from stores.writes.group_commit import Planned
from tests.support.stores import DIM, NOW, axis, memory, open_shard, unit


class Told:
    """A part that writes down what it is told."""

    conversations = ("c",)

    def __init__(self):
        self.told = []

    def __len__(self):
        return len([op for op, *_ in self.told if op == "push"])

    def records(self, conversation):
        return [seq for op, seq, *_ in self.told if op == "push"]

    def length(self, conversation):
        return len(self)

    def plan_forget(self, conversation, texts):
        return None, 0

    def told_in(self, id):
        return None

    def add(self, entry, vector):
        assert vector.shape == (DIM,)
        self.told.append(("add", entry.memory["id"], entry.memory["text"]))

    def remove(self, entry):
        self.told.append(("remove", entry.memory["id"], entry.memory["text"]))

    def aggregate(self, entry, content):
        self.told.append(("aggregate", entry.memory["id"], content["count"]))

    def close(self, entry, content):
        self.told.append(("close", entry.memory["id"], content["valid_to"]))

    def apply(self, record, content):
        self.told.append((content["do"], record.seq))


@pytest.fixture
def shard(tmp_path, monkeypatch):
    monkeypatch.setitem(views.PARTS, "facts", lambda _: Told())
    monkeypatch.setitem(views.PARTS, "turns", lambda _: Told())
    shard = open_shard(tmp_path / "shard")
    yield shard
    shard.close()


def write(shard, op_id, op, **content):
    planned = Planned(drafts=[(op, {"namespace": "acme", **content}, b"")], result=op_id)
    return shard.write(op_id, op_id, lambda pending: planned, now=NOW, spaces=["acme"])


def test_parts_hear_of_every_memory_in_the_order_of_the_log(shard):
    shard.put([(memory("m1", text="one"), axis(0)), (memory("m2", text="two"), unit(1))], op_id="p", now=NOW)
    shard.put([(memory("m3", text="ONE"), axis(0))], op_id="twin", now=NOW)
    shard.supersede(memory("m1", text="uno"), axis(1), generation=1, op_id="s", now=NOW)
    assert write(shard, "c", Op.CLOSE, id="m2", valid_to=7.0) == "c"
    write(shard, "turn", Op.TURNS, do="push")
    assert shard.get("acme", "m2")["valid_to"] == 7.0
    shard.forget("acme", ids=["m2"], op_id="f", now=NOW)
    assert [record.seq for record in shard._log.records() if record.erased] == [2, 5], (
        "what closed it as well"
    )
    space = shard._view.spaces["acme"]
    assert space.facts.told == [
        ("add", "m1", "one"),
        ("add", "m2", "two"),
        ("aggregate", "m1", 1),
        ("remove", "m1", "one"),
        ("add", "m1", "uno"),
        ("close", "m2", 7.0),
        ("remove", "m2", "two"),
    ]
    assert space.turns.told == [("push", 6)]


def test_a_namespace_lives_as_long_as_something_is_in_it(shard):
    write(shard, "t1", Op.TURNS, do="rewind")
    assert "acme" not in shard._view.spaces
    write(shard, "t2", Op.TURNS, do="push")
    assert shard.counts()["namespaces"] == {"acme": 0}
    shard.put([(memory("m1"), axis(0))], op_id="p", now=NOW)
    shard.forget("acme", ids=["m1"], op_id="f1", now=NOW)
    assert "acme" in shard._view.spaces
    receipt = shard.forget("acme", everything=True, op_id="f2", now=NOW)
    assert receipt["log_records"] == 1 and "acme" not in shard._view.spaces
    assert [record.seq for record in shard._log.records() if record.erased] == [2, 3]
