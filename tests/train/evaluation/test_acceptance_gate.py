"""The gate: accepts within all bars, refuses by name, and fails closed."""

from dataclasses import replace

import pytest

from common.config import GateConfig
from train.evaluation.acceptance_gate import Measurements, decide

GOOD = Measurements(uplift=0.9, sanity_drop=0.005, refusal_rate=0.0, anchor_kl=0.1)


def test_good_measurements_are_accepted_with_their_values() -> None:
    decision = decide(GOOD, GateConfig())
    assert decision.accepted and len(decision.reasons) == 4
    assert decision.reasons[0] == "uplift 0.9, met: at least 0.2"


@pytest.mark.parametrize(
    ("name", "value"),
    [("uplift", 0.19), ("sanity_drop", 0.02), ("refusal_rate", 0.51), ("anchor_kl", 0.6)],
)
def test_each_bar_refuses_alone(name: str, value: float) -> None:
    decision = decide(replace(GOOD, **{name: value}), GateConfig())
    assert not decision.accepted
    assert len(decision.reasons) == 1 and f"{value:g}" in decision.reasons[0]


@pytest.mark.parametrize("name", ["uplift", "sanity_drop", "refusal_rate", "anchor_kl"])
@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_what_was_not_measured_refuses(name: str, value: float | None) -> None:
    decision = decide(replace(GOOD, **{name: value}), GateConfig())
    assert not decision.accepted and "not measured" in decision.reasons[0]


def test_a_bar_above_what_was_reached_refuses() -> None:
    assert not decide(GOOD, GateConfig(min_uplift=0.95)).accepted
    assert decide(GOOD, GateConfig(min_uplift=0.9)).accepted
    assert decide(replace(GOOD, uplift=0.3 - 0.1), GateConfig(min_uplift=0.2)).accepted, (
        "0.3 - 0.1 < 0.2 in floats"
    )
