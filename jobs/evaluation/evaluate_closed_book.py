"""Closed-book evaluation: a separate process that answers questions from the model's weights alone.

    python -m jobs.evaluation.evaluate_closed_book REQUEST.json RESULT.json

It starts without Sharpwave or Ray settings in its environment, and blocks the import of Ray, stores, actors and the
serving code, so that no memory can reach it. The expected answers are used for grading only.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from common.files import read_json, write_json
from jobs.instance.source import ROOT

HIDDEN = ("ray", "stores", "actors", "serve")  # where memories could come from


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """`questions`: `{question, answer, family, memory}` each; `adapter`: a PEFT folder, or None for the base; `sanity`:
    how many sanity items (0: none)."""

    model: str
    dtype: str
    adapter: str | None
    questions: list[dict[str, Any]]
    sanity: int
    seed: int


def evaluate(request: Request, folder: Path, arm: str) -> dict[str, Any]:
    """Run the process for one arm and return its result; both files stay in `folder`. Raises `RuntimeError` with the
    end of the log if it fails."""
    asked, answered = folder / f"{arm}-request.json", folder / f"{arm}.json"
    write_json(asked, dataclasses.asdict(request))
    hidden = ("SHARPWAVE_", "RAY_")
    kept = ("SHARPWAVE_CACHE",)
    environment = {k: v for k, v in os.environ.items() if k in kept or not k.startswith(hidden)}
    done = subprocess.run(
        [sys.executable, "-m", "jobs.evaluation.evaluate_closed_book", str(asked), str(answered)],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"evaluation of arm {arm!r} failed:\n{done.stderr[-2000:]}")
    return read_json(answered)


def answer(request: Request) -> dict[str, Any]:
    """In the process: load the model, evaluate each wording family, and score the sanity items if wanted."""
    from peft import PeftModel

    from models.weights.load import load_model
    from models.weights.load_report import check_folder
    from train.evaluation.evaluate import evaluate_arm, sanity_accuracy
    from train.evaluation.sanity import sanity_items

    loaded = load_model(request.model, request.dtype)
    model = loaded.model
    if request.adapter is not None:
        check_folder(model, Path(request.adapter))
        model = PeftModel.from_pretrained(model, request.adapter)
    asked = {family: [q for q in request.questions if q["family"] == family] for family in families(request)}
    result: dict[str, Any] = {
        "families": {family: evaluate_arm(model, loaded.tokenizer, rows) for family, rows in asked.items()},
        "pid": os.getpid(),
    }
    if request.sanity:
        items = sanity_items(request.seed, request.sanity)
        accuracy, correct = sanity_accuracy(model, loaded.tokenizer, items)
        result["sanity"] = {"accuracy": accuracy, "n": len(items), "correct": correct}
    return result


def families(request: Request) -> list[str]:
    return sorted({question["family"] for question in request.questions})


def main(argv: list[str]) -> None:
    asked, answered = map(Path, argv)
    for name in HIDDEN:
        if name in sys.modules:
            raise RuntimeError(f"memory is not off: {name} is imported")
        sys.modules[name] = None  # type: ignore[assignment]  # from here on, importing it fails
    request = Request(**json.loads(asked.read_text()))
    write_json(answered, answer(request))


if __name__ == "__main__":
    main(sys.argv[1:])
