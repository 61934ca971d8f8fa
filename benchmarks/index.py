"""The vector index against bare Faiss: recall, latency, changes under load, build time; growth to a million vectors.

    python benchmarks/index.py [--n 100000] [--kinds ivf,hnsw] [--growth 10000,100000,1000000] [--vectors FILE.npy]
                               [--out runs/index.json]

Vectors are synthetic unless FILE gives others (float32 `[n, 384]`, unit rows): themes, topics within themes, and a few
directions within topics, so that they are clustered and of low dimension locally, as sentence embeddings are. Queries
lie as far from stored vectors as questions do from their answers (cosine 0.7). Exact search by Faiss is the truth; bare
Faiss is the same structure with the same parameters, called directly, in alternation. A plot of growth is
saved beside the report. A whole shard is measured by `shard.py`.
"""

import argparse
import ctypes
import gc
import os
import platform
import sys
import threading
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.files import write_json
from stores.index.faiss_structures import Tree, asking, recall_of
from stores.index.vector_index import IndexPlan, VectorIndex
from stores.index.vectors import Vectors
from stores.locks import ReadWriteLock

DIM = 384
K = 10
QUERIES = 200
PASSES = 6
LOAD_S = 4.0
PAUSE_S = 0.002  # between two writes: a durable one waits for its fsync


