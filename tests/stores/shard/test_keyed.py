import json
import math
import os
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import Conflict, InvalidInput
from stores.memory.memory import to_json
from stores.ranking.concert import Concert
from stores.view import keyed as lines_module
from stores.view.keyed import KeyedMemories, check_anchor, key_of, line_memory
from stores.view.memory_state import MemoryState
from stores.writes import versions
from stores.writes.keyed import candidate, concert_weigher
from stores.writes.versions import Runner
from tests.support.stores import DIM, NOW, axis, memory, open_shard, unit

TAU = 6 * 3600.0


def line(key, seq, *, age=0.0, novelty=1.0, value=None, **context):
    made = line_memory(
        "acme", key, value or f"value {seq}", context, now=NOW, time=NOW - age, max_text_bytes=1000
    )
    return MemoryState(memory=to_json(made), seq=seq, anchor=f"{seq:016x}", written=NOW, novelty=novelty)


def proposed(value, vector, *, key="k", age=0.0, **context):
    made = line_memory("acme", key, value, context, now=NOW, time=NOW - age, max_text_bytes=1000)
    return candidate(made, vector)


# Against the formula, one line at a time

entries = st.lists(
    st.tuples(
        st.sampled_from("abcdef"), st.integers(0, 40), st.floats(0, 5 * TAU), st.floats(0, 1), st.booleans()
    ),
    max_size=25,
)


