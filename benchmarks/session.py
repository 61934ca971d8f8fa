"""One session, five ways to give its memories to the model: hit rate, tokens, time.

    python benchmarks/session.py [--model MODEL] [--dtype bfloat16] [--sizes 10,20,100,1000] [--out runs/session]
    python benchmarks/session.py --letta FOLDER | --locomo FILE ...
    python benchmarks/session.py --compare OTHER/report.json ...       # adds columns of differences
    python benchmarks/session.py --adapter FOLDER ...                  # by this adapter too: MODE@adapter

Same facts, same questions, same prompt pieces for every mode:

    full       the whole history as text: the ceiling. From --exact-from facts on its states are kept between
               questions (kv_exact, equal to the text prompt), or a CPU would take days; tokens count as if not
    text       the memories of the full retrieval stack, at most k, as text    text_flat   the k best by cosine
    prefix     the same k injected as KV blocks (:policy where it is not the configured one; :int8 kept in
               eight bits, with how many of its answers are those of prefix, both normalised)
    hybrid     prefix, and the best once more as text                          off         no memory
    MODE:top-N the N best, whatever they score, in place of those of --share of the best one's score
    bias:S     no memory but the value states of the k as a bias of strength S; overlay:S (engine/bias_overlay.py)

A hit is an expected answer, normalised as SQuAD does, within the model's (greedy, 16 tokens); intervals are
Wilson's, differences to `full` and `text` paired bootstraps, 95%. Modes alternate question by question, so that a
machine that slows down slows all of them. One process, no Ray: retrieval by a real shard, answers by the engine.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from stores.writes.batch import MemoryBatch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import of_model
from benchmarks.session_report import write_report
from benchmarks.session_sets import Asked, FactSet, letta, locomo, own
from common.config import RecallConfig, ServeConfig, StoreConfig
from models.encoders.encoding_queue import RecalledMemory
from models.engine.engine import Engine
from models.engine.generation_stats import GenerationStats
from models.engine.request import Request
from models.engine.sampling import Sampling
from models.kv.blocks import BlockStore
from models.text.embed import Embedder
from models.weights.adapters import BASE, AdapterStore
from models.weights.load import LoadedModel, load_model
from models.weights.versions import ModelVersions
from stores.memory.memory import parse_memory
from stores.ranking.ranking import relevant
from stores.shard.shard import Shard
from train.evaluation.evaluate import normalise, wilson
from train.generation.chat import SHORTEST_SPAN

MAX_TOKENS = 16
MODES = ("full", "text", "text_flat", "prefix", "hybrid", "off")
VALUES = ("bias", "overlay")  # of a strength: bias:2
NOW = 1_800_000_000.0
TOKENS = ("prompt_tokens", "prefix_tokens", "output_tokens")  # means
TIMES = ("retrieve_ms", "prefill_ms", "generate_ms")  # medians

Json = dict[str, Any]


class Session:
    """One set of facts in a shard and as KV blocks, ready to be asked."""

    def __init__(
        self, loaded: LoadedModel, facts: FactSet, folder: Path, options: argparse.Namespace
    ) -> None:
        self._facts, self._k, self._share = facts, options.k, options.share
        self._exact = len(facts.facts) >= options.exact_from
        self._embedder = Embedder()
        self._shard = Shard(
            folder / "shard", number=0, dim=self._embedder.dim, config=StoreConfig(map_size_bytes=1 << 30)
        )
        self._history = [RecalledMemory(id=fact.id, text=fact.text) for fact in facts.facts]
        blocks = BlockStore(folder / "blocks", 4 << 30)
        adapters = AdapterStore(folder / "adapters")
        self._versions = {"": BASE}  # by what follows a mode's @
        if options.adapter:
            manifest = {"model_digest": loaded.digest}
            self._versions["adapter"] = adapters.publish(options.adapter, manifest, alias=None)
        weights = ModelVersions(loaded, adapters, 1)
        self._engines: dict[str, Engine] = {}
        of_config: dict[str, Engine] = {}
        serve = ServeConfig(kv_cache_bytes=8 << 30, max_batch=options.together)
        for name in options.modes:
            recall = _recall(name, self._exact, options)
            config = recall.model_dump_json()
            if config not in of_config:
                of_config[config] = Engine(loaded, weights, blocks, recall, serve)
            self._engines[name] = of_config[config]
        self.costs = self._fill(blocks)

    def _fill(self, blocks: BlockStore) -> Json:
        """Write the facts and encode them; what that costs a memory."""
        texts = [fact.text for fact in self._facts.facts]
        vectors = self._embedder.encode(texts)
        memories = [
            parse_memory(
                {"id": fact.id, "text": fact.text, "time": fact.time},
                namespace="session",
                now=NOW,
                max_text_bytes=1 << 20,
            )
            for fact in self._facts.facts
        ]
        self._shard.memories.put(
            MemoryBatch.of([*zip(memories, vectors, strict=True)]), op_id="fill", now=NOW
        )
        started = time.perf_counter()
        chunked = {
            engine.queue.fingerprint(BASE): engine
            for name, engine in self._engines.items()
            if not name.startswith(("full", "text", "off"))
        }
        engines = [*chunked.values()]
        if engines:
            self._encode(engines[0])
        count = len(texts) * len(self._versions)
        costs = {
            "encode_ms": 1e3 * (time.perf_counter() - started) / count,
            "block_bytes": blocks.held_bytes / count,
        }
        exact = [self._engines["full"]] if self._exact and "full" in self._engines else []
        for engine in [*engines[1:], *exact]:
            self._encode(engine)
        return costs

    def _encode(self, engine: Engine) -> None:
        for version in self._versions.values():
            engine.queue.enqueue("session", self._history, version)
            while engine.encode_some():
                pass

    def retrieve(
        self, asked: Asked, retrieval: str, top: int | None = None
    ) -> tuple[list[RecalledMemory], float]:
        started = time.perf_counter()
        [vector] = self._embedder.encode([asked.text])
        found = self._shard.search.find(
            "session", vector, top or self._k, query=asked.text, retrieval=retrieval, now=NOW
        )
        if retrieval == "full" and top is None:
            found = relevant(found, self._share)
        memories = [RecalledMemory(id=hit["memory"]["id"], text=hit["memory"]["text"]) for hit in found]
        return memories, time.perf_counter() - started

    def ask(self, questions: Sequence[Asked], name: str) -> list[Json]:
        """Questions by one way, together: the answers, and what they took."""
        engine, started = self._engines[name], [self._submit(asked, name) for asked in questions]
        while not all(answer.done for answer, _, _ in started):
            engine.step()
        exact = name.startswith("full") and self._exact
        return [_result(asked, *each, exact) for asked, each in zip(questions, started, strict=True)]

    def _submit(self, asked: Asked, name: str) -> tuple[Request, list[RecalledMemory], float]:
        """The answer that begins, the memories it goes by, and how long those were looked for."""
        way, _, version = name.partition("@")
        mode = way.partition(":")[0]
        memories, retrieve_s = [], 0.0
        if mode == "full":
            memories = self._history
        elif mode != "off":
            top = int(way.removeprefix(f"{mode}:top-")) if ":top-" in way else None
            memories, retrieve_s = self.retrieve(asked, "flat" if mode == "text_flat" else "full", top)
        exact = mode == "full" and self._exact
        turn = GenerationStats(
            mode="prefix" if exact else "values" if mode in VALUES else mode.removesuffix("_flat")
        )
        answer = self._engines[name].submit(
            [{"role": "system", "content": SHORTEST_SPAN}, {"role": "user", "content": asked.text}],
            memories,
            namespace="session",
            adapter=self._versions[version],
            sampling=Sampling(max_tokens=MAX_TOKENS),
            turn=turn,
        )
        return answer, memories, retrieve_s

    def close(self) -> None:
        self._shard.close()


def _result(
    asked: Asked, answer: Request, memories: Sequence[RecalledMemory], retrieve_s: float, exact: bool
) -> Json:
    if answer.error is not None:
        raise answer.error
    turn, text = answer.turn, "".join(answer.pieces)
    # A fallback would be another mode's result under this one's name.
    assert turn.fallback is None or turn.fallback.startswith("kept"), turn.fallback
    found = {memory.id for memory in memories} & asked.evidence
    return {
        "answer": text,
        "hit": any(normalise(each) in normalise(text) for each in asked.answers),
        "f1": max(f1(text, each) for each in asked.answers),
        "evidence": len(found) / len(asked.evidence) if asked.evidence else None,
        "prompt_tokens": turn.prompt_tokens + (turn.prefix_tokens if exact else 0),
        "prefix_tokens": 0 if exact else turn.prefix_tokens,
        "output_tokens": turn.completion_tokens,
        "retrieve_ms": 1e3 * retrieve_s,
        "prefill_ms": 1e3 * turn.prefill_s,
        "generate_ms": 1e3 * turn.generate_s,
        "cut": turn.fallback,
    }


def _recall(name: str, exact: bool, options: argparse.Namespace) -> RecallConfig:
    mode, _, policy = name.partition("@")[0].partition(":")
    chosen: Json = {"k": options.k}
    if policy and not policy.startswith("top-"):
        kind, _, number = policy.partition("-")
        if mode in ("bias", "overlay"):
            chosen |= {mode: float(policy)}
        elif policy == "int8":
            chosen |= {"block_dtype": "int8"}
        else:
            of = "first_k" if kind == "first_k" else "best"
            chosen |= {"reprocess": kind, **({of: int(number)} if number else {})}
    if mode == "full" and exact:
        chosen |= {"encoder": "kv_exact"}
    return RecallConfig(**chosen)


def f1(answer: str, expected: str) -> float:
    """Token F1 of SQuAD (arXiv 1606.05250) over normalised words."""
    given, wanted = Counter(normalise(answer).split()), Counter(normalise(expected).split())
    shared = (given & wanted).total()
    return 2 * shared / (given.total() + wanted.total()) if shared else 0.0


def measure(loaded: LoadedModel, facts: FactSet, options: argparse.Namespace) -> Json:
    """Every question by every mode, in turns."""
    with TemporaryDirectory() as scratch:
        session = Session(loaded, facts, Path(scratch), options)
        try:
            session.ask(facts.questions[:1], options.modes[0])  # warms up
            asked: dict[str, list[Json]] = {name: [] for name in options.modes}
            for start in range(0, len(facts.questions), options.together):
                questions = facts.questions[start : start + options.together]
                for name in options.modes:
                    asked[name] += session.ask(questions, name)
                done = start + len(questions)
                if done % 10 < len(questions) or done == len(facts.questions):
                    rates = {
                        name: f"{np.mean([row['hit'] for row in rows]):.2f}" for name, rows in asked.items()
                    }
                    print(f"{facts.name} N={len(facts.facts)}, {done} asked: {rates}", flush=True)
            return {
                "set": facts.name,
                "facts": len(facts.facts),
                "questions": len(facts.questions),
                "costs": session.costs,
                "modes": {name: summary(rows, facts.questions) for name, rows in asked.items()},
                "differences": {
                    f"{name} - {base}": paired(asked[name], asked[base]) for name, base in _pairs(asked)
                },
                "same_answers": {
                    name: sum(_same(a, b) for a, b in zip(rows, asked[base], strict=True))
                    for name, rows in asked.items()
                    if (base := name.replace(":int8", "")) != name and base in asked
                },
                "raw": {name: rows for name, rows in asked.items()} if options.raw else None,
            }
        finally:
            session.close()


def _same(row: Json, other: Json) -> bool:
    return normalise(row["answer"]) == normalise(other["answer"])


def _pairs(names: Collection[str]) -> Iterator[tuple[str, str]]:
    """What is compared: injection to text, by the same weights and by the base's; each adapted way to its own."""
    for name in names:
        way, _, version = name.partition("@")
        others = [base for base in ("full", "text") if way.startswith(("prefix", "hybrid"))]
        if version:
            others = [*others, *(f"{base}@{version}" for base in others), way]
        yield from ((name, other) for other in others if other in names)


