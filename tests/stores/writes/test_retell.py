"""After an erasure a store is as if the erased had never been told: any tellings, any erasures, in any order."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stores.memory.memory import parse_memory
from stores.writes.batch import MemoryBatch
from tests.support.stores import DIM, NOW, open_shard, unit

YEAR = 365.25 * 86400.0
LIVES = {"kind": "relational", "subject": "Ivo", "relation": "lives_in"}
facts = st.builds(
    lambda who, relation, what, since, until, text: {
        "kind": "relational", "subject": who, "relation": relation, "object": what,
        **({} if since is None else {"valid_from": since * YEAR}),
        **({} if until is None else {"valid_to": (since or 60) * YEAR + until * YEAR}),
        **({"text": f"{who} {relation} {what}, they say"} if text else {}),
    },
    st.just("Ivo"),
    st.sampled_from(["lives_in", "lives_in", "lives_in", "likes"]),
    st.sampled_from(["Oslo", "Turin"]),
    st.integers(40, 45),
    st.sampled_from([None, None, None, 2]),
    st.booleans(),
)  # fmt: skip
episodes = st.builds(
    lambda text, time: {"text": text, **({} if time is None else {"time": time})},
    st.sampled_from(["Took the pill.", "took the pill", "Ate soup."]),
    st.none() | st.sampled_from([1000.0, 2000.0]),
)
places = st.builds(
    lambda place, x: {"kind": "spatial", "place": place, "x": float(x), "y": 0.0},
    st.sampled_from(["city library", "citty library", "museum"]),
    st.integers(0, 1),
)
tellings = st.tuples(st.just("tell"), st.one_of(facts, facts, facts, episodes, places), st.integers(0, 2))
erasures = st.one_of(
    st.tuples(st.just("ids"), st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True)),
    st.tuples(st.just("conversation"), st.integers(0, 2)),
)


def tell(shard, number, fields, conversation):
    """The text decides the vector, as an embedder does; episodes of one wording have one conversation."""
    own = {"id": f"t{number}", "conversation": f"c{conversation if 'kind' in fields else 0}"}
    memory = parse_memory({**own, **fields}, namespace="acme", now=NOW + number, max_text_bytes=1000)
    seed = sum(memory.text.casefold().strip(".").encode())
    vector = unit(seed) + 0.001 * unit(len(memory.text))
    batch = MemoryBatch.of([(memory, (vector / np.linalg.norm(vector)).astype(np.float32))])
    shard.memories.put(batch, op_id=f"tell-{number}", now=NOW + number)
    return memory


def told_of(shard, id):
    """The memory of which this is a further telling."""
    space = shard.core.view.spaces.get("acme")
    return space.told.get(id) if space else None


def seen(shard):
    """Everything that a reader learns, without what only the log knows (seq, anchor) and what erasures wrote."""
    memories = [
        {
            **{
                name: value
                for name, value in memory.items()
                if name not in ("anchor", "seq", "origin", "versions")
            },
            "statistics": memory["statistics"]["count"],
        }
        for memory in shard.memories.list("acme", limit=100)
    ]
    told = sorted((fact for fact in shard.graph.query_facts("acme")), key=lambda fact: fact["id"])
    entries = shard.core.view.entries("acme")
    vectors = {
        e.memory["id"]: shard.core.view.spaces["acme"].index.vectors_of([e.seq])[0].tolist() for e in entries
    }
    places = [shard.graph.query_places("acme", "nearest", x=0.0, y=0.0)] if memories else []
    return memories, told, vectors, places


rivals = st.builds(
    lambda what, since: {**LIVES, "object": what, "valid_from": since * YEAR},
    st.sampled_from(["Oslo", "Turin"]),
    st.integers(40, 43),
)
few = st.lists(st.tuples(st.just("tell"), rivals, st.integers(0, 2)), min_size=3, max_size=5)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.one_of(tellings, tellings, erasures), min_size=4, max_size=10))
def test_what_remains_is_what_would_be_there_without_the_erased(operations):
    check_remains(operations)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(few, st.integers(0, 4))
def test_what_remains_of_facts_that_end_each_other(told, gone):
    check_remains([*told, ("ids", [gone])])


def test_what_remains_of_rivals_told_out_of_order():
    """An assertion that is told again moves the start of its fact, on which what comes after depends."""
    told = [("Turin", 40, 1), ("Oslo", 43, 1), ("Oslo", 40, 2), ("Oslo", 42, 1), ("Turin", 42, 0)]
    tellings = [("tell", {**LIVES, "object": what, "valid_from": since * YEAR}, c) for what, since, c in told]
    check_remains([*tellings, ("ids", [3])])


def check_remains(operations):
    with tempfile.TemporaryDirectory() as folder:
        shard, alone = open_shard(Path(folder) / "a"), open_shard(Path(folder) / "b")
        left = {}
        for number, (what, *given) in enumerate(operations):
            if what == "tell":
                left[f"t{number}"] = number, given, tell(shard, number, *given)
            else:
                if what == "ids":
                    gone = {f"t{each}" for each in given[0]} & left.keys()
                    gone |= {id for id in left if told_of(shard, id) in gone}
                    chosen = {"ids": [f"t{each}" for each in given[0]]}
                else:
                    name = f"c{given[0]}"
                    gone = {id for id, (*_, memory) in left.items() if memory.conversation == name}
                    chosen = {"where": {"field": "conversation", "op": "eq", "value": name}}
                receipt = shard.erasure.forget("acme", **chosen, op_id=f"forget-{number}", now=NOW + number)
                assert {*receipt["forgotten"]} == gone
                left = {id: each for id, each in left.items() if id not in gone}
        for number, given, _ in left.values():
            tell(alone, number, *given)
        expected = seen(alone)
        for _ in range(2):
            assert seen(shard) == expected and shard.chain.verify() is None
            shard.close()
            shard = open_shard(Path(folder) / "a")
        shard.close(), alone.close()


@pytest.fixture
def shard(tmp_path):
    shard = open_shard(tmp_path / "0")
    yield shard
    shard.close()


def test_a_fact_stays_with_its_other_source(shard):
    tell(shard, 1, {**LIVES, "object": "Graz", "text": "Ivo moved to Graz."}, 1)
    tell(shard, 2, {**LIVES, "object": "Graz"}, 2)
    where = {"field": "conversation", "op": "eq", "value": "c1"}
    receipt = shard.erasure.forget("acme", where=where, op_id="f", now=NOW + 9)
    assert (receipt["forgotten"], receipt["kept"]) == (["t1"], {"t1": "t2"})
    (fact,) = shard.graph.query_facts("acme", subject="Ivo")
    assert (fact["id"], [source["id"] for source in fact["provenance"]]) == ("t2", ["t2"])
    assert shard.memories.get("acme", "t2")["text"] == "Ivo lives in Graz."
    assert b"moved to Graz" not in b"".join(
        path.read_bytes() for path in shard.core.log.path.rglob("*") if path.is_file()
    )


def test_facts_that_only_a_rival_kept_apart_become_one(shard):
    for number, (place, since) in enumerate([("Oslo", 45), ("Turin", 49), ("Oslo", 54)]):
        tell(shard, number, {**LIVES, "object": place, "valid_from": since * YEAR}, number)
    assert len(shard.graph.query_facts("acme")) == 3
    receipt = shard.erasure.forget("acme", ids=["t1"], op_id="f", now=NOW + 9)
    assert (receipt["forgotten"], receipt["kept"]) == (["t1"], {"t2": "t0"})
    (fact,) = shard.graph.query_facts("acme")
    assert [source["id"] for source in fact["provenance"]] == ["t0", "t2"] and fact["valid_to"] is None


def test_an_id_erases_what_answers_show_under_it(shard):
    for number in range(3):
        tell(shard, number, {"text": "Took the pill."}, 0)
    shard.erasure.forget("acme", ids=["t2"], op_id="f", now=NOW + 9)
    (memory,) = shard.memories.list("acme")
    assert (memory["id"], memory["statistics"]["count"]) == ("t0", 2)
    receipt = shard.erasure.forget("acme", ids=["t0"], op_id="g", now=NOW + 9)
    assert (
        receipt["forgotten"] == ["t0", "t1"] and receipt["kept"] == {} and shard.memories.list("acme") == []
    )


def test_events_at_three_times_are_three_memories(shard):
    for number, time in enumerate(["2026-03-01T08:00", "2026-03-02T08:00", "2026-03-03T08:00"]):
        tell(shard, number, {"text": "Took the blood pressure pill.", "time": time}, 0)
    where = {
        "and": [
            {"field": "time", "op": "gte", "value": "2026-03-02"},
            {"field": "time", "op": "lt", "value": "2026-03-03"},
        ]
    }
    assert [memory["id"] for memory in shard.memories.list("acme")] == ["t0", "t1", "t2"]
    assert [memory["id"] for memory in shard.memories.list("acme", where=where)] == ["t1"]
    found = shard.search.find("acme", unit(3), 5, query="blood pressure pill", now=NOW)
    assert [hit["memory"]["id"] for hit in found] == ["t2", "t1", "t0"]


def test_what_is_told_again_keeps_its_vector_and_moves_with_it(shard, tmp_path):
    tell(shard, 1, {**LIVES, "object": "Graz", "text": "Ivo moved to Graz."}, 1)
    second = tell(shard, 2, {**LIVES, "object": "Graz"}, 2)
    rows = [*shard.memories.export_rows("acme")]
    other = open_shard(tmp_path / "other")
    other.memories.import_rows(rows, op_id="i", now=NOW)
    for each in (shard, other):
        where = {"field": "conversation", "op": "eq", "value": "c1"}
        each.erasure.forget("acme", where=where, op_id="f", now=NOW + 9)
        entry = each.core.view.find("acme", second.id)
        vector = each.core.view.spaces["acme"].index.vectors_of([entry.seq])[0]
        seed = sum(second.text.casefold().strip(".").encode())
        expected = unit(seed) + 0.001 * unit(len(second.text))
        assert vector.shape == (DIM,) and np.allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)
    other.close()
