"""Facts and places in a shard: one call against many, reopening, snapshots, erasure, new versions."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.config import StoreConfig
from common.errors import InvalidInput
from stores.memory.memory import parse_memory
from stores.shard.shard import Shard
from stores.writes.batch import MemoryBatch

DIM = 4
VECTOR = np.array([1, 0, 0, 0], np.float32)


def vector(text):
    """A unit vector that is the text's own."""
    made = np.random.default_rng([*text.encode()]).normal(size=DIM).astype(np.float32)
    return made / np.linalg.norm(made)


names = st.sampled_from(["Ada", "ada", "Lisbon", "Porto", "Bo"])
relations = st.sampled_from(["lives_in", "owns", "owned_by", "married_to", "alias_of", "likes"])
facts = st.fixed_dictionaries(
    {
        "id": st.integers(0, 30).map(str),
        "subject": names | st.just("She"),
        "relation": relations,
        "object": names,
        "valid_from": st.integers(0, 6),
        "confidence": st.sampled_from([0.5, 0.9]),
    }
)


def memory(fields, kind="relational"):
    given_time = {"time": 1000.0, "kind": kind, **fields}
    return parse_memory(given_time, namespace="a", now=1000.0, max_text_bytes=1000)


def put(shard, op_id, *fields, kind="relational"):
    memories = [memory(each, kind) for each in fields]
    items = [(each, vector(each.text)) for each in memories]
    return shard.memories.put(MemoryBatch.of(items), op_id=op_id, now=1000.0)


@pytest.fixture
def opened(tmp_path):
    """`opened("name")` opens the shard of that name, again where it was open."""
    shards = {}

    def open_shard(name="0"):
        if name in shards:
            shards.pop(name).close()
        shards[name] = Shard(tmp_path / name, number=0, dim=DIM, config=StoreConfig(snapshot_every=0))
        return shards[name]

    yield open_shard
    for shard in shards.values():
        shard.close()


def graph(shard):
    """What a reader sees of the facts, but for the numbers of records."""
    held = shard.graph.query_facts("a")
    closed = {m["id"]: m.get("valid_to") for m in shard.memories.list("a", kind="relational", limit=1000)}
    return sorted(held, key=lambda fact: fact["id"]), closed


def told(answers):
    return [{k: v for k, v in answer.items() if k not in ("anchor", "seq")} for answer in answers]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(facts, max_size=12, unique_by=lambda fact: fact["id"]), st.randoms(use_true_random=False))
def test_one_call_is_as_many_calls_and_as_a_reopened_log(tmp_path_factory, given_facts, random):
    folder = tmp_path_factory.mktemp("graphs")
    config = StoreConfig(snapshot_every=0)
    together = Shard(folder / "together", number=0, dim=DIM, config=config)
    single = Shard(folder / "single", number=0, dim=DIM, config=config)
    try:
        answers = told(put(together, "all", *given_facts)) if given_facts else []
        assert answers == [told(put(single, fact["id"], fact))[0] for fact in given_facts]
        assert graph(together) == graph(single)
        if given_facts:
            gone = random.choice(given_facts)["id"]
            for shard in (together, single):
                shard.erasure.forget("a", ids=[gone], op_id="forget", now=1001.0)
            assert graph(together) == graph(single)
        before = graph(single)
        if random.random() < 0.5:
            single.snapshot()
        single.close()
        single = Shard(folder / "single", number=0, dim=DIM, config=config)
        assert graph(single) == before
        assert single.chain.verify() is None
    finally:
        together.close()
        single.close()


def test_what_is_forgotten_closes_nothing_any_more(opened):
    shard = opened()
    lisbon = {"id": "f1", "subject": "Ada", "relation": "lives_in", "object": "Lisbon", "valid_from": 1}
    porto = {"id": "f2", "subject": "Ada", "relation": "lives_in", "object": "Porto", "valid_from": 5}
    assert put(shard, "1", lisbon, porto)[1]["closes"] == ["f1"]
    assert shard.memories.get("a", "f1")["valid_to"] == 5.0
    shard.erasure.forget("a", ids=["f2"], op_id="2", now=1001.0)
    assert "valid_to" not in shard.memories.get("a", "f1")
    assert shard.graph.query_facts("a", subject="Ada")[0]["valid_to"] is None
    shard = opened()
    assert "valid_to" not in shard.memories.get("a", "f1")
    shard.erasure.forget("a", ids=["f1"], op_id="3", now=1001.0)
    assert shard.chain.verify() is None and shard.graph.query_facts("a") == []