def summary(rows: Sequence[Json], questions: Sequence[Asked]) -> Json:
    hits = [row["hit"] for row in rows]
    low, high = wilson(sum(hits), len(hits))
    evidence = [row["evidence"] for row in rows if row["evidence"] is not None]
    styles = sorted({question.style for question in questions})
    return {
        "hit_rate": float(np.mean(hits)),
        "low": low,
        "high": high,
        "f1": float(np.mean([row["f1"] for row in rows])),
        "evidence_recall": float(np.mean(evidence)) if evidence else None,
        **{key: float(np.mean([row[key] for row in rows])) for key in TOKENS},
        **{key: float(np.median([row[key] for row in rows])) for key in TIMES},
        "cut": sum(row["cut"] is not None for row in rows),
        "by_style": {
            style: _share(rows, questions, style) for style in styles
        },
    }  # fmt: skip


def _share(rows: Sequence[Json], questions: Sequence[Asked], style: str) -> Json:
    of_style = [row for row, question in zip(rows, questions, strict=True) if question.style == style]
    return {
        "n": len(of_style),
        "hit_rate": float(np.mean([row["hit"] for row in of_style])),
        "f1": float(np.mean([row["f1"] for row in of_style])),
    }


def paired(rows: Sequence[Json], base: Sequence[Json]) -> list[float]:
    """Mean difference of hits and its bootstrap interval, 95%."""
    differences = np.array([float(a["hit"]) - float(b["hit"]) for a, b in zip(rows, base, strict=True)])
    drawn = np.random.default_rng(1337).integers(0, len(differences), (2000, len(differences)))
    low, high = np.quantile(differences[drawn].mean(axis=1), [0.025, 0.975])
    return [float(differences.mean()), float(low), float(high)]