@given(entries, st.integers(0, 40), st.integers(0, 8), st.floats(-0.5, 0.5))
@settings(deadline=None)
def test_query_and_bias_are_the_formula_over_the_newest_memory_of_each_key(given, seed, k, floor):
    lines, constants, held = KeyedMemories(), Concert(floor=floor), []
    for seq, (key, vector, age, novelty, gone) in enumerate(given, start=1):
        entry = line(key, seq, age=age, novelty=novelty)
        lines.add(entry, unit(vector))
        held.append((entry, unit(vector)))
        if gone:
            lines.remove(held.pop(len(held) // 2)[0])
    newest = {entry.memory["context"]["key"]: (entry, vector) for entry, vector in held}
    query, wanted = unit(seed), []
    for key, (entry, vector) in newest.items():
        similarity = float(vector @ query)
        recency = math.exp(-(NOW - entry.memory["time"]) / TAU)
        if similarity >= floor:
            weight = 0.35 * recency + 0.5 * similarity + 0.08 * entry.novelty
            wanted.append((weight, key, entry.seq, vector))
    wanted.sort(key=lambda found: (-found[0], found[1]))
    found = lines.query(query, k, now=NOW, constants=constants)
    assert [(f["key"], f["generation"]) for f in found] == [(key, seq) for _, key, seq, _ in wanted[:k]]
    assert [f["weight"] for f in found] == pytest.approx([w for w, *_ in wanted[:k]], abs=1e-6)
    total = sum(w for w, *_ in wanted[:k])
    bias = sum((w * v for w, _, _, v in wanted[:k]), np.zeros(DIM))
    if total > 1e-3:
        found_bias = lines.bias_vector(query, k, now=NOW, constants=constants)
        assert found_bias == pytest.approx(bias / total, abs=1e-4) and found_bias.dtype == np.float32
    assert len(lines) == len(newest)
    for key, (entry, vector) in newest.items():
        assert lines.get(key) is entry and np.array_equal(lines.vector(key), vector)


def test_a_line_tells_all_its_parts():
    lines = KeyedMemories()
    lines.add(line("home", 7, age=TAU, novelty=0.25, value="Lisbon", source="chat"), axis(0))
    [found] = lines.query(axis(0), 3, now=NOW)
    assert found == {
        "key": "home",
        "value": "Lisbon",
        "context": {"source": "chat"},
        "time": NOW - TAU,
        "recency": pytest.approx(math.exp(-1)),
        "novelty": 0.25,
        "similarity": pytest.approx(1.0),
        "weight": pytest.approx(0.35 * math.exp(-1) + 0.5 + 0.08 * 0.25),
        "strength": 1.0,
        "id": found["id"],
        "anchor": f"{7:016x}",
        "generation": 7,
    }
    assert json.dumps(found)


def test_nothing_to_say_is_a_zero_bias():
    lines = KeyedMemories()
    assert lines.query(axis(0), 3, now=NOW) == []
    assert np.array_equal(lines.bias_vector(axis(0), 3, now=NOW), np.zeros(DIM, np.float32))
    lines.add(line("k", 1), axis(1))
    assert lines.query(axis(0), 3, now=NOW) == [], "below the floor of 0.15"
    assert not lines.bias_vector(axis(0), 3, now=NOW).any()


def test_memories_without_a_key_are_no_lines():
    lines = KeyedMemories()
    for number, context in enumerate(({}, {"key": 3}, {"key": ""})):
        plain = SimpleNamespace(memory=to_json(memory(f"m{number}", context=context)), seq=number)
        lines.add(plain, axis(0))
        lines.remove(plain)
    assert len(lines) == 0 and key_of(to_json(memory("m", context={"key": "k"}))) == "k"


def test_rows_of_removed_lines_are_used_again():
    lines = KeyedMemories()
    for seq in range(1, 2000):
        entry = line("k", seq)
        lines.add(entry, unit(seq))
        lines.remove(entry)
    assert len(lines._vectors) == lines_module._FIRST_ROWS and not lines._vectors.any()


# Compare and set


def test_an_anchor_holds_while_the_key_or_the_whole_shard_stands_still():
    entry, head = line("k", 5), "f" * 16
    for held in (None, entry.anchor, head):
        check_anchor("k", entry, held, head)
    for stale in ("0" * 16, f"{4:016x}", ""):
        with pytest.raises(Conflict) as caught:
            check_anchor("k", entry, stale, head)
        assert caught.value.code == "stale_anchor" and entry.anchor in caught.value.message
    check_anchor("k", None, "0" * 16, head)
    with pytest.raises(Conflict, match="no line yet"):
        check_anchor("k", None, entry.anchor, head)


@pytest.mark.parametrize("key", ["", "x" * 513, None, 3])
def test_a_bad_key_is_refused(key):
    with pytest.raises(InvalidInput, match="key"):
        line_memory("acme", key, "value", None, now=NOW, max_text_bytes=100)


def test_a_context_cannot_name_another_key():
    with pytest.raises(InvalidInput, match=r"context\.key"):
        line_memory("acme", "k", "value", {"key": "other"}, now=NOW, max_text_bytes=100)


# Races


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.floats(0, 2 * TAU), st.floats(0, 1), st.floats(0, 1)), min_size=1
    ),
    st.integers(0, 40),
)
@settings(deadline=None)
def test_candidates_weigh_their_concert_weight_times_their_strength(given, seed):
    runners = [
        Runner(candidate=proposed(f"v{n}", unit(n), age=age), novelty=novelty, strength=strength)
        for n, age, novelty, strength in given
    ]
    wanted = []
    for n, age, novelty, strength in given:
        similarity = float(unit(n) @ unit(seed))
        weight = 0.35 * math.exp(-age / TAU) + 0.5 * similarity + 0.08 * novelty
        wanted.append(weight * strength if similarity >= 0.15 else 0)
    assert concert_weigher(unit(seed))(runners, NOW) == pytest.approx(wanted, abs=1e-6)
    alike = [0.35 * math.exp(-age / TAU) + 0.5 + 0.08 * n for _, age, n, _ in given]
    assert concert_weigher(None)(runners, NOW) == pytest.approx(
        [w * strength for w, (*_, strength) in zip(alike, given, strict=True)], abs=1e-6
    )


@pytest.fixture
def shard(tmp_path):
    shard = open_shard(tmp_path / "shard")
    yield shard
    shard.close()


def put(shard, key, value, vector, **given):
    return shard.keyed.put("acme", key, value, vector, op_id=os.urandom(8).hex(), now=NOW, **given)


def run(shard, candidates, generation, **given):
    return shard.keyed.race(
        "acme", "k", candidates, generation=generation, op_id=os.urandom(8).hex(), now=NOW, **given
    )


def test_a_put_line_is_a_memory_and_its_next_value_a_version(shard):
    first = put(shard, "home", "Lisbon", axis(0), context={"source": "chat"})
    assert shard.keyed.get("acme", "home")["value"] == "Lisbon" and shard.keyed.get("acme", "work") is None
    second = put(shard, "home", "Porto", axis(1), prev_anchor=first["anchor"])
    assert second["supersedes"] == first["generation"] and second["id"] == first["id"]
    [found] = shard.keyed.query("acme", axis(1), 5, now=NOW)
    assert (found["value"], found["anchor"], found["generation"]) == (
        "Porto",
        second["anchor"],
        second["generation"],
    )
    assert [v["content"]["text"] for v in shard.memories.history("acme", first["id"])] == ["Porto", "Lisbon"]
    assert np.allclose(shard.keyed.bias_vector("acme", axis(1), 5, now=NOW), axis(1))
    receipt = shard.erasure.forget("acme", ids=[first["id"]], op_id="f", now=NOW)
    assert receipt["versions"] == 2 and shard.keyed.query("acme", axis(1), 5, now=NOW) == []