def test_a_new_version_of_a_fact_takes_the_place_of_the_old_one(opened):
    shard = opened()
    put(
        shard,
        "1",
        {"id": "f1", "subject": "Ada", "relation": "lives_in", "object": "Lisbon", "valid_from": 1},
    )
    put(
        shard, "2", {"id": "f2", "subject": "Ada", "relation": "lives_in", "object": "Porto", "valid_from": 5}
    )
    latest = shard.memories.get("a", "f2")["statistics"]["generation"]
    moved = memory({"id": "f2", "subject": "Ada", "relation": "lives_in", "object": "Faro", "valid_from": 7})
    for _ in range(2):  # sent again it says the same
        assert shard.memories.supersede(moved, VECTOR, generation=latest, op_id="3", now=1001.0)[
            "closes"
        ] == ["f1"]
    assert shard.memories.get("a", "f1")["valid_to"] == 7.0
    assert [fact["object"] for fact in shard.graph.query_facts("a", subject="Ada")] == ["Lisbon", "Faro"]
    sentence = memory({"id": "f2", "subject": "She", "relation": "lives_in", "object": "Faro"})
    latest = shard.memories.get("a", "f2")["seq"]
    answer = shard.memories.supersede(sentence, VECTOR, generation=latest, op_id="4", now=1001.0)
    assert (answer["status"], answer["kind"]) == ("superseded", "episodic")
    assert [fact["id"] for fact in shard.graph.query_facts("a")] == ["f1"]
    assert "valid_to" not in shard.memories.get("a", "f1")
    again = memory({"id": "f2", "subject": "Ada", "relation": "likes", "object": "tea"})
    shard.memories.supersede(again, VECTOR, generation=answer["generation"], op_id="5", now=1001.0)
    assert shard.memories.get("a", "f2")["context"]["relational"]["object"] == "tea"


def test_a_routed_fact_is_an_episode_and_written_once(opened):
    shard = opened()
    fact = {"id": "r", "subject": "She", "relation": "likes", "object": "tea"}
    assert [answer["status"] for answer in put(shard, "1", fact)] == ["routed"]
    assert [answer["status"] for answer in put(shard, "2", fact)] == ["existing"]
    found = shard.memories.get("a", "r")
    assert found["kind"] == "episodic" and found["context"]["relational"]["subject"] == "She"


def test_places_come_and_go_with_their_memories(opened):
    shard = opened()
    put(
        shard,
        "1",
        {"id": "s1", "place": "library", "relation": "left_of", "other": "cafe"},
        {"id": "s2", "place": "cafe", "relation": "south_of", "other": "park"},
        kind="spatial",
    )
    asked = {"place": "library", "other": "park"}
    assert shard.graph.query_places("a", "relation", **asked)["relation"] == "south_west_of"
    shard = opened()
    assert shard.graph.query_places("a", "relation", **asked)["memories"] == ("s1", "s2")
    shard.erasure.forget("a", ids=["s2"], op_id="2", now=1001.0)
    assert shard.graph.query_places("a", "relation", **asked) is None
    with pytest.raises(InvalidInput, match="teleport"):
        shard.graph.query_places("a", "teleport")


def test_use_strengthens_what_decay_has_weakened(opened):
    shard = opened()
    put(shard, "1", {"id": "a", "text": "Ada moved."}, {"id": "b", "text": "Bo bakes."}, kind="episodic")
    later = 1000.0 + shard.config.strength_half_life_s
    shard.memories.touch("a", ["a"], op_id="2", now=later)
    weak = shard.memories.weakest("a", 2, now=later)
    assert [(each["memory"]["id"], round(each["strength"], 6)) for each in weak] == [("b", 0.5), ("a", 0.75)]
    shard.snapshot()
    shard = opened()
    assert shard.memories.weakest("a", 2, now=later)[1]["strength"] == pytest.approx(0.75)