def textlike(n: int, seed: int = 0) -> Vectors:
    """Unit rows `[n, 384]`: mean + theme + topic + 24 directions of the topic + noise."""
    rng = np.random.default_rng(seed)
    themes, topics, directions, pool = 60, max(300, n // 50), 24, 200

    def spread(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32) / np.float32(np.sqrt(DIM))

    sizes = 1.0 / np.arange(1, topics + 1) ** 0.6
    topic = rng.choice(topics, n, p=sizes / sizes.sum())
    centres = (
        0.35 * spread(1, DIM)
        + spread(themes, DIM)[rng.integers(0, themes, topics)]
        + 0.6 * spread(topics, DIM)
    )
    basis, used = spread(pool, DIM), rng.integers(0, pool, (topics, directions))
    rows = np.empty((n, DIM), np.float32)
    for start in range(0, n, 4096):
        here = topic[start : start + 4096]
        part = rng.normal(size=(len(here), directions)).astype(np.float32) / np.float32(np.sqrt(directions))
        rows[start : start + 4096] = (
            centres[here] + np.einsum("nk,nkd->nd", part, basis[used[here]]) + 0.3 * spread(len(here), DIM)
        )
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def filled(vectors: Vectors, plan: IndexPlan) -> tuple[VectorIndex, dict[str, float]]:
    """An index that has grown to its structure, and what that took: seconds, and bytes a row beside nothing."""
    before = rss()
    index = VectorIndex(DIM, plan, live=False)
    started = time.perf_counter()
    for start in range(0, len(vectors), 10_000):
        rows = range(start, min(start + 10_000, len(vectors)))
        index.add([*rows], vectors[start : start + 10_000])
    added = time.perf_counter()
    index.live = True
    index.grow()
    index.settle()
    built = time.perf_counter()
    cost = {
        "add_s": added - started,
        "build_s": built - added,
        "bytes_a_row": (rss() - before) / len(vectors),
    }
    return index, cost


def measure(index: VectorIndex, vectors: Vectors, queries: Vectors, truth: np.ndarray) -> dict[str, Any]:
    ours: list[float] = []
    bare: list[float] = []
    calls = [(ours, lambda query: index.search(query, K)), (bare, lambda query: direct(index, query))]
    for turn in range(PASSES):
        for query in queries:
            for seconds, call in (
                calls if turn % 2 else reversed(calls)
            ):  # the second finds its lists in the cache
                seconds.append(timed(lambda call=call, query=query: call(query[None])))
    found = np.concatenate([index.search(query[None], K)[1] for query in queries])
    return {
        "kind": index.kind,
        **tuning(index),
        "recall@10": recall_of(found, truth),
        "p50_ms": p(ours, 50),
        "p99_ms": p(ours, 99),
        "bare_p50_ms": p(bare, 50),
        "ratio": p(ours, 50) / p(bare, 50),
        "among": [among(index, vectors, queries[:20], share) for share in (0.001, 0.01, 0.1, 0.5)],
    }


def direct(index: VectorIndex, query: Vectors) -> Any:
    """Faiss itself, without anything of ours."""
    active: Any = index._active
    if index.kind == "ivf":
        return active._index.search(query, K, params=faiss.SearchParametersIVF(nprobe=active.probes))
    if index.kind == "hnsw":
        return active._index.search(query, K, params=faiss.SearchParametersHNSW(efSearch=active.effort))
    return active._index.search(query, K)


def tuning(index: VectorIndex) -> dict[str, int]:
    active: Any = index._active
    if isinstance(active, Tree):
        return {"lists": active.lists, "probes": active.probes}
    return {"effort": active.effort} if index.kind == "hnsw" else {}


def among(index: VectorIndex, vectors: Vectors, queries: Vectors, share: float) -> dict[str, float]:
    rows = np.random.default_rng(3).choice(len(vectors), max(K, int(share * len(vectors))), replace=False)
    seconds, hits = [], []
    for query in queries:
        started = time.perf_counter()
        found = index.search(query[None], K, rows.tolist())[1][0]
        seconds.append(time.perf_counter() - started)
        best = rows[np.argsort(-(vectors[rows] @ query))[:K]]
        hits.append(len(np.intersect1d(found, best)) / K)
    return {"share": share, "recall@10": float(np.mean(hits)), "p50_ms": p(seconds, 50)}


def under_load(index: VectorIndex, vectors: Vectors, queries: Vectors) -> dict[str, Any]:
    """One writer adds a row and removes one in turn, two searchers ask, through the lock of a shard."""
    lock, stop = ReadWriteLock(), threading.Event()
    searched: list[float] = []

    def search() -> None:
        place = 0
        while not stop.is_set():
            started = time.perf_counter()
            with lock.read():
                index.search(queries[place % QUERIES][None], K)
            searched.append(time.perf_counter() - started)
            place += 1

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    adding, removing = [], []
    row, ends = 10 * len(vectors), time.perf_counter() + LOAD_S
    while time.perf_counter() < ends:
        adding.append(
            timed(lambda row=row: _write(lock, lambda: index.add([row], vectors[row % 1000][None])))
        )
        removing.append(timed(lambda row=row: _write(lock, lambda: index.remove([row]))))
        row += 1
        time.sleep(PAUSE_S)
    stop.set()
    for thread in threads:
        thread.join()
    return {
        name: {"a_second": len(seconds) / LOAD_S, "p50_ms": p(seconds, 50), "p99_ms": p(seconds, 99)}
        for name, seconds in (("add", adding), ("remove", removing), ("search", searched))
    }


def _write(lock: ReadWriteLock, change: Any) -> None:
    with lock.write():
        change()


def growth(sizes: list[int]) -> list[dict[str, Any]]:
    points = []
    for size in sizes:
        vectors = textlike(size)
        queries = asking(vectors[np.random.default_rng(1).choice(size, QUERIES)], seed=7)
        index, cost = filled(vectors, IndexPlan())
        exact = exact_rows(vectors, queries)
        recall = recall_of(np.concatenate([index.search(q[None], K)[1] for q in queries]), exact)
        seconds = [timed(lambda q=q, i=index: i.search(q[None], K)) for _ in range(PASSES) for q in queries]
        points.append(
            {
                "rows": size,
                "kind": index.kind,
                **tuning(index),
                **cost,
                "recall@10": recall,
                "p50_ms": p(seconds, 50),
            }
        )
        print(points[-1], flush=True)
    return points


def exact_rows(vectors: Vectors, queries: Vectors) -> np.ndarray:
    return faiss.knn(queries, vectors, K, metric=faiss.METRIC_INNER_PRODUCT)[1]


def timed(call: Any) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def p(seconds: list[float], percent: float) -> float:
    return 1e3 * float(np.percentile(seconds, percent))


def rss() -> int:
    """Bytes of memory in use; what the allocator only keeps for later is given back first."""
    gc.collect()
    if platform.system() == "Linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def plot(points: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
    sizes = [point["rows"] for point in points]
    left.loglog(sizes, [point["p50_ms"] for point in points], marker="o")
    left.set(xlabel="memories", ylabel="search p50, ms", title="latency")
    right.semilogx(sizes, [point["bytes_a_row"] for point in points], marker="o")
    right.set(xlabel="memories", ylabel="bytes a memory, index", title="memory", ylim=(0, None))
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def table(report: dict[str, Any]) -> str:
    lines = [
        "| index | rows | recall@10 | p50 ms | bare Faiss ms | ratio | build s | under load: add, search p50 ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["kinds"]:
        add, search = row["load"]["add"], row["load"]["search"]
        load = f"{add['p50_ms']:.2f}, {search['p50_ms']:.2f}"
        bare = f"{row['bare_p50_ms']:.2f} | {row['ratio']:.2f}"
        lines.append(
            f"| {row['kind']} | {report['n']:,} | {row['recall@10']:.3f} | {row['p50_ms']:.2f} | {bare} "
            f"| {row['build_s']:.1f} | {load} |"
        )
    for point in report["growth"]:
        lines.append(
            f"| growth: {point['kind']} | {point['rows']:,} | {point['recall@10']:.3f} | {point['p50_ms']:.2f} | | "
            f"| {point['build_s']:.1f} | {point['bytes_a_row']:.0f} bytes a row |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--kinds", default="flat,ivf")
    parser.add_argument("--growth", default="")
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/index.json"))
    args = parser.parse_args()
    kinds = []
    if args.kinds:
        vectors = np.load(args.vectors)[: args.n] if args.vectors else textlike(args.n)
        args.n = len(vectors)
        queries = asking(vectors[np.random.default_rng(1).choice(args.n, QUERIES)], seed=7)
        truth = exact_rows(vectors, queries)
        for kind in args.kinds.split(","):
            index, cost = filled(vectors, IndexPlan(kind=kind, flat_max=1000))
            row = {
                **measure(index, vectors, queries, truth),
                **cost,
                "load": under_load(index, vectors, queries),
            }
            kinds.append(row)
            print(row, flush=True)
            del index
    report = {
        "machine": {"cores": os.cpu_count(), "arch": platform.machine(), "faiss": faiss.__version__},
        "vectors": str(args.vectors.name) if args.vectors else "textlike",
        "n": args.n,
        "kinds": kinds,
        "growth": growth([int(size) for size in args.growth.split(",") if size]),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.out, report)
    if report["growth"]:
        plot(report["growth"], args.out.with_suffix(".png"))
    print(table(report))


if __name__ == "__main__":
    main()
