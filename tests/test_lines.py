import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_helpers import DIM, NOW, axis, memory, unit

from common.errors import Conflict, InvalidInput
from stores import lines as lines_module
from stores.concert import Concert
from stores.entry import Entry
from stores.lines import Candidate, Lines, check_anchor, check_generation, key_of, line_memory, race
from stores.memory import to_json

TAU = 6 * 3600.0


def line(key, seq, *, age=0.0, novelty=1.0, value=None, **context):
    made = line_memory(
        "acme", key, value or f"value {seq}", context, now=NOW, time=NOW - age, max_text_bytes=1000
    )
    return Entry(memory=to_json(made), seq=seq, anchor=f"{seq:016x}", written=NOW, novelty=novelty)


def candidate(value, vector, *, age=0.0, **context):
    made = line_memory("acme", "k", value, context, now=NOW, time=NOW - age, max_text_bytes=1000)
    return Candidate(memory=made, vector=vector)


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
    lines, constants, held = Lines(), Concert(floor=floor), []
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
    lines = Lines()
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
    lines = Lines()
    assert lines.query(axis(0), 3, now=NOW) == []
    assert np.array_equal(lines.bias_vector(axis(0), 3, now=NOW), np.zeros(DIM, np.float32))
    lines.add(line("k", 1), axis(1))
    assert lines.query(axis(0), 3, now=NOW) == [], "below the floor of 0.15"
    assert not lines.bias_vector(axis(0), 3, now=NOW).any()


def test_memories_without_a_key_are_no_lines():
    lines = Lines()
    for number, context in enumerate(({}, {"key": 3}, {"key": ""})):
        plain = SimpleNamespace(memory=to_json(memory(f"m{number}", context=context)), seq=number)
        lines.add(plain, axis(0))
        lines.remove(plain)
    assert len(lines) == 0 and key_of(to_json(memory("m", context={"key": "k"}))) == "k"


def test_rows_of_removed_lines_are_used_again():
    lines = Lines()
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


def test_a_generation_holds_for_one_version():
    check_generation("k", None, 0)
    check_generation("k", line("k", 5), 5)
    for entry, stale in ((None, 5), (line("k", 5), 0), (line("k", 5), 4)):
        with pytest.raises(Conflict):
            check_generation("k", entry, stale)


@pytest.mark.parametrize("key", ["", "x" * 513, None, 3])
def test_a_bad_key_is_refused(key):
    with pytest.raises(InvalidInput, match="key"):
        line_memory("acme", key, "value", None, now=NOW, max_text_bytes=100)


def test_a_context_cannot_name_another_key():
    with pytest.raises(InvalidInput, match=r"context\.key"):
        line_memory("acme", "k", "value", {"key": "other"}, now=NOW, max_text_bytes=100)


# Races


@given(
    st.lists(st.tuples(st.integers(0, 9), st.floats(0, 2 * TAU)), min_size=1, max_size=8),
    st.integers(0, 40),
    st.dictionaries(st.integers(0, 9), st.floats(0.01, 1), max_size=4),
)
@settings(deadline=None)
def test_the_heaviest_candidate_wins_and_the_others_decay(given, seed, earlier):
    lines = Lines()
    other = line("other", 1)
    lines.add(other, unit(99))
    present = line("k", 2)
    present.rivals = {candidate(f"v{n}", unit(n)).name: strength for n, strength in earlier.items()}
    lines.add(present, unit(98))
    candidates = [candidate(f"v{n}", unit(n), age=age) for n, age in given]
    outcome = race(lines, "k", candidates, now=NOW, cue=unit(seed))
    weights = []
    for (n, age), proposed in zip(given, candidates, strict=True):
        similarity = float(unit(n) @ unit(seed))
        novelty = 1 - min(1, max(0, float(unit(n) @ unit(99))))
        weight = 0.35 * math.exp(-age / TAU) + 0.5 * similarity + 0.08 * novelty if similarity >= 0.15 else 0
        weights.append(weight * present.rivals.get(proposed.name, 1.0))
    assert outcome.weights == pytest.approx(weights, abs=1e-6)
    assert outcome.weights[outcome.winner] == max(outcome.weights)
    won = candidates[outcome.winner].name
    assert outcome.strength == 1.0 and won not in outcome.rivals
    for name in {proposed.name for proposed in candidates} - {won}:
        assert outcome.rivals[name] == pytest.approx(0.5 * present.rivals.get(name, 1.0))
    for name in present.rivals.keys() - {proposed.name for proposed in candidates}:
        assert outcome.rivals[name] == present.rivals[name], "who did not run keeps what it had"
    assert race(lines, "k", candidates, now=NOW, cue=unit(seed)) == outcome


def test_a_candidate_that_keeps_losing_fades_and_winning_brings_it_back():
    lines, strong, weak = Lines(), candidate("strong", axis(0)), candidate("weak", unit(3))
    present = line("k", 1)
    lines.add(present, axis(0))
    strengths = []
    for _ in range(12):
        outcome = race(lines, "k", [weak, strong], now=NOW)
        assert outcome.winner == 1
        present.rivals = outcome.rivals
        strengths.append(outcome.rivals.get(weak.name))
    assert strengths == [max(lines_module.WEAKEST, 0.5**i) for i in range(1, 13)]
    present.rivals = {weak.name: 0.25}
    assert race(lines, "k", [weak], now=NOW, cue=unit(3)).rivals == {}


def test_the_first_race_of_a_key_needs_nothing_to_compare_with():
    outcome = race(Lines(), "k", [candidate("old", axis(0), age=TAU), candidate("new", axis(1))], now=NOW)
    assert outcome.winner == 1
    tie = race(Lines(), "k", [candidate("a", axis(0)), candidate("b", axis(1))], now=NOW)
    assert tie.winner == 0, "equal weights and times: the earlier place"


def test_a_key_keeps_a_bounded_number_of_rivals():
    lines, rivals = Lines(), {}
    present = line("k", 1)
    lines.add(present, axis(0))
    for start in range(0, 400, 100):
        losers = [candidate(f"v{i}", axis(1)) for i in range(start, start + 100)]
        rivals = race(lines, "k", [candidate("w", axis(0)), *losers], now=NOW).rivals
        present.rivals = rivals
    assert len(rivals) == lines_module.RIVALS_KEPT
    for bad in ([], [candidate("x", axis(0))] * 257):
        with pytest.raises(InvalidInput, match="candidates"):
            race(lines, "k", bad, now=NOW)
