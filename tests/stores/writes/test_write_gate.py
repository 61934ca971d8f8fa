"""The write gate: its decisions and their reasons."""

from typing import Any

import pytest

from common.config import StoreConfig
from stores.writes import write_gate
from tests.support.stores import memory


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
