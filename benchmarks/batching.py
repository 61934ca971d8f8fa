"""Requests that decode together, against one at a time and against static batches of transformers.

    python benchmarks/batching.py [--model MODEL] [--dtype float32] [--requests 32] [--concurrent 8] [--repeats 3]

The same prompts (ragged), the same limits of new tokens (ragged), greedy, the same weights in the same process; the
three take turns. `engine` keeps `--concurrent` requests in flight, a new one for each that ends. `static` gives
`generate` as many at once, padded on the left, until the longest of them ends; `single` gives it one. Tokens count up
to each request's own end or limit, so what a static batch writes beyond that is no use to it. Medians of the repeats.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import of_model
from common.config import RecallConfig, ServeConfig
from common.files import write_json
from models.adapters import BASE, AdapterStore
from models.blocks import BlockStore
from models.engine import Engine
from models.load import LoadedModel, load_model
from models.sampling import Sampling
from models.turn import Turn
from models.weights import Weights

SUBJECTS = "rivers bread tides clocks owls bridges salt kites glass maps yeast comets".split()


@dataclass(frozen=True)
class Request:
    text: str
    limit: int


def requests(count: int) -> list[Request]:
    """Prompts of 10 to 120 words, answers of up to 8 to 64 tokens."""
    rng = random.Random(1337)
    made = []
    for _ in range(count):
        words = " ".join(rng.choices(SUBJECTS, k=rng.randint(1, 110)))
        made.append(
            Request(f"Here is a list: {words}. Write about {rng.choice(SUBJECTS)}.", rng.randint(8, 64))
        )
    return made


def by_engine(loaded: LoadedModel, asked: Sequence[Request], concurrent: int) -> list[int]:
    """Tokens of each answer."""
    with TemporaryDirectory() as scratch:
        engine = Engine(
            loaded,
            Weights(loaded, AdapterStore(Path(scratch) / "adapters"), 1),
            BlockStore(Path(scratch) / "blocks", 1 << 20),
            RecallConfig(),
            ServeConfig(max_batch=concurrent),
        )
        answers: list[Any] = []
        while len(answers) < len(asked) or engine.busy:
            while len(answers) < len(asked) and sum(not answer.done for answer in answers) < concurrent:
                request = asked[len(answers)]
                answers.append(
                    engine.submit(
                        _messages(request),
                        [],
                        namespace="bench",
                        adapter=BASE,
                        sampling=Sampling(max_tokens=request.limit),
                        turn=Turn(mode="off"),
                    )
                )
            engine.step()
        return [answer.turn.completion_tokens for answer in answers]


@torch.inference_mode()
def by_generate(loaded: LoadedModel, asked: Sequence[Request], at_once: int) -> list[int]:
    tokenizer = loaded.tokenizer
    tokenizer.padding_side = "left"
    counts = []
    for start in range(0, len(asked), at_once):
        batch = asked[start : start + at_once]
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "system", "content": "You are a helpful assistant."}, *_messages(request)],
                add_generation_prompt=True,
                tokenize=False,
            )
            for request in batch
        ]
        given = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(
            loaded.device
        )
        out = loaded.model.generate(
            **given,
            max_new_tokens=max(request.limit for request in batch),
            do_sample=False,
            eos_token_id=sorted(loaded.end_ids),
            pad_token_id=tokenizer.pad_token_id,
        )
        new = out[:, given["input_ids"].shape[1] :].tolist()
        counts += [
            _useful(ids, request.limit, loaded.end_ids) for ids, request in zip(new, batch, strict=True)
        ]
    return counts


def _useful(ids: Sequence[int], limit: int, ends: set[int]) -> int:
    return next((place for place, id in enumerate(ids[:limit]) if id in ends), min(limit, len(ids)))


def _messages(request: Request) -> list[dict[str, Any]]:
    return [{"role": "user", "content": request.text}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--concurrent", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/batching.json"))
    options = parser.parse_args()
    loaded = load_model(options.model, options.dtype)
    asked = requests(options.requests)
    ways: dict[str, Callable[[], list[int]]] = {
        "engine": lambda: by_engine(loaded, asked, options.concurrent),
        "static": lambda: by_generate(loaded, asked, options.concurrent),
        "single": lambda: by_generate(loaded, asked, 1),
    }
    by_engine(loaded, asked[:2], 2)  # warms up
    rates: dict[str, list[float]] = {name: [] for name in ways}
    counts: dict[str, list[int]] = {}
    for _ in range(options.repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            counts[name] = way()
            rates[name].append(sum(counts[name]) / (time.perf_counter() - started))
    median = {name: statistics.median(values) for name, values in rates.items()}
    report = {
        **of_model(loaded, options.model),
        "requests": options.requests,
        "concurrent": options.concurrent,
        "tokens": {name: sum(found) for name, found in counts.items()},
        "same_lengths": counts["engine"] == counts["single"],
        "tokens_a_second": rates,
        "median": median,
        "engine_to_single": median["engine"] / median["single"],
        "engine_to_static": median["engine"] / median["static"],
    }
    write_json(options.out, report)
    print(
        {
            key: report[key]
            for key in ("tokens", "same_lengths", "median", "engine_to_single", "engine_to_static")
        }
    )


if __name__ == "__main__":
    main()
