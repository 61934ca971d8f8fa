"""Episodes against plain dicts and formulas; the write gate's decisions and reasons."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import StoreConfig
from stores.index.vectors import Vectors
from stores.reads.sparse_keys import Episodes, complete, projection
from stores.writes import write_gate
from tests.support.stores import memory, unit

DIM = 32
OPTIONS: dict[str, Any] = {"width": 512, "winners": 16, "half_life_s": 100.0, "refresh": 0.5}


def episodes(rows: int = 0, **options: Any) -> Episodes:
    made = Episodes(DIM, **OPTIONS | options)
    for row in range(rows):
        made.add(row, unit(row, DIM), float(row))
    return made


def stored(rows: list[int]) -> Vectors:
    return np.stack([unit(row, DIM) for row in rows])


def spoiled(vector: Vectors, share: float, seed: int) -> Vectors:
    """The vector with a share of its dimensions unknown (0), at unit norm."""
    lost = np.random.default_rng(seed).random(len(vector)) < share
    left = np.where(lost, 0.0, vector).astype(np.float32)
    return left / np.linalg.norm(left)


# Keys


def test_keys_are_sparse_seeded_and_of_the_winners() -> None:
    one, same, other = episodes(), episodes(), episodes(seed=7)
    vector = unit(3, DIM)
    key = one.key(vector)
    assert len(set(key.tolist())) == 16 and (key == same.key(vector)).all()
    assert (key != other.key(vector)).any()
    reads, signs = projection(DIM, 512, 1337)
    activity = np.einsum("ui,ui->u", vector[reads], signs)
    assert activity[key].min() >= np.delete(activity, key).max()


def test_similar_memories_get_keys_that_differ_more_than_they_do() -> None:
    """Pattern separation: at cosine 0.8 well under 0.8 of the units are shared, and the order is kept."""
    rng, shares = np.random.default_rng(0), []
    for cosine in (0.2, 0.5, 0.8, 0.95):
        made, overlaps = Episodes(384), []
        for i in range(20):
            base, noise = rng.normal(size=(2, 384))
            base /= np.linalg.norm(base)
            noise -= (noise @ base) * base
            near = cosine * base + np.sqrt(1 - cosine**2) * noise / np.linalg.norm(noise)
            made.add(2 * i, base.astype(np.float32), 0.0)
            made.add(2 * i + 1, near.astype(np.float32), 0.0)
            overlaps.append(made.overlap(2 * i, 2 * i + 1))
        shares.append(float(np.mean(overlaps)))
        assert shares[-1] < cosine - 0.1
    assert shares == sorted(shares)


# Completion


def test_a_partial_cue_falls_into_the_memory_it_came_from() -> None:
    rows = list(range(200))
    patterns = stored(rows)
    closer = 0
    for row in rows[:50]:
        cue = spoiled(patterns[row], 0.4, row)
        state = complete(patterns, cue, 32.0)
        assert np.linalg.norm(state) == pytest.approx(1.0, abs=1e-5)
        closer += patterns[row] @ state > patterns[row] @ cue
    assert closer >= 45


def test_completion_ends_at_a_fixed_point_of_the_update() -> None:
    patterns, cue = stored(list(range(30))), unit(99, DIM)
    for beta in (1.0, 8.0, 32.0):
        state = complete(patterns, cue, beta)
        weights = np.exp(beta * (patterns @ state))
        mean = weights @ patterns
        assert np.allclose(state, mean / np.linalg.norm(mean), atol=1e-3)
    assert np.allclose(complete(patterns[:1], cue, 8.0), patterns[0], atol=1e-6)
    opposite = np.stack([patterns[0], -patterns[0]])
    assert np.isfinite(complete(opposite, np.zeros(DIM, np.float32), 8.0)).all()


def test_recall_answers_the_completed_memory_first_then_by_cosine() -> None:
    made = episodes(100)
    hits = 0
    for row in range(40):
        cue = spoiled(unit(row, DIM), 0.3, row)
        found = made.recall(cue, 5, stored)
        hits += found[0].row == row
        assert found[0].completed == max(r.completed for r in found)
        assert [r.cosine for r in found[1:]] == sorted((r.cosine for r in found[1:]), reverse=True)
    assert hits >= 36
    assert next(r.row for r in made.recall(unit(3, DIM), 5, stored, among=[2, 9, 1000])) in (2, 9)
    assert len(made.recall(unit(3, DIM), 5, stored, among=[2, 9])) == 2
    assert made.recall(unit(3, DIM), 0, stored) == [] == episodes().recall(unit(3, DIM), 5, stored)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=40), st.integers(0, 99))
def test_after_removals_recall_equals_a_store_of_the_survivors(
    steps: list[tuple[bool, int]], seed: int
) -> None:
    made, alive = episodes(), set()
    for add, row in steps:
        if add and row not in alive:
            made.add(row, unit(row, DIM), float(row))
            alive.add(row)
        elif not add:
            made.remove(row)
            alive.discard(row)
    rebuilt = episodes()
    for row in sorted(alive):
        rebuilt.add(row, unit(row, DIM), float(row))
    assert len(made) == len(rebuilt)
    cue = unit(seed, DIM)
    assert made.recall(cue, 3, stored, candidates=4) == rebuilt.recall(cue, 3, stored, candidates=4)
    assert made.weakest(5, 50.0) == rebuilt.weakest(5, 50.0)


def test_many_are_held_and_dropped() -> None:
    made = episodes(300)
    for row in range(0, 300, 2):
        made.remove(row)
    made.remove(12345)
    assert len(made) == 150
    assert {r.row for r in made.recall(unit(1, DIM), 150, stored)} == set(range(1, 300, 2))


# Decay


def test_strength_halves_and_use_gives_back_a_share() -> None:
    made = episodes()
    made.add(7, unit(7, DIM), 1000.0)
    assert made.strength(7, 1000.0) == 1.0 == made.strength(7, 900.0)
    assert made.strength(7, 1100.0) == pytest.approx(0.5)
    made.touch(7, 1100.0)
    assert made.strength(7, 1100.0) == pytest.approx(0.75)
    assert made.strength(7, 1300.0) == pytest.approx(0.75 / 4)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10**6)), max_size=20), st.integers(0, 7))
def test_the_weakest_are_those_of_least_strength(uses: list[tuple[int, int]], n: int) -> None:
    made, strength, used = episodes(6), dict.fromkeys(range(6), 1.0), {row: float(row) for row in range(6)}
    for row, time in sorted(uses, key=lambda use: use[1]):
        now = max(float(time), used[row])
        left = strength[row] * 0.5 ** ((now - used[row]) / 100.0)
        strength[row], used[row] = left + 0.5 * (1.0 - left), now
        made.touch(row, float(time))
    now = 10.0**6
    expected = {row: strength[row] * 0.5 ** ((now - used[row]) / 100.0) for row in range(6)}
    found = made.weakest(n, now)
    assert [s for _, s in found] == pytest.approx(sorted(expected.values())[:n], abs=1e-12)
    assert all(s == pytest.approx(expected[row], abs=1e-12) for row, s in found)


def test_the_order_holds_where_strength_underflows() -> None:
    made = episodes(3)
    made.touch(0, 50.0)
    assert [row for row, _ in made.weakest(3, 1e9)] == [1, 2, 0]
    assert made.strength(0, 1e9) == 0.0


# The write gate


def test_surprise_counts_and_the_reason_says_so() -> None:
    config = StoreConfig(gate_tau=1.5, gate_surprise=2.0)
    dull = memory("a")
    told = memory("b", text="b", context={"surprise": 0.5})
    assert write_gate.decide(dull, 1.0, config)[0] is False
    stored, answer = write_gate.decide(told, 1.0, config)
    assert stored and answer["score"] == 2.0 and "surprise 0.5" in answer["reason"]


@pytest.mark.parametrize("surprise", [None, "high", True, -1.0, [1]])
def test_what_is_no_surprise_counts_as_none(surprise: Any) -> None:
    assert write_gate.surprise_of(memory("a", text="a", context={"surprise": surprise})) == 0.0


def test_a_pinned_memory_is_written_whatever_the_weights() -> None:
    config = StoreConfig(gate_tau=1e12, gate_pin=0.0)
    stored, answer = write_gate.decide(memory("a", text="a", pin=True), 0.0, config)
    assert stored and answer["reason"].endswith("pinned")
    assert write_gate.decide(memory("a"), 1.0, config)[0] is False
