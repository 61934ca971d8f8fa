"""The same facts in Sharpwave's shard, in mem0 without a language model, and in bare Faiss + SQLite as the floor.

    python benchmarks/mem0.py FOLDER --mem0-python /path/to/venv/bin/python [--passes 3] [--out runs/mem0.json]

FOLDER holds core_memory_read.jsonl and core_memory_update.jsonl (letta-ai/letta-evals, Apache-2.0). mem0 is no
dependency of this project: give the interpreter of an environment that has mem0ai and sentence-transformers; without
it, only the other two are measured. Each system runs in a process of its own, on its default local store: mem0 with
`infer=False`, its own Hugging Face embedder on the same model folder, qdrant and history on disk; ours with one fsync
a write and full retrieval; the floor with one SQLite commit a write (synchronous=FULL) and an exact Faiss index. One
write, one search at a time. Embedding is measured separately, since all use the same model. After deleting
everything, the files are searched for the texts.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NOW = 1_700_000_000.0
K = 3


class Timed:
    """A function that adds up its seconds, so that embedding can be told from storing."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call, self.seconds = call, 0.0

    def __call__(self, *args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return self.call(*args, **options)
        finally:
            self.seconds += time.perf_counter() - started


class Ours:
    def __init__(self, model: str, folder: Path) -> None:
        from common.config import StoreConfig
        from models.text.embed import Embedder
        from stores.memory.memory import parse_memory
        from stores.shard.shard import Shard
        from stores.writes.batch import MemoryBatch

        self.batch = MemoryBatch.of
        self.embed = Timed(Embedder(model).encode)
        self.parse = parse_memory
        self.shard = Shard(folder, number=0, dim=384, config=StoreConfig(map_size_bytes=1 << 30))

    def add(self, number: int, text: str) -> str:
        memory = self.parse({"id": f"m{number}", "text": text}, namespace="n", now=NOW, max_text_bytes=9999)
        self.shard.memories.put(self.batch([(memory, self.embed([text])[0])]), op_id=f"put-{number}", now=NOW)
        return memory.id

    def search(self, query: str) -> list[str]:
        hits = self.shard.search.find("n", self.embed([query])[0], K, query=query, now=NOW)
        return [hit["memory"]["text"] for hit in hits]

    def delete(self, id: str) -> None:
        self.shard.erasure.forget("n", ids=[id], op_id=f"forget-{id}", now=NOW)


class Mem0:
    def __init__(self, model: str, folder: Path) -> None:
        os.environ |= {"MEM0_DIR": str(folder), "MEM0_TELEMETRY": "False", "OPENAI_API_KEY": "never called"}
        from mem0 import Memory

        store = {"path": str(folder / "qdrant"), "on_disk": True, "embedding_model_dims": 384}
        self.memory = Memory.from_config(
            {
                "embedder": {"provider": "huggingface", "config": {"model": model, "embedding_dims": 384}},
                "vector_store": {"provider": "qdrant", "config": store},
                "history_db_path": str(folder / "history.db"),
            }
        )
        self.embed = Timed(self.memory.embedding_model.embed)
        self.batch = Timed(self.memory.embedding_model.embed_batch)
        self.memory.embedding_model.embed = self.embed
        self.memory.embedding_model.embed_batch = lambda *a, **o: self._count(*a, **o)

    def _count(self, *args: Any, **options: Any) -> Any:
        before = self.batch.seconds
        found = self.batch(*args, **options)
        self.embed.seconds += self.batch.seconds - before
        return found

    def add(self, number: int, text: str) -> str:
        [made] = self.memory.add(text, user_id="n", infer=False)["results"]
        return str(made["id"])

    def search(self, query: str) -> list[str]:
        found = self.memory.search(query, top_k=K, filters={"user_id": "n"})["results"]
        return [one["memory"] for one in found]

    def delete(self, id: str) -> None:
        self.memory.delete(id)


class Floor:
    def __init__(self, model: str, folder: Path) -> None:
        import sqlite3

        import faiss
        import numpy as np

        from models.text.embed import Embedder

        self.np = np
        self.embed = Timed(Embedder(model).encode)
        self.index: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(384))
        folder.mkdir(parents=True, exist_ok=True)
        self.db = sqlite3.connect(folder / "memories.db", isolation_level=None)
        self.db.execute("PRAGMA synchronous=FULL")
        self.db.execute("CREATE TABLE memories (id INTEGER PRIMARY KEY, text TEXT, vector BLOB)")

    def add(self, number: int, text: str) -> int:
        vector = self.embed([text])
        self.db.execute("INSERT INTO memories VALUES (?, ?, ?)", (number, text, vector.tobytes()))
        self.index.add_with_ids(vector, self.np.array([number]))
        return number

    def search(self, query: str) -> list[str]:
        _, rows = self.index.search(self.embed([query]), K)
        return [
            self.db.execute("SELECT text FROM memories WHERE id = ?", (int(row),)).fetchone()[0]
            for row in rows[0]
        ]

    def delete(self, id: int) -> None:
        self.db.execute("DELETE FROM memories WHERE id = ?", (id,))
        self.index.remove_ids(self.np.array([id]))


