"""How far decoding is from the limit that memory bandwidth sets.

    python benchmarks/decoding.py [--model MODEL] [--dtype bfloat16] [--rows 1,8,32] [--steps 64]

One more token for every running request reads all weights once and each request's keys and values, so it takes at least
their bytes divided by the memory bandwidth, which a large copy measures (bytes read and written). Whole steps of the
engine are timed, sampling and detokenising included, with every row running; on a GPU with and without CUDA graphs.
Medians.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.batching import make_engine
from benchmarks.provenance import of_model
from common.files import write_json
from models.engine.generation_stats import GenerationStats
from models.engine.kv_cache import KVCache
from models.engine.sampling import Sampling
from models.weights.adapters import BASE
from models.weights.load import LoadedModel, load_model

PROMPT_WORDS = 60


class Endless(LoadedModel):
    """Its answers go on to their limit."""

    @property
    def end_ids(self) -> set[int]:
        return set()


def bandwidth(device: torch.device) -> float:
    """Bytes a second."""
    numbers = torch.ones((1 << 31 if device.type == "cuda" else 1 << 29) // 4, device=device)
    target = torch.empty_like(numbers)
    times = []
    for _ in range(7):
        started = _now(device)
        target.copy_(numbers)
        times.append(_now(device) - started)
    return 2 * numbers.numel() * 4 / statistics.median(times)


def weight_bytes(loaded: LoadedModel) -> int:
    """That a token needs: of an embedding that is not the output layer too, next to nothing."""
    model = loaded.model
    apart = model.get_input_embeddings().weight is not model.get_output_embeddings().weight
    whole = sum(each.numel() * each.element_size() for each in model.parameters())
    embedding = model.get_input_embeddings().weight
    return whole - (embedding.numel() * embedding.element_size() if apart else 0)


def step_ms(loaded: LoadedModel, rows: int, steps: int, graphs: bool) -> tuple[float, int, Any]:
    """Median milliseconds of a step, slots in use by then, and what became of the graphs."""
    with TemporaryDirectory() as scratch:
        engine = make_engine(loaded, Path(scratch), max_batch=rows, cuda_graphs=graphs)
        answers = [
            engine.submit(
                [{"role": "user", "content": f"{number} " + "word " * PROMPT_WORDS}],
                [],
                namespace="bench",
                adapter=BASE,
                sampling=Sampling(max_tokens=2 * steps + rows + 8),
                turn=GenerationStats(mode="off"),
            )
            for number in range(rows)
        ]
        while any(answer.prefill or not answer.turn.completion_tokens for answer in answers):
            engine.step()
        times = []
        for _ in range(2 * steps):
            started = _now(loaded.device)
            engine.step()
            times.append(_now(loaded.device) - started)
        assert engine.status()["running"] == rows, [answer.error for answer in answers]
        slots = sum(answer.prompt.slots + answer.turn.completion_tokens for answer in answers)
        return 1e3 * statistics.median(times[steps:]), slots, engine.status()["graphs"]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rows", type=lambda text: [int(part) for part in text.split(",")], default=[1, 8])
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("runs/decoding.json"))
    options = parser.parse_args()
    loaded = load_model(options.model, options.dtype)
    loaded = Endless(loaded.model, loaded.tokenizer, loaded.name, loaded.digest)
    speed, weights = bandwidth(loaded.device), weight_bytes(loaded)
    slot = KVCache.bytes_for(128, loaded.model.config, loaded.dtype) / 128
    report: dict[str, Any] = {
        **of_model(loaded, options.model),
        "bandwidth_bytes_a_second": speed,
        "weight_bytes": weights,
        "steps": [],
    }
    for rows in options.rows:
        for graphs in [True, False] if loaded.device.type == "cuda" else [False]:
            took, slots, told = step_ms(loaded, rows, options.steps, graphs)
            least = 1e3 * (weights + slots * slot) / speed
            line = {
                "rows": rows,
                "graphs": told,
                "step_ms": took,
                "least_ms": least,
                "of_bandwidth": least / took,
                "tokens_a_second": 1e3 * rows / took,
            }
            report["steps"].append(line)
            print({**line, "graphs": graphs}, flush=True)
    write_json(options.out, report)
    print(f"copies at {speed / 1e9:.0f} GB/s; {weights / 1e9:.2f} GB of weights a token")


if __name__ == "__main__":
    main()
