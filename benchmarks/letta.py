"""Hit rate and prompt tokens of every mode, and the rank of the true memory by divergence, on letta_core_memory.

    python benchmarks/letta.py FOLDER --model MODEL [--sets 10] [--policies best_last,first_k,none] [--out FILE]

FOLDER holds core_memory_read.jsonl and core_memory_update.jsonl (letta-ai/letta-evals, Apache-2.0). The facts of all
sets share one namespace; `full` holds them all; the others the k nearest of them. A hit is the expected answer,
normalised, contained in the model's. `true_first`: the supporting fact of a question has the highest divergence among
its set's ten. Intervals are Wilson's, 95%. One process without Ray: the engine is what is measured.
"""

import argparse
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.public_sets import letta_rows
from common.config import RecallConfig
from common.files import write_json
from models.encoders.encoding_queue import RecalledMemory
from models.engine.engine import Engine
from models.engine.generation_stats import GenerationStats
from models.engine.sampling import Sampling
from models.kv.blocks import BlockStore
from models.scoring.leave_one_out import LeaveOneOut, ScoreContext, divergences
from models.text.embed import Embedder
from models.text.prompt import PromptBuilder
from models.weights.adapters import BASE, AdapterStore
from models.weights.load import LoadedModel, load_model
from models.weights.versions import ModelVersions
from train.evaluation.evaluate import normalise, wilson
from train.generation.chat import SHORTEST_SPAN

K = 3
MAX_TOKENS = 16


@dataclass(frozen=True)
class Question:
    text: str
    answer: str
    facts: tuple[str, ...]
    supporting: int | None


def read_questions(folder: Path, sets: int) -> list[Question]:
    """The questions of the first `sets` fact sets, in the file's order."""
    found: list[Question] = []
    known: list[tuple[str, ...]] = []
    for row in letta_rows(folder):
        if row.facts not in known:
            if len(known) == sets:
                continue
            known.append(row.facts)
        only = row.supporting[0] if len(row.supporting) == 1 else None
        found.append(Question(row.question, row.answer, row.facts, only))
    return found


def measure_modes(
    loaded: LoadedModel, questions: list[Question], policies: list[str], skip: set[str]
) -> dict[str, Any]:
    facts = list(dict.fromkeys(fact for question in questions for fact in question.facts))
    nearest = _nearest(questions, facts)
    names = [*(f"prefix:{policy}" for policy in policies), "text", "hybrid", "off", "full"]
    results: dict[str, Any] = {}
    with TemporaryDirectory() as scratch:
        for name in names:
            mode, _, policy = name.partition(":")
            if mode in skip:
                continue
            recall = RecallConfig(mode=mode, k=K, reprocess=policy or "best_last")
            engine = Engine(
                loaded,
                ModelVersions(loaded, AdapterStore(Path(scratch) / "adapters"), 1),
                BlockStore(Path(scratch) / "blocks", recall.block_cache_bytes),
                recall,
            )
            engine.queue.enqueue(
                "letta", [RecalledMemory(id=str(i), text=fact) for i, fact in enumerate(facts)], BASE
            )
            while engine.encode_some():
                pass
            results[name] = _measure(engine, questions, facts, nearest, mode)
            print(name, {k: v for k, v in results[name].items() if k != "answers"}, flush=True)
    return results


def _measure(
    engine: Engine, questions: list[Question], facts: list[str], nearest: np.ndarray, mode: str
) -> dict[str, Any]:
    hits, tokens, slots, seconds, answers = [], [], [], [], []
    for question, order in zip(questions, nearest, strict=True):
        chosen = range(len(facts)) if mode == "full" else order[:K]
        turn = GenerationStats(mode=mode)
        messages = [{"role": "system", "content": SHORTEST_SPAN}, {"role": "user", "content": question.text}]
        pieces = engine.answer(
            messages,
            [] if mode == "off" else [RecalledMemory(id=str(i), text=facts[i]) for i in chosen],
            namespace="letta",
            adapter=BASE,
            sampling=Sampling(max_tokens=MAX_TOKENS),
            turn=turn,
        )
        answer = "".join(pieces)
        assert turn.fallback is None, turn.fallback
        hits.append(normalise(question.answer) in normalise(answer))
        tokens.append(turn.prompt_tokens)
        slots.append(turn.prefix_tokens)
        seconds.append(turn.generate_s)
        answers.append(answer)
    low, high = wilson(sum(hits), len(hits))
    return {
        "hit_rate": float(np.mean(hits)),
        "low": low,
        "high": high,
        "prompt_tokens": float(np.mean(tokens)),
        "prefix_tokens": float(np.mean(slots)),
        "generate_ms": 1e3 * float(np.median(seconds)),
        "n": len(hits),
        "answers": answers,
    }


def measure_matrix(loaded: LoadedModel, questions: list[Question]) -> dict[str, Any]:
    """Leave one fact of a question's set out, for every question with one known supporting fact."""
    builder, started, first, noise = PromptBuilder(loaded.tokenizer), time.perf_counter(), [], []
    for facts in dict.fromkeys(question.facts for question in questions):
        asked = [q for q in questions if q.facts == facts and q.supporting is not None]
        if not asked:
            continue
        context = ScoreContext(
            builder.head,
            [builder.memory(fact) for fact in facts],
            [builder.transcript(_scored(question), memories=True) for question in asked],
        )
        with torch.inference_mode():
            rows = LeaveOneOut(loaded.model, context)
            baseline = rows.row(None)
            matrix = divergences(baseline, np.stack([rows.row(i) for i in range(len(facts))]))
            noise.append(float(np.abs(rows.null_row() - baseline).max()))
        first += [int(matrix[:, j].argmax()) == question.supporting for j, question in enumerate(asked)]
    low, high = wilson(sum(first), len(first))
    seconds = time.perf_counter() - started
    return {"true_first": float(np.mean(first)), "low": low, "high": high, "n": len(first), "seconds": seconds,
            "noise_floor": max(noise)}  # fmt: skip


def _scored(question: Question) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": SHORTEST_SPAN},
        {"role": "user", "content": question.text},
        {"role": "assistant", "content": question.answer},
    ]


def _nearest(questions: list[Question], facts: list[str]) -> np.ndarray:
    embedder = Embedder()
    return np.argsort(-(embedder.encode([q.text for q in questions]) @ embedder.encode(facts).T), axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--sets", type=int, default=10)
    parser.add_argument("--policies", default="best_last,first_k,none")
    parser.add_argument("--skip", default="", help="modes to leave out, as in full,off; matrix is one too")
    parser.add_argument("--out", type=Path, default=Path("runs/letta.json"))
    arguments = parser.parse_args()
    skip = set(arguments.skip.split(","))
    questions = read_questions(arguments.folder, arguments.sets)
    loaded = load_model(arguments.model, arguments.dtype)
    report: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "model": Path(arguments.model).name,
        "dtype": str(loaded.dtype),
        "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "sets": arguments.sets,
        "questions": len(questions),
    }
    if "matrix" not in skip:
        report["matrix"] = measure_matrix(loaded, questions)
        print("matrix", report["matrix"], flush=True)
    report["modes"] = measure_modes(loaded, questions, arguments.policies.split(","), skip)
    write_json(arguments.out, report)


if __name__ == "__main__":
    main()