SYSTEMS: dict[str, Any] = {"sharpwave": Ours, "mem0": Mem0, "faiss+sqlite": Floor}


def read(folder: Path) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """All facts, and (question, supporting facts)."""

    def rows(name: str) -> list[Any]:
        return [json.loads(line) for line in (folder / name).read_text().splitlines()]

    support = {}
    for row in rows("core_memory_update.jsonl"):
        extra = row["agent_args"]["extra"]
        support[row["input"], tuple(extra["facts"])] = extra["supporting_fact_indices"]
    facts: dict[str, None] = {}
    questions = []
    for row in rows("core_memory_read.jsonl"):
        known = row["agent_args"]["extra"]["facts"]
        facts.update(dict.fromkeys(known))
        if places := support.get((row["input"], tuple(known))):
            questions.append((row["input"], [known[place] for place in places]))
    return [*facts], questions


def measure(name: str, model: str, folder: Path) -> dict[str, Any]:
    """One pass of one system in this process."""
    facts, questions = read(folder)
    with TemporaryDirectory() as scratch:
        files = Path(scratch) / "store"
        system = SYSTEMS[name](model, files)
        system.search("warm up") if name == "mem0" else system.embed(["warm up"])
        system.embed.seconds = 0.0
        started = time.perf_counter()
        ids = [system.add(number, fact) for number, fact in enumerate(facts)]
        writing, embedding = time.perf_counter() - started, system.embed.seconds
        seconds, bare, recalls = [], [], []
        for question, support in questions:
            system.embed.seconds, started = 0.0, time.perf_counter()
            found = system.search(question)
            seconds.append(time.perf_counter() - started)
            bare.append(seconds[-1] - system.embed.seconds)
            recalls.append(len({*found} & {*support}) / len(support))
        stored = on_disk(files)
        started = time.perf_counter()
        for id in ids:
            system.delete(id)
        deleting = time.perf_counter() - started
        left = [path.read_bytes() for path in files.rglob("*") if path.is_file()]
        return {
            "writes_a_second": len(facts) / writing,
            "write_ms_without_embedding": 1e3 * (writing - embedding) / len(facts),
            "search_p50_ms": 1e3 * statistics.median(seconds),
            "search_p50_ms_without_embedding": 1e3 * statistics.median(bare),
            "recall@3": statistics.mean(recalls),
            "deletes_a_second": len(facts) / deleting,
            "disk_bytes": stored,
            "disk_bytes_after_delete": on_disk(files),
            "texts_left_after_delete": sum(
                any(fact.encode() in content for content in left) for fact in facts
            ),
        }


def on_disk(folder: Path) -> int:
    """Bytes that the files take, holes not counted."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def model_folder(name: str) -> str:
    if importlib.util.find_spec("models") is None:
        return name
    from models.text.embed import locate

    return locate(name)


def run(name: str, python: str, model: str, folder: Path, passes: int) -> dict[str, Any]:
    """Medians of several passes, each in a fresh process."""
    command = [python, "-P", __file__, str(folder), "--system", name, "--embedder", model]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = []
    for _ in range(passes):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return {key: statistics.median(one[key] for one in found) for key in found[0]} | {"passes": found}


def table(results: dict[str, Any]) -> str:
    names = [key for key in next(iter(results.values())) if key != "passes"]
    lines = [f"| | {' | '.join(results)} |", "|---|" + "---|" * len(results)]
    for name in names:
        cells = [
            f"{result[name]:,.3f}" if result[name] < 10 else f"{result[name]:,.0f}"
            for result in results.values()
        ]
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--mem0-python", default="")
    parser.add_argument("--embedder", default="minilm")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--system", choices=SYSTEMS, help="one pass of one system, as JSON")
    parser.add_argument("--out", type=Path, default=Path("runs/mem0.json"))
    args = parser.parse_args()
    if args.folder is None:
        parser.exit(0, "nothing to measure: give the folder of letta_core_memory\n")
    if args.system:
        print(json.dumps(measure(args.system, args.embedder, args.folder)))
        return
    sys.path.insert(0, str(ROOT))
    from common.files import write_json

    model = model_folder(args.embedder)
    interpreters = {"sharpwave": sys.executable, "faiss+sqlite": sys.executable}
    if args.mem0_python:
        interpreters["mem0"] = args.mem0_python
    results = {
        name: run(name, python, model, args.folder, args.passes) for name, python in interpreters.items()
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    machine = f"{os.cpu_count()} cores, {platform.machine()}"
    write_json(args.out, {"machine": machine, "facts": args.folder.name, "results": results})
    print(table(results))


if __name__ == "__main__":
    main()
