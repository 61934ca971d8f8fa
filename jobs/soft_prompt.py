"""Train the soft prompt encoder of a model on memories from the demo's generator.

    python -m jobs.soft_prompt FILE [--model smollm2-135m] [--slots 8] [--steps 200] [--worlds 20]

FILE is the value for `recall.soft_prompt`. Prints the training loss while it runs, and at the end the loss on an
unseen world before and after. One process, no cluster.
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from jobs.demo.demo_data import write_demo
from models.encoders.soft_prompt import SoftPrompt, read_soft_prompt, save_soft_prompt
from models.kv import prefix as kv
from models.text.prompt import PromptBuilder
from models.weights.load import LoadedModel, load_model
from train.encoders.soft_prompt import Lesson, soft_loss, teach, train_soft_prompt

UNSEEN = 10_000  # seed of the world that measures
REPORT_EVERY = 10


def lessons_of(seed: int) -> list[Lesson]:
    """Every memory of a demo world with its plain questions (wording family `train`)."""
    with TemporaryDirectory() as folder:
        rows = write_demo(Path(folder), seed).experiences.read_text().splitlines()
    return [
        Lesson(text=memory["text"], question=cue["question"])
        for memory in map(json.loads, rows)
        for cue in memory["cues"]
        if cue["family"] == "train"
    ]


def measure(loaded: LoadedModel, module: SoftPrompt, lessons: list[Lesson]) -> float:
    """Mean loss, in nats a token."""
    builder = PromptBuilder(loaded.tokenizer)
    head = kv.encode_head(loaded.model, builder.head)
    with torch.inference_mode():
        losses = [
            soft_loss(loaded.model, module, head, [teach(loaded, builder, lesson)]) for lesson in lessons
        ]
        return float(torch.stack(losses).mean())


def train(path: Path, model: str, *, slots: int, steps: int, worlds: int, seed: int) -> dict[str, float]:
    """Train, write the file, and return the loss on the unseen world `before` and `after`."""
    loaded = load_model(model)
    lessons = [lesson for world in range(worlds) for lesson in lessons_of(seed + world)]
    unseen = lessons_of(UNSEEN)[::4]
    losses: list[float] = []

    def report(step: int, loss: float) -> None:
        losses.append(loss)
        if (step + 1) % REPORT_EVERY == 0:
            recent = sum(losses[-REPORT_EVERY:]) / REPORT_EVERY
            print(f"step {step + 1}/{steps}: loss {recent:.3f}", file=sys.stderr, flush=True)

    module = train_soft_prompt(loaded, lessons, slots=slots, steps=steps, seed=seed, report=report)
    blank = SoftPrompt(module.width, slots).to(loaded.device).eval()
    measured = {"before": measure(loaded, blank, unseen), "after": measure(loaded, module, unseen)}
    provenance = {
        "model": loaded.name,
        "model_digest": loaded.digest,
        "data": f"jobs.demo_data, {worlds} worlds from seed {seed}",
        "lessons": len(lessons),
        "steps": steps,
        "seed": seed,
        "unseen_loss": measured,
    }
    save_soft_prompt(module, path, provenance)
    return measured


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--worlds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(argv)
    measured = train(
        given.file, given.model, slots=given.slots, steps=given.steps, worlds=given.worlds, seed=given.seed
    )
    _, report = read_soft_prompt(given.file.read_bytes(), load_model(given.model).model.config.hidden_size)
    print(json.dumps({"loss": measured, "report": report.to_dict()}, indent=2))


if __name__ == "__main__":
    main()
