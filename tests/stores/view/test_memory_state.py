"""The state of a memory: retention decays and uses restore part of it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stores.view.memory_state import MemoryState
from stores.writes.batch import MemoryBatch
from tests.support.stores import NOW, memory, open_shard, unit


def state(written: float) -> MemoryState:
    return MemoryState(memory={}, seq=1, anchor="", written=written, novelty=1.0)


def test_retention_halves_and_a_use_restores_a_share() -> None:
    made = state(1000.0)
    assert made.retention_at(1000.0, 100.0) == 1.0 == made.retention_at(900.0, 100.0)
    assert made.retention_at(1100.0, 100.0) == pytest.approx(0.5)
    made.use(1100.0, 100.0, 0.5)
    assert made.retention_at(1100.0, 100.0) == pytest.approx(0.75)
    assert made.retention_at(1300.0, 100.0) == pytest.approx(0.75 / 4)
    assert made.retention_at(1e9, 100.0) == 0.0


@settings(max_examples=15, deadline=None)
@given(uses=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10**6)), max_size=12), n=st.integers(0, 7))
def test_the_weakest_are_those_of_least_retention(
    tmp_path_factory, uses: list[tuple[int, int]], n: int
) -> None:
    options = {"strength_half_life_s": 1e5, "strength_refresh": 0.5}
    shard = open_shard(tmp_path_factory.mktemp("weakest"), **options)
    items = [(memory(f"m{i}", text=f"memory {i}"), unit(i)) for i in range(6)]
    shard.memories.put(MemoryBatch.of(items), op_id="put", now=NOW)
    retention, used = dict.fromkeys(range(6), 1.0), dict.fromkeys(range(6), NOW)
    for number, (row, seconds) in enumerate(sorted(uses, key=lambda use: use[1])):
        at = NOW + seconds
        left = retention[row] * 0.5 ** ((at - used[row]) / 1e5)
        retention[row], used[row] = left + 0.5 * (1.0 - left), at
        shard.memories.touch("acme", [f"m{row}"], op_id=f"use-{number}", now=at)
    now = NOW + 10**6
    expected = {f"m{row}": retention[row] * 0.5 ** ((now - used[row]) / 1e5) for row in range(6)}
    found = shard.memories.weakest("acme", n, now=now)
    assert [each["strength"] for each in found] == pytest.approx(sorted(expected.values())[:n], abs=1e-12)
    assert all(each["strength"] == pytest.approx(expected[each["memory"]["id"]], abs=1e-12) for each in found)
    shard.close()
