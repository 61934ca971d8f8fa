"""Time to first token with 512, 2,048 and 8,192 tokens of memories.

    python benchmarks/first_token.py [--model MODEL] [--dtype bfloat16] [--tokens 512,2048,8192] [--repeats 3]

Measured from the request to its first token, tokenising and look-up included, with nothing else in the engine:

    text          the memories as text
    blocks        as KV blocks in memory, each rotated to its position; the two best run again
    blocks, disk  the same, read from their files
    history       states encoded one behind the other (kv_exact), in memory: the same tokens as text

Ways alternate and each repetition asks another question; medians. Memories are cut to the model's context.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import of_model
from benchmarks.session_sets import Asked, own
from common.config import RecallConfig, ServeConfig
from common.files import write_json
from models.encoders.encoding_queue import RecalledMemory
from models.engine.engine import Engine
from models.engine.generation_stats import GenerationStats
from models.engine.sampling import Sampling
from models.kv.blocks import BlockStore
from models.weights.adapters import BASE, AdapterStore
from models.weights.load import LoadedModel, load_model
from models.weights.versions import ModelVersions
from train.generation.chat import SHORTEST_SPAN

CACHE = 8 << 30  # bytes
WAYS = {"text": ("text", "kv_chunks", CACHE), "blocks": ("prefix", "kv_chunks", CACHE),
        "blocks, disk": ("prefix", "kv_chunks", 0), "history": ("prefix", "kv_exact", CACHE)}  # fmt: skip
SPARE = 256  # tokens of the context for head, question and answer

Json = dict[str, Any]


def measure(loaded: LoadedModel, tokens: int, repeats: int, folder: Path) -> Json:
    """Seconds to the first token by way."""
    facts = own(1000, 1337)
    engines = {name: _engine(loaded, encoder, cache, folder) for name, (_, encoder, cache) in WAYS.items()}
    memories, used = [], 0
    for fact in facts.facts:
        used += len(engines["text"].queue.builder.memory(fact.text))
        if used > min(tokens, loaded.context_tokens - SPARE):
            break
        memories.append(RecalledMemory(id=fact.id, text=fact.text))
    for name in ("blocks", "history"):  # those on disk are those of `blocks`
        engines[name].queue.enqueue("n", memories, BASE)
        while engines[name].encode_some():
            pass
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    rows: dict[str, GenerationStats] = {}
    for asked in facts.questions[: repeats + 1]:
        for name in WAYS:
            taken, rows[name] = _first(engines[name], asked, memories, WAYS[name][0])
            seconds[name].append(taken)
    medians = {name: float(np.median(all[1:])) for name, all in seconds.items()}  # the first warms up
    return {
        "memories": len(memories),
        "injected": rows["blocks"].prefix_tokens,
        "prompt_tokens": {name: turn.prompt_tokens for name, turn in rows.items()},
        "first_token_s": medians,
        "of_text": {name: median / medians["text"] for name, median in medians.items()},
        "raw": seconds,
    }


def _engine(loaded: LoadedModel, encoder: str, cache: int, folder: Path) -> Engine:
    blocks = BlockStore(folder / "blocks", cache)
    weights = ModelVersions(loaded, AdapterStore(folder / "adapters"), 1)
    recall = RecallConfig.model_validate({"encoder": encoder})
    return Engine(loaded, weights, blocks, recall, ServeConfig(kv_cache_bytes=CACHE))


def _first(
    engine: Engine, asked: Asked, memories: Sequence[RecalledMemory], mode: str
) -> tuple[float, GenerationStats]:
    started = time.perf_counter()
    answer = engine.submit(
        [{"role": "system", "content": SHORTEST_SPAN}, {"role": "user", "content": asked.text}],
        memories,
        namespace="n",
        adapter=BASE,
        sampling=Sampling(max_tokens=1),
        turn=GenerationStats(mode=mode),
    )
    while not answer.done:
        engine.step()
    taken = time.perf_counter() - started
    if answer.error is not None:
        raise answer.error
    assert answer.turn.fallback is None, answer.turn.fallback  # it would be another way's time
    return taken, answer.turn


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tokens", type=lambda text: [*map(int, text.split(","))], default=[512, 2048, 8192])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    loaded = load_model(options.model, options.dtype)
    report: Json = {
        **of_model(loaded, options.model),
        "tokens": {},
    }
    for tokens in options.tokens:
        with TemporaryDirectory() as folder:
            found = measure(loaded, tokens, options.repeats, Path(folder))
        report["tokens"][tokens] = found
        seconds = {name: round(value, 3) for name, value in found["first_token_s"].items()}
        print(f"{tokens} tokens, {found['memories']} memories: {seconds}", flush=True)
    print(json.dumps(report, indent=2))
    if options.out:
        write_json(options.out, report)


if __name__ == "__main__":
    main()
