"""Retrieval quality: flat cosine against the full stack.

    python benchmarks/retrieval.py [--letta FOLDER] [--locomo FILE] [--out runs/retrieval.json]

FOLDER holds core_memory_read.jsonl and core_memory_update.jsonl (letta-ai/letta-evals, Apache-2.0): the facts of all
sets share one namespace, a question's evidence is its supporting facts. FILE is locomo10.json (LoCoMo, CC BY-NC 4.0:
evaluation only): a conversation is a namespace, a turn a memory, questions without evidence are left out. The sets of
our own (`retrieval_sets.py`: the newer of two statements, verbatim texts, identifiers, scripts) are always measured.

Each question is asked whole and as a partial cue: half of its words, drawn by seed. recall@k is the share of a
question's evidence among the first k results, MRR the mean of 1 / place of the first. Both go through a real shard,
opened in a temporary folder, and the project's embedder. The constants of `stores/ranking/ranking.py` were chosen on
these same questions, so there is no held-out half: A and B (questions, conversations of even and odd number) only show
that the gain does not depend on a few of them. The interval is a paired bootstrap, 95%, of full minus flat.
"""

import argparse
import json
import platform
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.public_sets import letta_rows, locomo_turns, named_turns
from benchmarks.retrieval_sets import all_sets
from common.config import StoreConfig
from common.files import write_json
from models.text.embed import Embedder
from stores.index.vectors import Vectors
from stores.memory.memory import parse_memory
from stores.shard.shard import Shard
from stores.writes.batch import MemoryBatch

DEPTHS = (1, 3, 10)
NOW = 1_700_000_000.0


@dataclass(frozen=True)
class Question:
    namespace: str
    text: str
    evidence: frozenset[str]
    half: str


@dataclass(frozen=True)
class Bench:
    """`memories`: namespace -> id -> (text, time)."""

    name: str
    memories: dict[str, dict[str, tuple[str, float]]]
    questions: list[Question]


Search = Callable[[Shard, str, Vectors, str], list[str]]


def by(retrieval: str) -> Search:
    def search(shard: Shard, namespace: str, vector: Vectors, query: str) -> list[str]:
        hits = shard.search.find(namespace, vector, max(DEPTHS), query=query, retrieval=retrieval, now=NOW)
        return [hit["memory"]["id"] for hit in hits]

    return search


SEARCHES: dict[str, Search] = {"flat": by("flat"), "full": by("full")}
"""What is compared; a further way to recall, such as completion of partial cues, is one more entry."""


def read_letta(folder: Path) -> Bench:
    ids: dict[str, str] = {}
    questions = []
    for row in letta_rows(folder):
        for fact in row.facts:
            ids.setdefault(fact, f"f{len(ids):04}")
        evidence = frozenset(ids[row.facts[i]] for i in row.supporting)
        if evidence:
            questions.append(Question("facts", row.question, evidence, "AB"[len(questions) % 2]))
    memories = {"facts": {id: (fact, NOW - 30 * 86_400) for fact, id in ids.items()}}
    return Bench("letta_core_memory", memories, questions)


def read_locomo(file: Path) -> Bench:
    memories: dict[str, dict[str, tuple[str, float]]] = {}
    questions = []
    for number, sample in enumerate(json.loads(file.read_text())):
        namespace = f"conversation-{number}"
        turns = memories[namespace] = {
            turn.id: (f"{turn.speaker}: {turn.text}", turn.held.timestamp())
            for turn in locomo_turns(sample["conversation"])
        }
        for asked in sample["qa"]:
            evidence = frozenset(turns.keys() & named_turns(asked["evidence"]))
            if evidence:
                questions.append(Question(namespace, asked["question"], evidence, "AB"[number % 2]))
    return Bench("locomo", memories, questions)


def own_sets() -> list[Bench]:
    return [
        Bench(name, {"own": memories}, [
            Question("own", question, frozenset([id]), "AB"[i % 2]) for i, (question, id) in enumerate(asked)
        ])
        for name, (memories, asked) in all_sets(1337, NOW)
    ]  # fmt: skip


