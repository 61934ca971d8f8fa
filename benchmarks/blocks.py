"""What a KV block costs and loses, by encoder and by storage format.

    python benchmarks/blocks.py [--model MODEL] [--dtype DTYPE] [--worlds 3] [--variants LIST] [--out FILE]

Memories and questions are the demo's (`jobs.demo.demo_data`); each question gets its own memory and the two next to
it, with `recall.reprocess` none, so that everything comes from blocks. `same`: share of answers equal to the first
variant's, word for word; `hit`: the expected answer is contained; `nats`: mean KL divergence of the first token's
distribution from the first variant's. Encoding is measured in CPU time of this process, which other work on the
machine hardly changes.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import of_model
from common.config import RecallConfig
from common.files import write_json
from jobs.demo.demo_data import write_demo
from models.encoders.encoding_queue import RecalledMemory
from models.engine.engine import Engine
from models.engine.generation_stats import GenerationStats
from models.engine.sampling import Sampling
from models.kv import prefix as kv
from models.kv.blocks import BlockStore
from models.weights.adapters import BASE, AdapterStore
from models.weights.load import LoadedModel, load_model
from models.weights.versions import ModelVersions
from train.evaluation.evaluate import normalise
from train.generation.chat import SHORTEST_SPAN

MAX_TOKENS = 8
VARIANTS: dict[str, dict[str, Any]] = {
    "kv_chunks": {},
    "kv_chunks int8": {"block_dtype": "int8"},
    "kv_compact 2x": {"encoder": "kv_compact", "compact": 2},
    "kv_compact 2x int8": {"encoder": "kv_compact", "compact": 2, "block_dtype": "int8"},
    "kv_compact 4x": {"encoder": "kv_compact", "compact": 4},
}


@dataclass(frozen=True)
class Question:
    messages: list[dict[str, str]]
    answer: str
    memories: list[RecalledMemory]


def questions_of(seed: int) -> list[Question]:
    """Of one demo world: the plain questions, two of each memory."""
    with TemporaryDirectory() as folder:
        rows = [
            json.loads(line) for line in write_demo(Path(folder), seed).experiences.read_text().splitlines()
        ]
    memories = [RecalledMemory(id=f"{seed}-{row['id']}", text=row["text"]) for row in rows]
    found = []
    for number, row in enumerate(rows):
        near = [memories[(number + step) % len(memories)] for step in range(3)]
        for cue in [cue for cue in row["cues"] if cue["family"] == "train"][:2]:
            messages = [
                {"role": "system", "content": SHORTEST_SPAN},
                {"role": "user", "content": cue["question"]},
            ]
            found.append(Question(messages, cue["answer"], near))
    return found


def measure(
    loaded: LoadedModel, recall: RecallConfig, questions: list[Question], folder: Path
) -> dict[str, Any]:
    """Encode, then answer. `answers` and `first` (`[questions, vocabulary]` log-probabilities) are compared later."""
    engine = Engine(
        loaded,
        ModelVersions(loaded, AdapterStore(folder / "adapters"), 1),
        BlockStore(folder / "blocks", 8 << 30),
        recall,
    )
    memories = list({memory.id: memory for question in questions for memory in question.memories}.values())
    engine.queue.enqueue("n", memories[:1], BASE)
    engine.encode_some()  # the head, and what a first call costs
    started = time.process_time()
    engine.queue.enqueue("n", memories[1:], BASE)
    while engine.encode_some():
        pass
    seconds = time.process_time() - started
    blocks = engine.queue.find_blocks("n", memories, BASE)
    files = [path.stat().st_size for path in (folder / "blocks").rglob("*.safetensors")]
    return {
        "tokens": float(np.mean([len(block.ids) for block in blocks if block])),
        "bytes": float(np.mean([block.size_bytes for block in blocks if block])),
        "file_bytes": float(np.mean(files)),
        "encode_ms": 1e3 * seconds / (len(memories) - 1),
        "answers": _answers(engine, questions),
        "first": torch.stack([_first(engine, question) for question in questions]),
    }


def _first(engine: Engine, question: Question) -> torch.Tensor:
    """Log-probabilities of the answer's first token, `[vocabulary]`."""
    turn = GenerationStats(mode="prefix")
    prompt = engine.injection.prompt(
        engine.loaded.model,
        question.messages,
        question.memories,
        namespace="n",
        adapter=BASE,
        max_tokens=MAX_TOKENS,
        turn=turn,
    )
    assert turn.fallback is None, turn.fallback
    return kv.prefill(engine.loaded.model, prompt.prefix, prompt.ids)[1].float().log_softmax(-1)


def _answers(engine: Engine, questions: list[Question]) -> list[str]:
    """Greedy answers, as many at once as the engine takes."""
    answers = [
        engine.submit(
            question.messages,
            question.memories,
            namespace="n",
            adapter=BASE,
            sampling=Sampling(max_tokens=MAX_TOKENS),
            turn=GenerationStats(mode="prefix"),
        )
        for question in questions
    ]
    while engine.busy:
        engine.step()
    return ["".join(answer.pieces) for answer in answers]


def compared(found: dict[str, dict[str, Any]], questions: list[Question]) -> dict[str, dict[str, Any]]:
    """Each variant against the first."""
    first = next(iter(found.values()))
    rows = {}
    for name, result in found.items():
        same = [ours == theirs for ours, theirs in zip(result["answers"], first["answers"], strict=True)]
        hits = [
            normalise(question.answer) in normalise(answer)
            for question, answer in zip(questions, result["answers"], strict=True)
        ]
        nats = (first["first"].exp() * (first["first"] - result["first"])).sum(-1)
        rows[name] = {
            **{key: value for key, value in result.items() if key != "first"},
            "of_first": result["bytes"] / first["bytes"],
            "same": float(np.mean(same)),
            "hit": float(np.mean(hits)),
            "nats": float(nats.mean()),
            "n": len(questions),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--worlds", type=int, default=2, help="of 20 memories, 40 questions")
    parser.add_argument("--questions", type=int, help="as many of them, evenly spread; none: all")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="the first is compared against")
    parser.add_argument("--soft-prompt", help="file of a trained encoder, to be measured too")
    parser.add_argument("--out", type=Path, default=Path("runs/blocks.json"))
    given = parser.parse_args()
    variants = {name: VARIANTS[name] for name in given.variants.split(",")}
    if given.soft_prompt:
        variants["soft_prompt"] = {"encoder": "soft_prompt", "soft_prompt": given.soft_prompt}
    loaded = load_model(given.model, given.dtype)
    questions = [question for seed in range(given.worlds) for question in questions_of(seed)]
    if given.questions:
        questions = questions[:: max(1, len(questions) // given.questions)][: given.questions]
    found = {}
    for name, options in variants.items():
        with TemporaryDirectory() as scratch:
            recall = RecallConfig(reprocess="none", **options)
            found[name] = measure(loaded, recall, questions, Path(scratch))
        row = compared({k: found[k] for k in (next(iter(found)), name)}, questions)[name]
        print(name, {key: value for key, value in row.items() if key != "answers"}, flush=True)
    report = {
        **of_model(loaded, given.model),
        "variants": compared(found, questions),
    }
    write_json(given.out, report)


if __name__ == "__main__":
    main()
