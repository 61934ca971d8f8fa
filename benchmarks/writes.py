"""Durable writes: a shard against raw LMDB with the same batches and fsync, and many writers against one
fsync a write.

    python benchmarks/writes.py [--folder FOLDER] [--out writes.json] [--repeats 5]

Times are medians of one run on one disk; the parts alternate batch by batch, so that a disk that slows down slows all
of them. `raw` puts prepared bytes into LMDB, one transaction with one fsync a batch, and does nothing else; `raw
json` first serialises the memories, which is the least that any writer of memories does. `log` stages and commits
records (JSON, salted digest, chain, CRC, result for retries), `shard` is the whole write: novelty, near duplicates,
write gate, log, index.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as Ray gives a shard's actor; before NumPy is imported

import faiss
import lmdb
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import command, hardware
from common.config import StoreConfig
from common.files import write_json
from stores.log.base import Operation
from stores.log.open import open_log
from stores.log.record import Op
from stores.memory.memory import Memory, parse_memory, to_json
from stores.shard.shard import Shard
from stores.writes.batch import MemoryBatch

DIM = 384
NOW = 1_700_000_000.0
SIZES = (1, 16, 64, 256, 1024)
WORDS = "Ada Bo Cy moved works lives in at to Lisbon Oslo Rome library cafe often never since with".split()

Json = dict[str, Any]
Item = tuple[Memory, np.ndarray]
Spent = tuple[float, float]  # seconds: clock, CPU


def main() -> None:
    parser = argparse.ArgumentParser(description="Durable writes against raw LMDB.")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the temporary folder")
    parser.add_argument("--out", type=Path, default=Path("writes.json"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--writers", type=int, default=64)
    parser.add_argument("--each", type=int, default=30, help="writes of each concurrent writer")
    options = parser.parse_args()
    faiss.omp_set_num_threads(1)  # as in a shard's actor
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        report = {
            "command": command(),
            "hardware": hardware(),
            "batches": [batches(Path(folder), size, options.repeats) for size in SIZES],
            "writers": [
                writers(Path(folder), options.writers, options.each, options.repeats, shared)
                for shared in (True, False)
            ],
        }
    write_json(options.out, report)
    show(report)


def put(shard: Shard, items: Sequence[tuple[Memory, Any]], op_id: str) -> None:
    shard.memories.put(MemoryBatch.of(items), op_id=op_id, now=NOW)


def batches(folder: Path, size: int, repeats: int) -> Json:
    """Milliseconds of a write of `size` memories with one fsync, and throughput relative to raw LMDB."""
    raw, raw_json = Raw(folder / f"raw-{size}"), Raw(folder / f"json-{size}")
    log, shard = Logged(folder / f"log-{size}"), open_shard(folder / f"shard-{size}")
    times: dict[str, list[Spent]] = {"raw": [], "raw_json": [], "log": [], "shard": []}
    for number in range(repeats * max(3, min(20, 1024 // size))):
        items, op_id = make_items(size, number), f"put-{number}"
        ready = [_bytes(item) for item in items]
        times["raw"].append(spent(raw.write, ready))
        times["raw_json"].append(spent(lambda made: raw_json.write([*map(_bytes, made)]), items))
        times["log"].append(spent(log.write, items, op_id))
        times["shard"].append(spent(put, shard, items, op_id))
    for part in (raw, raw_json, log, shard):
        part.close()
    median = {name: statistics.median(wall for wall, _ in found) for name, found in times.items()}
    cpu = {name: statistics.median(cpu for _, cpu in found) for name, found in times.items()}
    return {
        "memories": size,
        "bytes": sum(map(len, ready)),
        "ms": {name: round(1e3 * value, 3) for name, value in median.items()},
        "cpu_us_a_memory": {name: round(1e6 * value / size, 1) for name, value in cpu.items()},
        "to_raw": {name: round(median["raw"] / value, 3) for name, value in median.items()},
        "to_raw_json": {name: round(median["raw_json"] / value, 3) for name, value in median.items()},
    }


def writers(folder: Path, threads: int, each: int, repeats: int, shared: bool) -> Json:
    """Writes of one memory by many threads: shared batches against one fsync a write, in turns. With
    `shared` all write to one namespace, else each to its own."""
    rates: dict[str, list[float]] = {"alone": [], "grouped": []}
    cpu: dict[str, list[float]] = {"alone": [], "grouped": []}
    for repeat in range(repeats):
        for name, operations in (("alone", 1), ("grouped", 256)):
            shard = open_shard(folder / f"{name}-{repeat}-{shared}", batch_operations=operations)
            spaces = ["bench"] * threads if shared else [f"bench-{thread}" for thread in range(threads)]
            wall, busy = crowd(shard, spaces, each)
            rates[name].append(threads * each / wall)
            cpu[name].append(1e6 * busy / (threads * each))
            shard.close()
    median = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "threads": threads,
        "namespaces": 1 if shared else threads,
        "cpu_us_a_write": {name: round(statistics.median(values)) for name, values in cpu.items()},
        "writes_a_second": {name: round(value) for name, value in median.items()},
        "ratio": round(median["grouped"] / median["alone"], 2),
    }


def crowd(shard: Shard, spaces: Sequence[str], each: int) -> Spent:
    """Time until every thread, one for each namespace named, has written its memories, one a call."""
    items = [make_items(each, thread, space) for thread, space in enumerate(spaces)]
    start = threading.Barrier(len(items) + 1)

    def write(thread: int) -> None:
        start.wait()
        for number, item in enumerate(items[thread]):
            shard.memories.put(MemoryBatch.of([item]), op_id=f"{thread}-{number}", now=NOW)

    running = [threading.Thread(target=write, args=(thread,)) for thread in range(len(items))]
    for thread in running:
        thread.start()
    start.wait()
    return spent(_join, running)


class Raw:
    """LMDB and nothing else."""

    def __init__(self, path: Path) -> None:
        self._env = lmdb.open(str(path), map_size=8 << 30, lib_version=0)
        self._next = 0

    def write(self, values: Sequence[bytes]) -> None:
        rows = [((self._next + i).to_bytes(8, "big"), value) for i, value in enumerate(values)]
        with self._env.begin(write=True) as txn:
            txn.cursor().putmulti(rows, append=True)
        self._next += len(rows)

    def close(self) -> None:
        self._env.close()


class Logged:
    """The log alone."""

    def __init__(self, path: Path) -> None:
        self._log = open_log(path, config=StoreConfig(), identity={"shard": 0, "dim": DIM})

    def write(self, items: Sequence[Item], op_id: str) -> None:
        drafts = [
            (Op.PUT, {"memory": to_json(memory), "novelty": 1.0}, vector.tobytes())
            for memory, vector in items
        ]
        staged = self._log.stage(op_id, drafts, now=NOW)
        self._log.commit([Operation(op_id=op_id, request="", records=staged, result=None)])

    def close(self) -> None:
        self._log.close()


def open_shard(path: Path, **options: Any) -> Shard:
    return Shard(path, number=0, dim=DIM, config=StoreConfig(**options))


def make_items(count: int, seed: int, namespace: str = "bench") -> list[Item]:
    """Memories of about 20 words with random unit vectors."""
    rng = np.random.default_rng([seed, count])
    vectors = rng.normal(size=(count, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    texts = [" ".join(rng.choice(WORDS, 20)) for _ in range(count)]
    return [
        (parse_memory({"text": text}, namespace=namespace, now=NOW, max_text_bytes=10_000), vector)
        for text, vector in zip(texts, vectors, strict=True)
    ]


def _join(threads: Sequence[threading.Thread]) -> None:
    for thread in threads:
        thread.join()


def spent(work: Callable[..., Any], *args: Any) -> Spent:
    """Seconds on the clock, and of this process's CPU time: the second hardly feels other processes."""
    wall, cpu = time.perf_counter(), time.process_time()
    work(*args)
    return time.perf_counter() - wall, time.process_time() - cpu


