"""Time to open a shard: from snapshot and tail, against building the index alone, against the whole log.

    python benchmarks/open.py [--memories 100000] [--dim 384] [--tail 1000] [--repeat 3] [--out FILE]

`build`: train and fill the index from vectors in memory, nothing else; `snapshot`: `Shard.open` from a snapshot and a
tail of the log, until the first search is answered; `log`: the same without the snapshot. All in one process, one
after another, with warm caches. Unit vectors around 1,000 centres, so that the tree's lists are real clusters.
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
from stores.index.vector_index import IndexPlan, VectorIndex
from stores.index.vectors import Vectors
from stores.memory.memory import Memory, parse_memory, to_json
from stores.shard.shard import Shard
from stores.view.memory_state import MemoryState, row_of

NOW = 1_700_000_000.0
BATCH = 1_000
CENTRES = 1_000
UNITS = ("wall", "cpu")
T = TypeVar("T")
Json = dict[str, Any]


def made_vectors(count: int, dim: int, seed: int = 1337) -> Vectors:
    chance = np.random.default_rng(seed)
    centres = chance.normal(size=(CENTRES, dim)).astype(np.float32)
    vectors = centres[chance.integers(CENTRES, size=count)]
    vectors += chance.normal(scale=0.7, size=(count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def made_row(number: int, vector: Vectors) -> dict[str, Any]:
    entry = MemoryState(
        memory=to_json(made_memory(number)),
        seq=number,
        anchor="00" * 8,
        written=NOW,
        novelty=0.5,
        usage=number % 7,
    )
    return row_of(entry, vector, 0)


def made_memory(number: int) -> Memory:
    fields = {
        "id": f"0190a7f2-0000-7000-8000-{number:012d}",
        "text": f"Person {number} moved to city {number % 997} in the year {1900 + number % 120}, and liked it there.",
        "conversation": f"c{number % 500}",
        "time": NOW + number,
        "context": {"source": "chat", "turn": number % 40},
    }
    return parse_memory(fields, namespace="bench", now=NOW, max_text_bytes=10_000)


def timed(what: str, action: Callable[[], T]) -> tuple[Json, T]:
    """`{wall, cpu}` seconds: on a machine that others use, the second says more."""
    wall, cpu = time.perf_counter(), time.process_time()
    answer = action()
    spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    print(f"{what}: {spent['wall']:.2f} s, {spent['cpu']:.2f} s of CPU", file=sys.stderr, flush=True)
    return spent, answer


def fill(shard: Shard, vectors: Vectors, start: int, end: int) -> None:
    """By import, which asks for no novelty; the records are as large as those of puts."""
    for at in range(start, end, BATCH):
        chosen = range(at, min(end, at + BATCH))
        shard.memories.import_rows(
            [made_row(number, vectors[number]) for number in chosen], op_id=f"take-{at}", now=NOW
        )


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
        shard.search.find("bench", vectors[0], 10)
        return shard

    shard = Shard(folder, number=0, dim=dim, config=config)
    timed("fill", lambda: fill(shard, vectors, 0, memories - tail))
    timed("background build", index_of(shard).settle)
    capture_s, captured = timed("capture", shard.core.capture)
    write_s, made = timed("write", lambda: shard.core.snapshots.make(lambda: captured))
    assert made is not None
    fill(shard, vectors, memories - tail, memories)
    expected = [each["memory"]["id"] for each in shard.search.find("bench", vectors[1], 10)]
    structure = index_of(shard).kind
    shard.close()

    spent: dict[str, list[Json]] = {"build": [], "snapshot": [], "log": []}
    for _ in range(repeat):
        spent["build"].append(timed("build", lambda: build(vectors, plan))[0])
        seconds, again = timed("snapshot", opened)
        assert [each["memory"]["id"] for each in again.search.find("bench", vectors[1], 10)] == expected
        spent["snapshot"].append(seconds)
        again.close()
    shutil.rmtree(folder / "snapshots")
    seconds, again = timed("log, index still flat", opened)
    spent["log"].append(seconds)
    again.close()
    least = {
        name: {unit: min(each[unit] for each in found) for unit in UNITS} for name, found in spent.items()
    }
    return {
        "memories": memories,
        "dim": dim,
        "tail": tail,
        "index": structure,
        "seconds": least,
        "all_seconds": spent,
        "snapshot_to_build": {unit: least["snapshot"][unit] / least["build"][unit] for unit in UNITS},
        "snapshot_to_log": {unit: least["snapshot"][unit] / least["log"][unit] for unit in UNITS},
        "capture": capture_s,
        "write": write_s,
    }


def index_of(shard: Shard) -> VectorIndex:
    return shard.core.view.spaces["bench"].index


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
