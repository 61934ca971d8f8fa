"""A whole shard's search against bare Faiss: recall, latency, and both while memories are written and erased.

    python benchmarks/shard.py [--memories 100000] [--load 10] [--vectors FILE.npy] [--out runs/shard.json]

The shard holds memories with texts, both indexes, statistics, and the log on disk; it is filled by import. Vectors and
questions are those of `index.py`, or FILE gives the vectors. Bare Faiss is the shard's own structure with its own
parameters, called directly, in alternation; exact search is the truth. Latencies are wall-clock times, with the
thread's CPU time beside them, which other work on the machine affects less. Under load two threads
search while one writes memories one by one, and from time to time erases ten, which rewrites the log's files.
"""

import argparse
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import faiss
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.index import DIM, PASSES, QUERIES, K, direct, exact_rows, p, rss, textlike, timed, tuning
from common.config import StoreConfig
from common.files import write_json
from stores.index.faiss_structures import asking
from stores.index.vectors import Vectors
from stores.memory.memory import Memory, parse_memory, to_json
from stores.shard.shard import Shard
from stores.view.memory_state import MemoryState, row_of
from stores.writes.batch import MemoryBatch

Json = dict[str, Any]
NOW = 1_700_000_000.0
BATCH = 1_000
ERASED = 10  # memories of one erasure
WRITES_AN_ERASURE = 200
SPACE = "bench"
WORDS = 20_000
QUESTION = "w3 w40 w170 w1300"
ONE_IN_A_THOUSAND = {"field": "context.turn", "op": "eq", "value": 7}


def made(number: int) -> Memory:
    """Its words are as common as those of a language: the n-th in n^-1.3 of all places."""
    words = np.random.default_rng(number).zipf(1.3, 12) % WORDS
    fields = {
        "id": f"0190a7f2-0000-7000-8000-{number:012d}",
        "text": " ".join(f"w{word}" for word in words),
        "conversation": f"c{number % 500}",
        "time": NOW + number,
        "context": {"source": "chat", "turn": number % 1000},
    }
    return parse_memory(fields, namespace=SPACE, now=NOW, max_text_bytes=10_000)


def fill(shard: Shard, vectors: Vectors) -> None:
    """By import, which asks for no novelty; the records are as large as those of puts."""
    for start in range(0, len(vectors), BATCH):
        rows = []
        for number in range(start, min(start + BATCH, len(vectors))):
            entry = MemoryState(
                memory=to_json(made(number)), seq=1, anchor="00" * 8, written=NOW, novelty=0.5
            )
            rows.append(row_of(entry, vectors[number], 0))
        shard.memories.import_rows(rows, op_id=f"fill-{start}", now=NOW)


def idle(shard: Shard, queries: Vectors) -> Json:
    """Medians of each way to search, and the ratio to bare Faiss, which is asked in alternation."""
    index = shard.core.view.spaces[SPACE].index
    ours: list[float] = []
    bare: list[float] = []
    cpu: dict[int, list[float]] = {id(ours): [], id(bare): []}
    calls: list[tuple[list[float], Callable[[Vectors], Any]]] = [
        (ours, lambda query: shard.search.find(SPACE, query, K, retrieval="flat")),
        (bare, lambda query: direct(index, query[None])),
    ]
    for turn in range(PASSES):
        for query in queries:
            for seconds, call in calls if turn % 2 else reversed(calls):
                before = time.thread_time()
                seconds.append(timed(lambda call=call, query=query: call(query)))
                cpu[id(seconds)].append(time.thread_time() - before)
    full = [timed(lambda q=q: shard.search.find(SPACE, q, K, query=QUESTION, now=NOW)) for q in queries]
    filtered = [
        timed(lambda q=q: shard.search.find(SPACE, q, K, retrieval="flat", where=ONE_IN_A_THOUSAND))
        for q in queries[:10]
    ]
    return {
        "flat_p50_ms": p(ours, 50),
        "flat_p99_ms": p(ours, 99),
        "bare_p50_ms": p(bare, 50),
        "ratio": p(ours, 50) / p(bare, 50),
        "flat_cpu_p50_ms": p(cpu[id(ours)], 50),
        "bare_cpu_p50_ms": p(cpu[id(bare)], 50),
        "full_p50_ms": p(full, 50),
        "filtered_p50_ms": p(filtered, 50),
    }


def found(shard: Shard, query: Vectors) -> list[int]:
    """Numbers of the memories that a search finds."""
    hits = shard.search.find(SPACE, query, K, retrieval="flat")
    return [int(hit["memory"]["id"].rpartition("-")[2]) for hit in hits]


