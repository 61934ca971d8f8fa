"""Replay: frequency follows priority, seeds decide everything, nothing is lost between drawing and training."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import ReplayConfig, TrainConfig
from train.replay.rounds import SCHEMA, RoundPlanner, share_of
from train.replay.sampler import Ledger, Sampler, SumTree, priorities


def record(number: int, kind: str = "episodic", shard: int = 0, **statistics: float) -> dict[str, Any]:
    return {
        "id": f"{kind}-{number:03d}",
        "kind": kind,
        "shard": shard,
        "statistics": statistics,
        "text": f"Fact number {number} is here.",
        "cues": [{"question": f"Q{w} {number}?", "answer": str(number), "family": "train"} for w in range(3)],
        "subject": "s", "relation": "r", "object": "o", "place": "p", "other": "q",
    }  # fmt: skip


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.data())
@settings(max_examples=60, deadline=None)
def test_tree_finds_the_owner_of_every_mass(weights: list[float], data: Any) -> None:
    tree = SumTree(weights)
    changed = data.draw(st.integers(0, len(weights) - 1))
    weights[changed] = data.draw(st.floats(0, 1e6))
    tree.set(changed, weights[changed])
    assert tree.total == pytest.approx(sum(weights))
    if tree.total == 0:
        return
    edges = np.concatenate([[0.0], np.cumsum(weights)])
    positive = [i for i, weight in enumerate(weights) if weight > 1e-6 * tree.total]
    middles = np.array([(edges[i] + edges[i + 1]) / 2 for i in positive])
    assert tree.find(middles).tolist() == positive
    ends = tree.find(np.array([0.0, np.nextafter(tree.total, 0), tree.total]))
    assert all(weights[i] > 0 for i in ends)


def test_tree_refuses_what_is_no_weight() -> None:
    for bad in ([-1.0], [float("nan")], [float("inf")]):
        with pytest.raises(ValueError, match="weights"):
            SumTree(bad)
    with pytest.raises(ValueError, match="index below 1"):
        SumTree([1.0]).set(1, 2.0)
    assert SumTree([]).total == 0.0


def test_updates_do_not_drift() -> None:
    """A tree updated by differences loses digits; this one is rebuilt on the way up."""
    tree = SumTree([1e-9] * 8)
    for _ in range(1000):
        tree.set(3, 1e9)
        tree.set(3, 1e-9)
    assert tree.total == pytest.approx(8e-9, rel=1e-12)


def test_frequencies_match_priorities_over_shards() -> None:
    """Stratified draws: each id comes up within one of its expected count a round, so within 1% in 100 rounds."""
    records = [record(i, shard=i % 3, salience=float(i), usage=1.0, novelty=0.5) for i in range(12)]
    sampler = Sampler(records, ReplayConfig(exponent=1.0), seed=5)
    wanted = sampler.probabilities()
    assert sum(wanted.values()) == pytest.approx(1.0)
    by_hand = priorities([each["statistics"] for each in records], ReplayConfig(exponent=1.0))
    assert list(wanted.values()) != [1 / 12] * 12
    for each, weight in zip(records, by_hand / by_hand.sum(), strict=True):
        assert wanted[each["id"]] == pytest.approx(weight)
    rounds = [Counter(sampler.sample(240, number)) for number in range(100)]
    total = sum(rounds, Counter())
    for memory_id, chance in wanted.items():
        assert total[memory_id] / 24_000 == pytest.approx(chance, rel=0.01)
        assert all(abs(drawn[memory_id] - 240 * chance) < 2 for drawn in rounds)


def test_mix_shares_out_kinds_that_are_there() -> None:
    records = [
        record(i, kind, shard=i % 2) for kind in ("episodic", "relational", "spatial") for i in range(5)
    ]
    drawn = Counter(name.partition("-")[0] for name in Sampler(records, ReplayConfig(), 1).sample(1000, 0))
    assert drawn["episodic"] == pytest.approx(600, abs=2)
    assert drawn["relational"] == pytest.approx(300, abs=2)
    assert drawn["spatial"] == pytest.approx(100, abs=2)
    some = Counter(name.partition("-")[0] for name in Sampler(records[5:], ReplayConfig(), 1).sample(1000, 0))
    assert some["relational"] == pytest.approx(750, abs=2) and "episodic" not in some
    alone = Sampler(records[:5], ReplayConfig(mix={"spatial": 1.0}), 1)
    assert len(alone.sample(10, 0)) == 10, "a mix of absent kinds says nothing"


def test_policies_limits_and_emptiness() -> None:
    records = [record(i, salience=float(i)) for i in range(10)]
    uniform = Sampler(records, ReplayConfig(policy="uniform"), 1)
    assert list(uniform.probabilities().values()) == pytest.approx([0.1] * 10)
    kept = Sampler(records, ReplayConfig(max_items=3), 1)
    assert set(kept.sample(50, 0)) == {"episodic-007", "episodic-008", "episodic-009"}
    assert Sampler([], ReplayConfig(), 1).sample(5, 0) == []
    assert uniform.sample(0, 0) == []


def test_seed_and_round_decide_the_draw() -> None:
    records = [record(i, shard=i % 2) for i in range(9)]
    first, again, other = (
        Sampler(order, ReplayConfig(), seed)
        for order, seed in ((records, 1), (records[::-1], 1), (records, 2))
    )
    assert first.sample(20, 4) == again.sample(20, 4)
    assert first.sample(20, 4) != first.sample(20, 5)
    assert first.sample(20, 4) != other.sample(20, 4)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_no_form_is_lost_to_equal_splitting(world_size: int) -> None:
    planner = RoundPlanner([record(i) for i in range(5)], ReplayConfig(), TrainConfig(forms_per_sample=2))
    block = planner.block(0)
    shares = [share_of(block, rank, world_size) for rank in range(world_size)]
    assert len({share.num_rows for share in shares}) == 1
    assert all(share.schema == SCHEMA for share in shares)
    real = [row for share in shares for row in share.to_pylist() if row["weight"] > 0]
    assert sorted(map(str, real)) == sorted(map(str, block.to_pylist()))


def test_planner_blocks_are_reproducible_and_differ_by_round() -> None:
    records = [record(i) for i in range(5)]
    one, two = (RoundPlanner(records, ReplayConfig(), TrainConfig(samples_per_round=2.0)) for _ in range(2))
    assert one.block(3).equals(two.block(3)) and not one.block(3).equals(one.block(4))
    assert one.samples == 10 and len(set(one.block(0)["sample"].to_pylist())) == 10
    assert RoundPlanner([], ReplayConfig(), TrainConfig()).block(0).num_rows == 0


def test_ledger_names_a_loss() -> None:
    Ledger(samples=2, sampled=10, streamed=10, trained=9, reported=1).check()
    with pytest.raises(RuntimeError, match="'trained': 8"):
        Ledger(samples=2, sampled=10, streamed=10, trained=8, reported=1).check()