def partial(text: str, seed: int) -> str:
    """Half of the words, in their order."""
    words = text.split()
    kept = random.Random(seed).sample(range(len(words)), max(1, len(words) // 2))
    return " ".join(words[place] for place in sorted(kept))


def fill(shard: Shard, bench: Bench, embedder: Embedder) -> None:
    for namespace, memories in bench.memories.items():
        vectors = embedder.encode([text for text, _ in memories.values()])
        items = [
            parse_memory(
                {"id": id, "text": text, "time": time}, namespace=namespace, now=NOW, max_text_bytes=1 << 20
            )
            for id, (text, time) in memories.items()
        ]
        shard.memories.put(
            MemoryBatch.of([*zip(items, vectors, strict=True)]), op_id=f"{bench.name}/{namespace}", now=NOW
        )


def measure(
    shard: Shard, questions: Sequence[Question], cues: Sequence[str], vectors: Vectors
) -> dict[str, Any]:
    rows: dict[str, list[list[float]]] = {}
    seconds: dict[str, list[float]] = {}
    for name, search in SEARCHES.items():
        for question, cue, vector in zip(questions, cues, vectors, strict=True):
            started = time.perf_counter()
            found = search(shard, question.namespace, vector, cue)
            seconds.setdefault(name, []).append(time.perf_counter() - started)
            rows.setdefault(name, []).append(score(found, question.evidence))
    halves = np.array([question.half for question in questions])
    result: dict[str, Any] = {}
    for name, scored in rows.items():
        table = np.array(scored)
        result[name] = {
            **_means(table),
            **{f"half {half}": _means(table[halves == half]) for half in "AB"},
            "search_ms_p50": 1e3 * float(np.median(seconds[name])),
        }
    result["full - flat"] = gain(np.array(rows["full"]) - np.array(rows["flat"]))
    return result


def score(found: Sequence[str], evidence: frozenset[str]) -> list[float]:
    """recall@1, @3, @10, and the reciprocal of the first hit's place."""
    recalls = [len(evidence & {*found[:depth]}) / len(evidence) for depth in DEPTHS]
    first = next((1.0 / place for place, id in enumerate(found, 1) if id in evidence), 0.0)
    return [*recalls, first]


NAMES = [*(f"recall@{depth}" for depth in DEPTHS), "mrr"]


def _means(table: np.ndarray) -> dict[str, float]:
    return dict(zip(NAMES, table.mean(axis=0).round(4).tolist(), strict=True))


def gain(differences: np.ndarray) -> dict[str, list[float]]:
    rng = np.random.default_rng(1337)
    drawn = rng.integers(0, len(differences), (1000, len(differences)))
    low, high = np.quantile(differences[drawn].mean(axis=1), [0.025, 0.975], axis=0)
    mean = differences.mean(axis=0)
    return {
        name: [round(float(x), 4) for x in row] for name, *row in zip(NAMES, mean, low, high, strict=True)
    }


def run(bench: Bench, embedder: Embedder) -> dict[str, Any]:
    with TemporaryDirectory() as scratch:
        shard = Shard(Path(scratch), number=0, dim=embedder.dim, config=StoreConfig(map_size_bytes=1 << 30))
        try:
            fill(shard, bench, embedder)
            whole = [question.text for question in bench.questions]
            half = [partial(text, seed) for seed, text in enumerate(whole)]
            return {
                "memories": sum(map(len, bench.memories.values())),
                "questions": len(whole),
                "whole": measure(shard, bench.questions, whole, embedder.encode(whole)),
                "partial": measure(shard, bench.questions, half, embedder.encode(half)),
            }
        finally:
            shard.close()


def table(report: Mapping[str, Any]) -> str:
    lines = [
        f"| data | cue | retrieval | {' | '.join(NAMES)} | half B mrr | p50 ms |",
        "|---|---|---|" + "---|" * (len(NAMES) + 2),
    ]
    for name, bench in report["benches"].items():
        for cue in ("whole", "partial"):
            for search in SEARCHES:
                row = bench[cue][search]
                cells = [f"{row[key]:.3f}" for key in NAMES]
                tail = f"{row['half B']['mrr']:.3f} | {row['search_ms_p50']:.1f}"
                lines.append(f"| {name} | {cue} | {search} | {' | '.join(cells)} | {tail} |")
            gains = bench[cue]["full - flat"]
            cells = [f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" for mean, low, high in gains.values()]
            lines.append(f"| {name} | {cue} | full - flat | {' | '.join(cells)} | | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--letta", type=Path)
    parser.add_argument("--locomo", type=Path)
    parser.add_argument("--embedder", default="minilm")
    parser.add_argument("--out", type=Path, default=Path("runs/retrieval.json"))
    args = parser.parse_args()
    benches = [read(path) for read, path in ((read_letta, args.letta), (read_locomo, args.locomo)) if path]
    benches += own_sets()
    embedder = Embedder(args.embedder)
    report = {
        "embedder": args.embedder,
        "machine": f"{platform.machine()}, {platform.processor() or platform.system()}",
        "benches": {bench.name: run(bench, embedder) for bench in benches},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.out, report)
    print(table(report))


if __name__ == "__main__":
    main()