def sets(options: argparse.Namespace) -> Iterator[FactSet]:
    if options.locomo:
        yield locomo(options.locomo, options.conversation, options.questions, options.seed)
        return
    for size in options.sizes:
        if options.letta:
            yield letta(options.letta, size, options.questions, options.seed)
        else:
            yield own(size, options.seed)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument(
        "--letta", type=Path, help="folder with core_memory_read.jsonl, core_memory_update.jsonl"
    )
    parser.add_argument("--locomo", type=Path, help="locomo10.json")
    parser.add_argument("--conversation", type=int, default=0, help="of LoCoMo")
    parser.add_argument("--sizes", type=_numbers, default=[10, 20, 100])
    parser.add_argument(
        "--modes",
        type=lambda text: text.split(","),
        default=[*MODES],
        help="also prefix:first_k-8, prefix:best_last-2",
    )
    parser.add_argument("--adapter", type=Path, help="PEFT folder trained on this model")
    parser.add_argument("--k", type=int, default=RecallConfig().k)
    parser.add_argument("--share", type=float, default=RecallConfig().min_share)
    parser.add_argument("--questions", type=int, default=60, help="at most, of a public set")
    parser.add_argument(
        "--together",
        type=int,
        default=1,
        help="questions answered in one batch: quicker, but times are shared",
    )
    parser.add_argument("--exact-from", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--raw", action="store_true", help="keep every answer")
    parser.add_argument("--compare", type=Path, help="report.json of an earlier run")
    parser.add_argument("--out", type=Path, default=Path("runs/session"))
    options = parser.parse_args()
    if options.adapter and not any("@" in name for name in options.modes):
        options.modes += [f"{name}@adapter" for name in options.modes]
    loaded = load_model(options.model, options.dtype)
    report: Json = {
        **of_model(loaded, options.model),
        "k": options.k,
        "share": options.share,
        "sessions": [],
    }
    before: Mapping[str, Any] | None = json.loads(options.compare.read_text()) if options.compare else None
    for facts in sets(options):
        report["sessions"].append(measure(loaded, facts, options))
        write_report(options.out, report, before)  # after each: a long run that is cut off has told the most
    print((options.out / "report.md").read_text())


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
