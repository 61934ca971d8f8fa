"""Concert weights: against the formulas written out, and their edges."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.errors import InvalidInput
from stores.ranking.concert import BLOCK, Concert, bias_vector, novelty, recency, weights

NOW = 1_700_000_000.0
unit_interval = st.floats(0.0, 1.0, width=32)


def units(n: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_recency_halves_after_tau_times_ln_2_and_never_passes_1():
    found = recency([NOW, NOW - 3600 * math.log(2), NOW + 100], NOW, 3600.0)
    assert found == pytest.approx([1.0, 0.5, 1.0])


def test_novelty_is_one_minus_the_nearest_other():
    rows = units(40)
    expected = [
        1.0 - min(1.0, max(0.0, max(float(rows[i] @ rows[j]) for j in range(40) if j != i)))
        for i in range(40)
    ]
    assert novelty(rows) == pytest.approx(expected, abs=1e-6)
    assert novelty(rows[:3], rows) == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)


def test_novelty_in_blocks_equals_novelty_at_once():
    rows = units(BLOCK + 7)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -np.inf)
    assert novelty(rows) == pytest.approx(1.0 - np.clip(cosines.max(axis=1), 0, 1), abs=1e-6)


def test_the_only_memory_is_wholly_new():
    assert novelty(units(1)) == pytest.approx([1.0])
    assert novelty(units(2), np.empty((0, 8))) == pytest.approx([1.0, 1.0])
    assert novelty(np.empty((0, 8))).shape == (0,)


@given(st.lists(st.tuples(st.floats(-1.0, 1.0), unit_interval, unit_interval), max_size=20))
def test_weights_follow_the_formula(rows):
    s, r, n = (np.array([row[i] for row in rows]) for i in range(3))
    found = weights(s, r, n)
    for i, (similar, recent, new) in enumerate(rows):
        expected = 0.35 * recent + 0.50 * similar + 0.08 * new if similar >= 0.15 else 0.0
        assert found[i] == pytest.approx(expected)


@example(np.array([5e-324, 0, 0, 0, 0, 0]))
@given(arrays(np.float64, 6, elements=st.floats(0.0, 10.0)))
def test_the_bias_vector_is_a_weighted_mean(w):
    values = units(6)
    found = bias_vector(w, values)
    assert found.dtype == np.float32 and found.shape == (8,)
    assert (
        np.all(found <= values.max(axis=0) + 1e-6) and np.all(found >= values.min(axis=0) - 1e-6)
    ) or not w.any()
    expected = np.average(values, axis=0, weights=w / w.max()) if w.any() else np.zeros(8)
    assert found == pytest.approx(expected, abs=1e-5)


def test_nothing_heard_gives_zeros():
    assert not bias_vector([], np.empty((0, 8))).any()
    assert not bias_vector([0.0, 0.0], units(2)).any()


@pytest.mark.parametrize("bad", [{"tau_s": 0.0}, {"alpha": -1.0}, {"gamma": math.nan}])
def test_impossible_constants_are_refused(bad):
    with pytest.raises(InvalidInput) as error:
        Concert(**bad)
    assert error.value.param in bad
