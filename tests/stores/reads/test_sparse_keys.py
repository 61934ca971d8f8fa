"""Sparse keys: separation, and completion of a partial cue."""

from typing import Any

import numpy as np
import pytest

from stores.index.vectors import Vectors
from stores.reads.sparse_keys import SparseKeys, complete, projection
from tests.support.stores import unit

DIM = 32
OPTIONS: dict[str, Any] = {"width": 512, "winners": 16}


def episodes(rows: int = 0, **options: Any) -> SparseKeys:
    made = SparseKeys(DIM, **OPTIONS | options)
    for row in range(rows):
        made.add(row, unit(row, DIM))
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
        made = SparseKeys(384)
        overlaps = []
        for _ in range(20):
            base, noise = rng.normal(size=(2, 384))
            base /= np.linalg.norm(base)
            noise -= (noise @ base) * base
            near = cosine * base + np.sqrt(1 - cosine**2) * noise / np.linalg.norm(noise)
            one, two = (made.key(v.astype(np.float32)) for v in (base, near))
            overlaps.append(len(np.intersect1d(one, two)) / 64)
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
    assert made.recall(unit(3, DIM), 0, stored) == [] == episodes().recall(unit(3, DIM), 5, stored)
