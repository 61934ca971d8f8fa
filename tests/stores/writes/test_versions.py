"""New versions, races, near-identical memories, and taking memories over from another shard."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Conflict, InvalidInput, NotFound
from stores.memory.memory import to_json
from stores.view.memory_state import row_of
from stores.writes import near_duplicates
from stores.writes.batch import MemoryBatch
from stores.writes.versions import Candidate
from tests.support.stores import NOW, axis, memory, open_shard, unit


@pytest.fixture
def shard(tmp_path):
    shard = open_shard(tmp_path / "shard")
    yield shard
    shard.close()


def reopened(shard):
    path = shard.core.log.path
    shard.close()
    return open_shard(path)


def put(shard, *memories, vector=None):
    items = [(m, unit(i) if vector is None else vector) for i, m in enumerate(memories)]
    return shard.memories.put(
        MemoryBatch.of(items), op_id=f"put-{[m.id for m in memories]}-{shard.counts()['seq']}", now=NOW
    )


def disk(shard):
    return b"".join(file.read_bytes() for file in shard.core.log.path.rglob("*") if file.is_file())


# New versions


def test_a_new_version_supersedes_and_the_history_keeps_the_old_ones(shard):
    first = put(shard, memory("m1", text="Ada lives in Oslo.", time=5))[0]
    shard.memories.touch("acme", ["m1"], op_id="t", now=NOW)
    shard.memories.score("acme", [("m1", 2.0)], op_id="s", now=NOW)
    new = memory("m1", text="Ada lives in Rome.", time=7)
    for _ in range(2):
        answer = shard.memories.supersede(new, axis(1), generation=first["seq"], op_id="patch", now=NOW + 1)
        assert (answer["status"], answer["supersedes"]) == ("superseded", first["seq"])
    for _ in range(2):
        found = shard.memories.get("acme", "m1")
        assert to_json(new).items() <= found.items()
        assert found["statistics"]["generation"] == found["seq"] == answer["seq"] == answer["generation"]
        assert (found["statistics"]["usage"], found["statistics"]["salience"]) == (1, 2.0)
        assert [version["seq"] for version in found["versions"]] == [answer["seq"], first["seq"]]
        history = shard.memories.history("acme", "m1")
        assert [version["content"]["text"] for version in history] == [
            "Ada lives in Rome.",
            "Ada lives in Oslo.",
        ]
        assert [version["anchor"] for version in history] == [answer["anchor"], first["anchor"]]
        assert [version["written"] for version in history] == [NOW + 1, NOW]
        assert [hit["memory"]["text"] for hit in shard.search.find("acme", axis(1), 9)] == [new.text]
        assert shard.counts()["memories"] == 1 and shard.chain.verify() is None
        shard = reopened(shard)
    assert shard.memories.history("acme", "none") is None
    shard.close()


def test_a_stale_generation_is_refused_and_changes_nothing(shard):
    seq = put(shard, memory("m1"))[0]["seq"]
    shard.memories.supersede(memory("m1", text="second"), axis(1), generation=seq, op_id="p1", now=NOW)
    before = shard.counts()
    with pytest.raises(Conflict, match="the latest is 2") as caught:
        shard.memories.supersede(memory("m1", text="third"), axis(2), generation=seq, op_id="p2", now=NOW)
    assert caught.value.code == "stale_generation"
    with pytest.raises(NotFound):
        shard.memories.supersede(memory("m9"), axis(2), generation=seq, op_id="p3", now=NOW)
    with pytest.raises(InvalidInput, match="kind"):
        place = memory("m1", kind="spatial", place="p", x=0, y=0)
        shard.memories.supersede(place, axis(2), generation=2, op_id="p4", now=NOW)
    assert shard.counts() == before


def test_forgetting_erases_every_version(shard):
    seq = put(shard, memory("m1", text="the first secret"), memory("m2"))[0]["seq"]
    shard.memories.supersede(
        memory("m1", text="the second secret"), axis(1), generation=seq, op_id="p", now=NOW
    )
    put(shard, memory("m1-again", text="The second secret!"), vector=axis(1))
    receipt = shard.erasure.forget("acme", ids=["m1"], op_id="f", now=NOW)
    assert (receipt["log_records"], receipt["index_rows"], receipt["scrubbed"]) == (3, 1, True)
    assert b"secret" not in disk(shard)
    assert [record.seq for record in shard.core.log.records() if record.erased] == [1, 3, 4]
    shard = reopened(shard)
    assert shard.memories.history("acme", "m1") is None and shard.chain.verify() is None
    assert [m["id"] for m in shard.memories.list("acme")] == ["m2"]
    shard.close()


def test_what_a_memory_said_before_is_no_conflict(shard):
    """A file that is taught again after somebody corrected one of its memories."""
    old = memory("m1", text="old")
    seq = put(shard, old)[0]["seq"]
    new = shard.memories.supersede(memory("m1", text="new"), axis(1), generation=seq, op_id="p", now=NOW)
    answer = put(shard, old)[0]
    assert (answer["status"], answer["seq"]) == ("existing", new["seq"])
    with pytest.raises(Conflict):
        put(shard, memory("m1", text="neither"))


# Races


def by_reward(runners, now):
    return [runner.candidate.memory.reward * runner.strength for runner in runners]


def race(shard, *rewards, generation, op_id):
    candidates = [
        Candidate(memory=memory(f"c{i}", text=f"candidate {i} of {op_id}", reward=reward), vector=unit(i))
        for i, reward in enumerate(rewards)
    ]
    return shard.memories.race(
        "acme", "home", candidates, generation=generation, op_id=op_id, now=NOW, weigh=by_reward
    )


def test_the_heaviest_candidate_is_committed_and_the_others_decay(shard):
    first = race(shard, 1.0, 3.0, 2.0, generation=0, op_id="r1")
    assert race(shard, 1.0, 3.0, 2.0, generation=0, op_id="r1") == first
    assert (first["winner"], first["status"], first["id"]) == ("c1", "new", "home")
    assert first["rivals"] == {"c0": 0.5, "c2": 0.5} and first["weights"] == {"c0": 1.0, "c1": 3.0, "c2": 2.0}
    second = race(shard, 4.0, 3.0, 2.0, generation=first["generation"], op_id="r2")
    assert second["winner"] == "c1", "4.0 at strength 0.5 weighs less than 3.0"
    assert second["rivals"] == {"c0": 0.25, "c2": 0.25} and second["supersedes"] == first["seq"]
    shard = reopened(shard)
    third = race(shard, 20.0, 3.0, generation=second["generation"], op_id="r3")
    assert third["winner"] == "c0" and third["strength"] == 0.25
    assert third["rivals"] == {"c1": 0.5, "c2": 0.25}
    found = shard.memories.get("acme", "home")
    assert found["anchor"] == third["anchor"] and found["text"] == "candidate 0 of r3"
    assert found["statistics"]["strength"] == 0.25 and len(shard.memories.history("acme", "home")) == 3
    receipt = shard.erasure.forget("acme", ids=["home"], op_id="f", now=NOW)
    assert receipt["log_records"] == 6 and b"candidate" not in disk(shard) and shard.chain.verify() is None
    shard.close()


def home(id, place, at=NOW, **fields):
    fact = {"subject": "Ada", "relation": "lives_in", "object": place}
    return memory(id, kind="relational", text=f"Ada lives in {place}.", time=at, **fact, **fields)


def holding(shard, namespace="acme"):
    """Ids of the facts that hold, by the graph and by the memories themselves."""
    now = [fact["id"] for fact in shard.graph.query_facts(namespace, at=NOW + 99)]
    assert now == [
        m["id"] for m in shard.memories.list(namespace, kind="relational") if m.get("valid_to") is None
    ]
    return now


@pytest.mark.parametrize("known", [False, True])
def test_a_race_on_a_fact_ends_what_its_winner_contradicts(shard, known):
    put(shard, home("old", "Porto"))
    generation = put(shard, home("key", "Porto Alegre", NOW - 9))[0]["seq"] if known else 0
    racing = [
        Candidate(memory=home(place, place, NOW + 5, reward=reward), vector=unit(number))
        for number, (place, reward) in enumerate([("Faro", 1.0), ("Lisbon", 2.0)])
    ]
    told = shard.memories.race(
        "acme", "key", racing, generation=generation, op_id="r", now=NOW, weigh=by_reward
    )
    assert (told["winner"], told["closes"]) == ("Lisbon", ["old"])
    assert shard.memories.get("acme", "old")["valid_to"] == NOW + 5 and holding(shard) == ["key"]
    shard = reopened(shard)
    shard.erasure.forget("acme", ids=["key"], op_id="f", now=NOW)
    assert holding(shard) == ["old"], "the end goes with what it came from"
    shard.close()


def test_a_candidate_that_is_no_triple_wins_as_an_episode(shard):
    said = "Ada moved there. She liked it at once!"
    racing = [Candidate(memory=home("c", said), vector=unit(0))]
    told = shard.memories.race("acme", "key", racing, generation=0, op_id="r", now=NOW, weigh=by_reward)
    assert told["kind"] == "episodic" and shard.graph.query_facts("acme") == []
    shard.close()


def test_of_races_from_one_generation_the_second_is_refused(shard):
    race(shard, 1.0, 2.0, generation=0, op_id="r1")
    with pytest.raises(Conflict) as caught:
        race(shard, 9.0, generation=0, op_id="r2")
    assert caught.value.code == "stale_generation"
    for bad in ([], [Candidate(memory=memory("c", namespace="other"), vector=unit(1))]):
        with pytest.raises(InvalidInput):
            shard.memories.race("acme", "home", bad, generation=0, op_id="r3", now=NOW, weigh=by_reward)


@pytest.mark.parametrize("weights", [[float("nan")], [float("inf")], [1.0, 2.0], []])
def test_weights_that_decide_nothing_are_refused(shard, weights):
    candidates = [Candidate(memory=memory("c0"), vector=unit(0))]
    with pytest.raises(InvalidInput, match="weigh"):
        shard.memories.race(
            "acme", "home", candidates, generation=0, op_id="r", now=NOW, weigh=lambda runners, now: weights
        )
    assert shard.counts()["seq"] == 0


# Near-identical memories

words = st.lists(st.sampled_from(["Ada", "left", "of", "is", "not", "3", "4", "Bo", "?"]), max_size=8)


@given(words, st.sampled_from([str.upper, str.lower, lambda t: f"  {t} . ", lambda t: t.replace(" ", "  ")]))
def test_case_spacing_and_punctuation_do_not_make_another_memory(chosen, change):
    text = " ".join(["Ada", *chosen])
    assert near_duplicates.alike(memory("b", text=change(text)), to_json(memory("a", text=text)))


@given(words, words)
def test_other_words_do(one, other):
    one, other = ["Ada", *one], ["Ada", *other]
    same = [w for w in one if w] == [w for w in other if w]
    assert (
        near_duplicates.alike(memory("b", text=" ".join(one)), to_json(memory("a", text=" ".join(other))))
        == same
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"text": "The tea is for Ada?"},
        {"conversation": "c2"},
        {"context": {"source": "teacher"}},
        {"cues": [{"question": "Whose tea?", "answer": "Ada's"}]},
        {"pin": True},
        {"kind": "relational", "subject": "a", "relation": "b", "object": "c"},
    ],
)
def test_what_would_be_lost_makes_another_memory(shard, changed):
    put(shard, memory("a", text="The tea is for Ada."), vector=axis(0))
    answer = put(shard, memory("b", **{"text": "The tea is for Ada.", **changed}), vector=axis(0))[0]
    assert answer["status"] == "new"


def test_near_identical_memories_are_counted_and_the_existing_id_returned(shard):
    near = np.array([0.99, np.sqrt(1 - 0.99**2), 0, 0, 0, 0, 0, 0], np.float32)
    far = np.array([0.97, np.sqrt(1 - 0.97**2), 0, 0, 0, 0, 0, 0], np.float32)
    first = put(shard, memory("a", text="Ada moved."), vector=axis(0))[0]
    answer = put(shard, memory("b", text="ada moved"), vector=near)[0]
    assert {**answer, "gate": None} == {**first, "status": "duplicate", "gate": None}
    assert answer["gate"]["reason"].startswith("says the same as a")
    assert put(shard, memory("c", text="ada moved"), vector=far)[0]["status"] == "new"
    assert (
        shard.memories.get("acme", "b") is None
        and shard.memories.get("acme", "a")["statistics"]["count"] == 2
    )
    assert put(shard, memory("a", text="Ada moved."))[0]["status"] == "existing"
    shard = reopened(shard)
    assert shard.memories.get("acme", "a")["statistics"]["count"] == 2 and shard.counts()["duplicates"] == 1
    assert shard.memories.prepare(
        [], MemoryBatch.of([(memory("d", text="ADA moved"), axis(0))])
    ).duplicates == ["a"]
    shard.close()


def test_near_identical_memories_of_one_call(shard):
    answers = put(
        shard, memory("a", text="x y"), memory("b", text="X Y."), memory("c", text="y x"), vector=axis(0)
    )
    assert [answer["status"] for answer in answers] == ["new", "duplicate", "new"]
    assert answers[1]["id"] == "a" and answers[1]["seq"] == answers[0]["seq"] == 1
    assert shard.memories.get("acme", "a")["statistics"]["count"] == 2


@pytest.mark.parametrize("off", [0.0, 1.5])
def test_deduplication_can_be_turned_off(tmp_path, off):
    shard = open_shard(tmp_path / "shard", dedupe_similarity=off)
    answers = put(shard, memory("a", text="x"), memory("b", text="x"), vector=axis(0))
    assert [answer["status"] for answer in answers] == ["new", "new"]
    shard.close()


# From another shard


def test_a_memory_moves_with_all_that_is_known_of_it(shard, tmp_path):
    seq = put(shard, memory("m1", text="one", time=1), memory("m2", text="two", time=2))[0]["seq"]
    shard.memories.supersede(
        memory("m1", text="uno", time=1), axis(1), generation=seq, op_id="p", now=NOW + 5
    )
    shard.memories.touch("acme", ["m1"], op_id="t", now=NOW)
    shard.memories.score("acme", [("m1", 2.0)], op_id="s", now=NOW)
    entries = shard.core.view.spaces["acme"].entries.values()
    moved = [row_of(entry, axis(i), shard.number) for i, entry in enumerate(entries)]
    other = open_shard(tmp_path / "other")
    answers = other.memories.import_rows(moved, op_id="take", now=NOW + 9)
    assert other.memories.import_rows(moved, op_id="take", now=NOW + 9) == answers
    assert [answer["status"] for answer in answers] == ["new", "new"]
    assert {a["status"] for a in other.memories.import_rows(moved, op_id="again", now=NOW)} == {"existing"}
    for _ in range(2):
        for found, source in zip(other.memories.list("acme"), shard.memories.list("acme"), strict=True):
            written = source["versions"][0]["written"]
            origin = {name: source[name] for name in ("shard", "seq", "anchor")} | {"written": written}
            assert found["origin"] == origin
            mine = {**found["statistics"], "generation": None}
            assert mine == {**source["statistics"], "generation": None}
            assert found["text"] == source["text"]
        texts = [version["content"]["text"] for version in other.memories.history("acme", "m1")]
        assert texts == ["uno", "one"] and other.chain.verify() is None
        other = reopened(other)
    moved[0]["memory"] = to_json(memory("m1", text="something else"))
    with pytest.raises(Conflict):
        other.memories.import_rows(moved, op_id="clash", now=NOW)
    other.erasure.forget("acme", ids=["m1"], op_id="f", now=NOW)
    assert b'"one"' not in disk(other) and b'"uno"' not in disk(other) and b'"two"' in disk(other)
    other.close()
    json.dumps([{**item, "vector": None} for item in moved])