def under_load(shard: Shard, vectors: Vectors, queries: Vectors, seconds: float) -> Json:
    """What searches, writes and erasures take while all three happen."""
    stop = threading.Event()
    took: dict[str, list[float]] = {"search": [], "put": [], "forget": []}

    def search() -> None:
        place = 0
        while not stop.is_set():
            query = queries[place % len(queries)]
            took["search"].append(
                timed(lambda query=query: shard.search.find(SPACE, query, K, retrieval="flat"))
            )
            place += 1

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    started, number = time.perf_counter(), len(vectors)
    while time.perf_counter() < started + seconds or not took["forget"]:
        for _ in range(WRITES_AN_ERASURE):
            item = made(number), vectors[number % len(vectors)]
            took["put"].append(
                timed(lambda item=item: shard.memories.put(MemoryBatch.of([item]), op_id=item[0].id, now=NOW))
            )
            number += 1
        ids = [made(place).id for place in range(number - ERASED, number)]
        took["forget"].append(
            timed(lambda ids=ids: shard.erasure.forget(SPACE, ids=ids, op_id=f"forget {ids[0]}", now=NOW))
        )
    stop.set()
    for thread in threads:
        thread.join()
    lasted = time.perf_counter() - started
    return {
        name: {
            "count": len(each),
            "a_second": len(each) / lasted,
            "p50_ms": p(each, 50),
            "p99_ms": p(each, 99),
        }
        for name, each in took.items()
    }


def measure(vectors: Vectors, load_s: float) -> Json:
    size = len(vectors)
    queries = asking(vectors[np.random.default_rng(1).choice(size, QUERIES)], seed=7)
    truth = exact_rows(vectors, queries)
    with TemporaryDirectory() as scratch:
        before = rss()
        shard = Shard(Path(scratch), number=0, dim=DIM, config=StoreConfig(snapshot_every=0))
        filled_s = timed(lambda: fill(shard, vectors))
        index = shard.core.view.spaces[SPACE].index
        index.settle()
        shard.search.find(SPACE, queries[0], K, query=QUESTION)  # takes the texts in
        used = (rss() - before) / size
        hits = [
            len(np.intersect1d(found(shard, q), best)) / K for q, best in zip(queries, truth, strict=True)
        ]
        report = {
            "kind": index.kind,
            **tuning(index),
            "recall@10": float(np.mean(hits)),
            "bytes_a_memory": used,
            "filled_s": filled_s,
            "idle": idle(shard, queries),
            "load": under_load(shard, vectors, queries, load_s),
        }
        shard.close()
    return report


def table(size: int, report: Json) -> str:
    idle, load = report["idle"], report["load"]
    rows = [
        ("recall@10", f"{report['recall@10']:.3f}"),
        (
            "flat, p50 against bare Faiss",
            f"{idle['ratio']:.2f} x ({idle['flat_p50_ms']:.3f} ms, {idle['bare_p50_ms']:.3f} ms)",
        ),
        (
            "the same in CPU time of the thread",
            f"{idle['flat_cpu_p50_ms'] / idle['bare_cpu_p50_ms']:.2f} x "
            f"({idle['flat_cpu_p50_ms']:.3f} ms, {idle['bare_cpu_p50_ms']:.3f} ms)",
        ),
        ("full, p50 ms", f"{idle['full_p50_ms']:.2f}"),
        ("flat, filter that admits 1 of 1,000, p50 ms", f"{idle['filtered_p50_ms']:.2f}"),
        *(
            (f"under load: {name}, p50 / p99 ms", f"{load[name]['p50_ms']:.2f} / {load[name]['p99_ms']:.2f}")
            for name in ("search", "put", "forget")
        ),
        ("bytes a memory", f"{report['bytes_a_memory']:,.0f}"),
    ]
    lines = [f"| {size:,} memories, {report['kind']} | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--memories", type=int, default=100_000)
    parser.add_argument("--load", type=float, default=10.0, help="seconds")
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/shard.json"))
    args = parser.parse_args()
    machine = {"cores": os.cpu_count(), "arch": platform.machine(), "faiss": faiss.__version__}
    vectors = np.load(args.vectors)[: args.memories] if args.vectors else textlike(args.memories)
    report = measure(vectors, args.load)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    given = args.vectors.name if args.vectors else "textlike"
    write_json(args.out, {"machine": machine, "memories": len(vectors), "vectors": given, **report})
    print(table(len(vectors), report))


if __name__ == "__main__":
    main()
