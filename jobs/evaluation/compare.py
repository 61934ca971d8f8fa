"""Evaluate a model version with memory off, and compare the arms base, memory and adapter."""

from pathlib import Path
from typing import Any

from common.config import Config
from jobs.evaluation import evaluate_closed_book
from jobs.evaluation.questions import AUDIT, TEST


def examine(
    config: Config, adapter: Path | None, questions: list[dict[str, Any]], out: Path, arm: str
) -> dict[str, Any]:
    """Answers of the base (`adapter` None) or of a PEFT folder without memory; files of `arm` are left in `out`."""
    request = evaluate_closed_book.Request(
        model=config.model.name,
        dtype=config.model.dtype,
        adapter=None if adapter is None else str(adapter),
        questions=questions,
        sanity=config.gate.sanity_items,
        seed=config.train.seed,
    )
    return evaluate_closed_book.evaluate(request, out, arm)


def compare(
    base: dict[str, Any],
    memory: dict[str, Any],
    adapter: dict[str, Any],
    direct: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Exact match of the arms on the test wording, which neither training nor its audits use, with 95% intervals;
    `uplift` (adapter minus base, memory off), refusal rate, and sanity accuracy before and after.
    `memory_direct` is the arm with memory on the plain questions (None where there are none)."""
    before, after = base["sanity"]["accuracy"], adapter["sanity"]["accuracy"]
    tested = {"base": base["families"][TEST], "memory": memory, "adapter": adapter["families"][TEST]}
    audited = {"base": base["families"][AUDIT], "adapter": adapter["families"][AUDIT]}
    return {
        **{arm: _rate(found) for arm, found in tested.items()},
        "memory_direct": _rate(direct) if direct else None,
        "memory_fallbacks": memory["fallbacks"],
        "audit": {arm: _rate(found) for arm, found in audited.items()},
        "uplift": tested["adapter"]["em"] - tested["base"]["em"],
        "refusal_rate": tested["adapter"]["refusal_rate"],
        "sanity": {"before": before, "after": after, "delta": after - before, "n": adapter["sanity"]["n"]},
    }


def _rate(found: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in ("em", "n", "low", "high")}