def test_a_stale_anchor_changes_nothing(shard):
    first = put(shard, "k", "one", axis(0), prev_anchor="0" * 16)
    other = put(shard, "other", "x", axis(3), prev_anchor=first["anchor"])  # the shard's last anchor
    put(shard, "k", "two", axis(1), prev_anchor=first["anchor"])  # the key's own, though others wrote
    for stale in (first["anchor"], other["anchor"], "0" * 16):
        with pytest.raises(Conflict) as caught:
            put(shard, "k", "three", axis(2), prev_anchor=stale)
        assert caught.value.code == "stale_anchor"
    assert shard.keyed.get("acme", "k")["value"] == "two"


def test_a_retried_put_line_answers_as_the_first_did(shard):
    given = {"op_id": "once", "now": NOW, "prev_anchor": "0" * 16}
    first = shard.keyed.put("acme", "k", "one", axis(0), **given)
    assert shard.keyed.put("acme", "k", "one", axis(0), **{**given, "now": NOW + 9}) == first
    assert len(shard.memories.history("acme", first["id"])) == 1


def test_who_wins_gets_the_key_and_who_loses_fades(shard):
    strong, weak = proposed("strong", axis(0)), proposed("weak", unit(3))
    answer, strengths = {"generation": 0}, []
    for _ in range(12):
        answer = run(shard, [weak, strong], answer["generation"], cue=axis(0))
        assert shard.keyed.get("acme", "k")["value"] == "strong" and answer["winner"] == strong.memory.id
        strengths.append(answer["rivals"][weak.memory.id])
    assert strengths == [max(versions.WEAKEST, 0.5**i) for i in range(1, 13)]
    answer = run(shard, [weak], answer["generation"], cue=unit(3))
    assert answer["rivals"] == {} and shard.keyed.get("acme", "k")["value"] == "weak"


def test_a_key_keeps_a_bounded_number_of_rivals(shard):
    generation = 0
    for start in range(0, 200, 50):
        losers = [proposed(f"v{i}", axis(1)) for i in range(start, start + 50)]
        answer = run(shard, [proposed("w", axis(0)), *losers], generation, cue=axis(0))
        generation = answer["generation"]
    assert len(answer["rivals"]) == versions.RIVALS_KEPT


def test_many_threads_race_and_one_wins_each_generation(tmp_path):
    """Each thread races what it believes in against the present value; who comes late is refused and
    reads again. Every generation has one winner, and the strengths are those of the races committed."""
    shard, won, lost = open_shard(tmp_path / "shard"), [], []
    rounds, threads = 12, 8

    def work(number):
        for _ in range(rounds):
            present = shard.keyed.get("acme", "k")
            generation = present["generation"] if present else 0
            candidates = [proposed(f"by {number}", unit(number)), proposed("always weak", unit(99))]
            try:
                answer = run(shard, candidates, generation, cue=unit(number))
                won.append((generation, answer, number))
            except Conflict:
                lost.append(generation)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    won.sort(key=lambda race: race[1]["seq"])
    went_from = [generation for generation, _, _ in won]
    assert len(won) + len(lost) == rounds * threads and len(set(went_from)) == len(went_from)
    assert went_from == [0] + [answer["generation"] for _, answer, _ in won[:-1]], "a chain, no fork"
    weak = proposed("always weak", unit(99)).memory.id
    for race, (_, answer, number) in enumerate(won, start=1):
        assert answer["rivals"][weak] == max(versions.WEAKEST, 0.5**race)
        assert answer["winner"] == proposed(f"by {number}", unit(number)).memory.id
    before = shard.keyed.get("acme", "k")
    assert before["value"] == f"by {won[-1][2]}" and len(shard.memories.history("acme", before["id"])) == len(
        won
    )
    assert shard.chain.verify() is None
    shard.close()
    shard = open_shard(tmp_path / "shard")
    assert shard.keyed.get("acme", "k") == before
    shard.close()
