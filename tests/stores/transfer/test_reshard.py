"""What a reshard brings from one shard to another, where the old one goes on changing between two batches."""

from typing import Any

import pytest

from common.errors import Conflict
from stores.shard.shard import Shard
from stores.view.keyed import line_id
from stores.writes.batch import MemoryBatch
from tests.support.stores import NOW, memory, open_shard, unit


@pytest.fixture
def pair(tmp_path: Any) -> Any:
    shards = open_shard(tmp_path / "old"), open_shard(tmp_path / "new")
    yield shards
    for shard in shards:
        shard.close()


def copy(old: Shard, new: Shard, after: int) -> int:
    """One batch, as `reshard` copies it; where it ended."""
    changes = old.reshard.changes(after, 100)
    new.reshard.adopt(
        changes.rows, changes.gone, changes.turns, op_id=f"copy-{after}-{changes.upto}", now=NOW
    )
    assert not changes.more
    return changes.upto


def put(shard: Shard, id: str, place: str, start: float) -> None:
    fact = {"subject": "Ann", "relation": "lives in", "object": place, "time": start}
    item = memory(id, kind="relational", text=f"{id}: Ann lives in {place}", **fact)
    shard.memories.put(MemoryBatch.of([(item, unit(len(place)))]), op_id=f"put-{id}", now=start)


def ends(shard: Shard) -> dict[str, Any]:
    return {each["id"]: each.get("valid_to") for each in shard.memories.list("acme")}


@pytest.mark.parametrize("then", ["used", "corrected", "no longer a rival", "forgotten", "ended twice"])
def test_a_fact_that_ended_stays_so_where_the_one_that_ended_it_changes(pair: Any, then: str) -> None:
    old, new = pair
    put(old, "rome", "Rome", NOW)
    put(old, "oslo", "Oslo", NOW + 10)
    mark = copy(old, new, 0)
    assert ends(new) == ends(old) == {"rome": NOW + 10, "oslo": None}
    if then == "used":
        old.memories.touch("acme", ["oslo"], op_id="touch", now=NOW + 20)
    elif then in ("corrected", "no longer a rival"):
        about = "Ann" if then == "corrected" else "Bob"
        fact = {"subject": about, "relation": "lives in", "object": "Oslo", "time": NOW + 11}
        generation = old.memories.get("acme", "oslo")["statistics"]["generation"]
        new_version = memory("oslo", kind="relational", text="corrected", **fact)
        old.memories.supersede(new_version, unit(7), generation=generation, op_id="new", now=NOW + 20)
    elif then == "forgotten":
        old.erasure.forget("acme", ids=["oslo"], op_id="forget", now=NOW + 20)
    else:
        put(old, "bonn", "Bonn", NOW + 30)
        old.memories.touch("acme", ["oslo"], op_id="touch", now=NOW + 40)
    copy(old, new, mark)
    assert ends(new) == ends(old)


@pytest.mark.parametrize("by", ["namespace", "conversation"])
def test_turns_forgotten_while_they_are_copied_are_forgotten(pair: Any, by: str) -> None:
    old, new = pair
    old.conversations.push("acme", "talk", [{"role": "user", "text": "a secret"}], op_id="push", now=NOW)
    mark = copy(old, new, 0)
    assert new.conversations.peek("acme", "talk", 9) == old.conversations.peek("acme", "talk", 9) != []
    if by == "namespace":
        old.erasure.forget("acme", everything=True, op_id="forget", now=NOW)
    else:
        old.erasure.forget_turns("acme", conversations=["talk"], op_id="forget", now=NOW)
    copy(old, new, mark)
    assert new.conversations.peek("acme", "talk", 9) == []
    assert old.counts()["namespaces"] == new.counts()["namespaces"] == {}  # what a reshard compares


def test_results_that_came_along_go_with_what_they_tell_of(pair: Any) -> None:
    """In the new shard no record bears their `op_id`."""
    old, new = pair
    turns = [{"role": "user", "text": "a secret"}]
    line = ("acme", "drink", "tea", unit(5))
    other = ("acme", "food", "bread", unit(6))

    def sent(shard: Shard, name: str) -> Any:
        options = {"op_id": name, "now": NOW}
        if name == "push":
            return shard.conversations.push("acme", "talk", turns, **options)
        return shard.keyed.put(*(line if name == "line" else other), **options)

    first = {name: sent(old, name) for name in ("push", "line", "other")}
    changes = old.reshard.changes(0, 100)
    new.reshard.adopt(changes.rows, changes.gone, changes.turns, op_id="copy", now=NOW)
    new.reshard.remember(0, changes.uses, changes.results, {}, now=NOW)
    assert {name: sent(new, name) for name in first} == first, "a first line, too"
    new.erasure.forget("acme", ids=[line_id("drink")], op_id="forget", now=NOW)
    new.erasure.forget_turns("acme", conversations=["talk"], op_id="forget turns", now=NOW)
    for name in ("push", "line"):
        with pytest.raises(Conflict, match="has been erased"):
            sent(new, name)
    assert sent(new, "other") == first["other"] and new.conversations.peek("acme", "talk") == []
    assert {result.op_id: result.result for result in new.reshard.remembered()[1]} == {
        **{"push": None, "line": None},
        "other": first["other"],
    }
