"""Decide whether an adapter is accepted: every measurement must be present, finite and within its bound."""

import math
from dataclasses import dataclass

from common.config import GateConfig


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Measurements with memory off. None means not measured, and refuses the adapter."""

    uplift: float | None  # exact match, adapter minus base
    sanity_drop: float | None  # accuracy, base minus adapter
    refusal_rate: float | None  # of the adapter's answers
    anchor_kl: float | None  # nats a token, on anchors that were not trained on


@dataclass(frozen=True)
class GateDecision:
    accepted: bool
    reasons: list[str]  # one line a measurement: what failed, or what each bar was met with


def decide(measurements: Measurements, config: GateConfig) -> GateDecision:
    """Compare with the bounds. Fails closed: a missing or non-finite measurement refuses the adapter."""
    checks = [
        _check("uplift", measurements.uplift, config.min_uplift, at_least=True),
        _check("sanity drop", measurements.sanity_drop, config.max_sanity_drop, at_least=False),
        _check("refusal rate", measurements.refusal_rate, config.max_refusal_rate, at_least=False),
        _check("anchor KL", measurements.anchor_kl, config.max_anchor_kl, at_least=False),
    ]
    accepted = all(passed for passed, _ in checks)
    return GateDecision(accepted, [reason for passed, reason in checks if accepted or not passed])


def _check(name: str, value: float | None, bar: float, *, at_least: bool) -> tuple[bool, str]:
    rule = f"{'at least' if at_least else 'at most'} {bar:g}"
    if value is None or not math.isfinite(value):
        return False, f"{name} was not measured ({value}); {rule} is needed"
    # Shares such as 0.3 - 0.1 miss their bar by rounding alone.
    passed = value >= bar - 1e-9 if at_least else value <= bar + 1e-9
    return passed, f"{name} {value:.4g}, {'met' if passed else 'needed'}: {rule}"