def show(report: Json) -> None:
    print(f"{report['hardware']}\n\nThroughput relative to raw LMDB (and to raw json), ms a batch")
    print(
        f"{'memories':>9} {'raw ms':>9} {'json ms':>9} {'log ms':>9} {'shard ms':>9} {'log':>13} {'shard':>13}"
    )
    for row in report["batches"]:
        ms, to_raw, to_json_ = row["ms"], row["to_raw"], row["to_raw_json"]
        print(
            f"{row['memories']:>9} {ms['raw']:>9} {ms['raw_json']:>9} {ms['log']:>9} {ms['shard']:>9} "
            f"{to_raw['log']:>6} ({to_json_['log']:>5}) {to_raw['shard']:>5} ({to_json_['shard']:>5})"
            f"   CPU us a memory {row['cpu_us_a_memory']}"
        )
    for found in report["writers"]:
        print(
            f"\n{found['threads']} writers, {found['namespaces']} namespaces, writes a second: "
            f"{found['writes_a_second']}, ratio {found['ratio']}; CPU us a write {found['cpu_us_a_write']}"
        )


def _bytes(item: Item) -> bytes:
    memory, vector = item
    return json.dumps(to_json(memory), ensure_ascii=False).encode() + vector.tobytes()


if __name__ == "__main__":
    main()
