"""How long opening a shard takes: from snapshot and tail, against building the index alone, against the whole log.

    python benchmarks/open.py [--memories 100000] [--dim 384] [--tail 1000] [--repeat 3] [--out FILE]

`build`: train and fill the index from vectors that are in memory already, nothing else; `snapshot`: `Shard.open` from
a snapshot and a tail of the log, until the first search is answered; `log`: the same without the snapshot. All in one
process, after one another, caches warm. Vectors are unit, around 1,000 centres, so that lists mean something.
"""

import argparse
import json
import platform
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.config import StoreConfig
from common.files import write_json
from stores.index import IndexPlan, VectorIndex, Vectors
from stores.memory import Memory, parse_memory
from stores.shard import Shard

NOW = 1_700_000_000.0
BATCH = 1_000
CENTRES = 1_000
T = TypeVar("T")


def made_vectors(count: int, dim: int, seed: int = 1337) -> Vectors:
    chance = np.random.default_rng(seed)
    centres = chance.normal(size=(CENTRES, dim)).astype(np.float32)
    vectors = centres[chance.integers(CENTRES, size=count)]
    vectors += chance.normal(scale=0.7, size=(count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def made_memory(number: int) -> Memory:
    fields = {
        "id": f"0190a7f2-0000-7000-8000-{number:012d}",
        "text": f"Person {number} moved to city {number % 997} in the year {1900 + number % 120}, and liked it there.",
        "conversation": f"c{number % 500}",
        "time": NOW + number,
        "context": {"source": "chat", "turn": number % 40},
    }
    return parse_memory(fields, namespace="bench", now=NOW, max_text_bytes=10_000)


def timed(action: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    answer = action()
    return time.perf_counter() - start, answer


def fill(shard: Shard, vectors: Vectors, start: int, end: int) -> None:
    for at in range(start, end, BATCH):
        items = [(made_memory(number), vectors[number]) for number in range(at, min(end, at + BATCH))]
        shard.put(items, op_id=f"put-{at}", now=NOW)


def build(vectors: Vectors, plan: IndexPlan) -> VectorIndex:
    index = VectorIndex(vectors.shape[1], plan)
    index.add([*range(1, len(vectors) + 1)], vectors)
    index.settle()
    return index


def run(folder: Path, memories: int, dim: int, tail: int, plan: IndexPlan, repeat: int) -> dict[str, Any]:
    vectors = made_vectors(memories, dim)
    config = StoreConfig(snapshot_every=0, map_size_bytes=16 << 30)

    def opened() -> Shard:
        shard = Shard(folder, number=0, dim=dim, config=config)
        shard.search("bench", vectors[0], 10)
        return shard

    shard = Shard(folder, number=0, dim=dim, config=config)
    fill(shard, vectors, 0, memories - tail)
    index_of(shard).settle()
    capture_s, captured = timed(shard._capture)
    write_s, made = timed(lambda: shard._snapshots.make(lambda: captured))
    assert made is not None
    fill(shard, vectors, memories - tail, memories)
    expected = shard.search("bench", vectors[1], 10)
    shard.close()

    times: dict[str, list[float]] = {"build": [], "snapshot": [], "log": [], "log_and_build": []}
    for _ in range(repeat):
        times["build"].append(timed(lambda: build(vectors, plan))[0])
        seconds, shard = timed(opened)
        times["snapshot"].append(seconds)
        assert [each["score"] for each in shard.search("bench", vectors[1], 10)] == [
            each["score"] for each in expected
        ]
        structure = index_of(shard).kind
        shard.close()
    shutil.rmtree(folder / "snapshots")
    seconds, shard = timed(opened)
    times["log"].append(seconds)
    times["log_and_build"].append(seconds + timed(index_of(shard).settle)[0])
    shard.close()
    best = {name: min(found) for name, found in times.items()}
    return {
        "memories": memories,
        "dim": dim,
        "tail": tail,
        "index": structure,
        "seconds": best,
        "all_seconds": times,
        "snapshot_to_build": best["snapshot"] / best["build"],
        "snapshot_to_log": best["snapshot"] / best["log"],
        "capture_s": capture_s,
        "write_s": write_s,
    }


def index_of(shard: Shard) -> VectorIndex:
    return shard._view.spaces["bench"].index


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--memories", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--tail", type=int, default=1_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        found = run(Path(folder), options.memories, options.dim, options.tail, IndexPlan(), options.repeat)
    found |= {"machine": platform.platform(), "python": platform.python_version()}
    print(json.dumps(found, indent=2))
    if options.out:
        write_json(options.out, found)


if __name__ == "__main__":
    main()
