"""Continuous batching against transformers on the same requests.

    python benchmarks/batching.py [--model MODEL] [--dtype float32] [--requests 32] [--concurrent 8] [--repeats 3]

All ways get the same prompts and the same limits of new tokens (both of unequal lengths), greedy decoding and the
same weights in one process, and alternate. `engine` keeps `--concurrent` requests in flight and starts a new one for
each that ends. `static` calls `generate` with as many at once, padded on the left, until the longest ends; `single`
calls it with one. `--ways engine,paged` compares with transformers' own continuous batching, in a run of its own
because its threads slow the others on a CPU. Tokens count up to each request's own end or limit; what a static batch
writes beyond that does not count. Medians of the repeats; on a GPU, ways that record graphs run all requests once
before.
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
from transformers import ContinuousBatchingConfig, GenerationConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import of_model
from common.config import RecallConfig, ServeConfig
from common.files import write_json
from models.engine.engine import Engine
from models.engine.generation_stats import GenerationStats
from models.engine.sampling import Sampling
from models.kv.blocks import BlockStore
from models.weights.adapters import BASE, AdapterStore
from models.weights.load import LoadedModel, load_model
from models.weights.versions import ModelVersions

WAYS = ("engine", "static", "single")
SUBJECTS = "rivers bread tides clocks owls bridges salt kites glass maps yeast comets".split()


@dataclass(frozen=True)
class Request:
    text: str
    limit: int


Way = Callable[[Sequence[Request]], tuple[list[int], float]]  # tokens of each answer, and seconds


def requests(count: int, seed: int = 1337) -> list[Request]:
    """Prompts of 10 to 120 words, answers of up to 8 to 64 tokens."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        words = " ".join(rng.choices(SUBJECTS, k=rng.randint(1, 110)))
        made.append(
            Request(f"Here is a list: {words}. Write about {rng.choice(SUBJECTS)}.", rng.randint(8, 64))
        )
    return made


def by_engine(engine: Engine, asked: Sequence[Request], concurrent: int) -> list[int]:
    """Tokens of each answer."""
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
                    turn=GenerationStats(mode="off"),
                )
            )
        engine.step()
    for answer in answers:
        if answer.error is not None:
            raise answer.error
    return [answer.turn.completion_tokens for answer in answers]


def make_engine(loaded: LoadedModel, folder: Path, **serve: Any) -> Engine:
    """Without memories."""
    weights = ModelVersions(loaded, AdapterStore(folder / "adapters"), 1)
    return Engine(
        loaded, weights, BlockStore(folder / "blocks", 1 << 20), RecallConfig(), ServeConfig(**serve)
    )


class Paged:
    """transformers' continuous batching. Its thread looks for work all the time, so it runs in its own turn only."""

    def __init__(self, loaded: LoadedModel, concurrent: int) -> None:
        self._loaded = loaded
        pad = loaded.tokenizer.pad_token_id
        self._options = {
            "generation_config": GenerationConfig(
                do_sample=False, max_new_tokens=64, eos_token_id=sorted(loaded.end_ids), pad_token_id=pad
            ),
            # By itself it goes without graphs where attention needs a mask, as SDPA's does.
            "continuous_batching_config": ContinuousBatchingConfig(
                max_requests_per_batch=concurrent,
                use_cuda_graph=loaded.device.type == "cuda",
                max_memory_percent=0.2,
            ),
            "persistent_manager": True,
        }

    def timed(self, asked: Sequence[Request]) -> tuple[list[int], float]:
        """Tokens of each answer, and the seconds that they took."""
        with self._loaded.model.continuous_batching_context_manager(**self._options) as manager:
            started = time.perf_counter()
            return self._ask(manager, asked), time.perf_counter() - started

    def close(self) -> None:
        self._loaded.model.destroy_cached_continuous_batching_manager()

    def _ask(self, manager: Any, asked: Sequence[Request]) -> list[int]:
        loaded = self._loaded
        names = [
            manager.add_request(
                loaded.tokenizer(_text(loaded, request), add_special_tokens=False).input_ids,
                max_new_tokens=request.limit,
                eos_token_id=sorted(loaded.end_ids),
            )
            for request in asked
        ]
        counts: dict[str, int] = {}
        while len(counts) < len(names):
            result = manager.get_result(timeout=10)
            if result is None or result.error is not None:
                raise RuntimeError(
                    f"continuous batching of transformers gave nothing: {result and result.error}"
                )
            if result.is_finished():
                limit = asked[names.index(result.request_id)].limit
                counts[result.request_id] = _useful(result.generated_tokens, limit, loaded.end_ids)
        return [counts[name] for name in names]


@torch.inference_mode()
def by_generate(loaded: LoadedModel, asked: Sequence[Request], at_once: int) -> list[int]:
    tokenizer = loaded.tokenizer
    tokenizer.padding_side = "left"
    counts = []
    for start in range(0, len(asked), at_once):
        batch = asked[start : start + at_once]
        texts = [_text(loaded, request) for request in batch]
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


def _text(loaded: LoadedModel, request: Request) -> str:
    messages = [{"role": "system", "content": "You are a helpful assistant."}, *_messages(request)]
    text: str = loaded.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return text


def _messages(request: Request) -> list[dict[str, Any]]:
    return [{"role": "user", "content": request.text}]


def timed(way: Callable[[Sequence[Request]], list[int]]) -> Way:
    def run(asked: Sequence[Request]) -> tuple[list[int], float]:
        started = time.perf_counter()
        return way(asked), time.perf_counter() - started

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--concurrent", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ways", type=lambda text: text.split(","), default=[*WAYS])
    parser.add_argument("--out", type=Path, default=Path("runs/batching.json"))
    options = parser.parse_args()
    loaded = load_model(options.model, options.dtype)
    asked = requests(options.requests)
    rates: dict[str, list[float]] = {name: [] for name in options.ways}
    counts: dict[str, list[int]] = {}
    with TemporaryDirectory() as scratch:
        engine = make_engine(loaded, Path(scratch), max_batch=options.concurrent)
        paged = Paged(loaded, options.concurrent)
        ways: dict[str, Way] = {
            "engine": timed(lambda given: by_engine(engine, given, options.concurrent)),
            "paged": paged.timed,
            "static": timed(lambda given: by_generate(loaded, given, options.concurrent)),
            "single": timed(lambda given: by_generate(loaded, given, 1)),
        }
        for name in options.ways:
            graphs = loaded.device.type == "cuda" and name in ("engine", "paged")
            ways[name](asked if graphs else asked[:2])  # warms up
        for _ in range(options.repeats):
            for name in options.ways:
                counts[name], seconds = ways[name](asked)
                rates[name].append(sum(counts[name]) / seconds)
                print(f"{name}: {rates[name][-1]:.1f} tokens a second", flush=True)
        paged.close()
        told = engine.status()["graphs"]
    median = {name: statistics.median(values) for name, values in rates.items()}
    report = {
        **of_model(loaded, options.model),
        "requests": options.requests,
        "concurrent": options.concurrent,
        "tokens": {name: sum(found) for name, found in counts.items()},
        "same_lengths_as_engine": {
            name: sum(a == b for a, b in zip(found, counts["engine"], strict=True))
            for name, found in counts.items()
            if "engine" in counts
        },
        "graphs": told,
        "tokens_a_second": rates,
        "median": median,
        "engine_to": {name: median["engine"] / rate for name, rate in median.items() if "engine" in median},
    }
    write_json(options.out, report)
    print({key: report[key] for key in ("tokens", "same_lengths_as_engine", "median", "engine_to", "graphs")})


if __name__ == "__main__":
    main()
