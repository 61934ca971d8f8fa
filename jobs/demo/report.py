"""`report.json` and `report.md` of a whole loop: what was taught, recalled, scored, consolidated, proven."""

from pathlib import Path
from typing import Any

from common.files import write_bytes, write_json

ARMS = {"base": "base", "memory": "memory", "memory_direct": "memory, direct", "adapter": "adapter"}
MODES = ("full", "text", "text_flat", "prefix", "hybrid", "off")


def save(report: dict[str, Any], folder: Path) -> None:
    """Both files; Markdown first, so that a folder with report.json is complete."""
    write_bytes(folder / "report.md", markdown(report).encode())
    write_json(folder / "report.json", report)


def markdown(report: dict[str, Any]) -> str:
    evaluation, gate, matrix = report["evaluation"], report["gate"], report["matrix"]
    verdict = "accepted" if gate["accepted"] else "rolled back: " + "; ".join(gate["reasons"])
    sections = [
        f"# Sharpwave: {report['model']}",
        f"{report['teach']['stored']} memories of {report['teach']['written']} written. Adapter "
        f"`{report['adapter']}` {verdict}. Configuration `{report['config_hash']}`.",
        "## With memory off",
        _table(
            ["arm", "exact match", "95% interval", "questions"],
            [
                [arm, _percent(found["em"]), f"{_percent(found['low'])} - {_percent(found['high'])}", found["n"]]
                for arm, found in ((name, evaluation[arm]) for arm, name in ARMS.items())
                if found is not None
            ],
        ),
        "`base` and `adapter` answer in a new process without a store; `memory` is the base with memory on. The "
        "questions are indirect, in wordings that training never sees; `memory, direct` are plain ones.\n\n"
        f"Uplift {evaluation['uplift']:+.2f}. Refusals {_percent(evaluation['refusal_rate'])}. Sanity "
        f"{_percent(evaluation['sanity']['before'])} before, {_percent(evaluation['sanity']['after'])} after, on "
        f"{evaluation['sanity']['n']} items.",
        "## How memories reach the model",
        _table(
            ["mode", "hit rate", "indirect", "prompt tokens", "prefix tokens", "retrieve ms", "generate ms"],
            [
                [mode, _percent(found["hit_rate"]), _percent(found["indirect"]), *(f"{found[name]:.0f}" for name in (
                    "prompt_tokens", "prefix_tokens", "retrieve_ms", "generate_ms"))]
                for mode, found in ((mode, report["modes"][mode]) for mode in MODES)
            ],
        ),
        "Hits among plain questions, and among indirect ones, which this small model often does not understand even "
        "with the fact before it. Tokens and times are those of the plain questions.",
        "## What mattered",
        f"{matrix['memories']} memories x {matrix['responses']} responses in {matrix['seconds']:.0f} s, noise floor "
        f"{matrix['noise_floor'] or 0:.1e} nats; the true memory has the highest divergence for "
        f"{_percent(matrix['true_first'])} of the questions. ![heat map](score/heatmap.png)",
        "## Replay",
        f"{report['replay']['samples']} samples, {report['replay']['forms']} forms, {report['replay']['steps']} steps, "
        f"{report['replay']['tokens_per_s']:.0f} tokens/s.",
        "## Seconds",
        _table(["stage", "s"], [[stage, f"{value:.1f}"] for stage, value in report["seconds"].items()]),
    ]  # fmt: skip
    return "\n\n".join(sections) + "\n"


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"
