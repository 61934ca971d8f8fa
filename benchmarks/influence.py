"""Which memory an answer rests on: leave-one-out of text and of blocks against naive passes, and what each costs.

    python benchmarks/influence.py --letta FOLDER | --babi FOLDER [--tasks 1,2,3,5,14] [--items 100] [--model MODEL]
    python benchmarks/influence.py --cost [--memories 32,256] [--responses 20]
    python benchmarks/influence.py --online [--k 2,8] [--tokens 48]

Ways to order the memories of a question by what they did to its right answer, all on the same items in one run:

    text        exact leave-one-out, memories as text in one prompt (`models/scoring/leave_one_out.py`)
    prefix      the memory's block hidden, none recomputed (`models/scoring/hidden_blocks.py`)
    best_last   the same with the two nearest to the question recomputed with it, as answers are served
    closed      the same prefix assembled anew without the memory
    cosine      nearness of memory and question, no model

`first`: share of items whose first memory supports the answer; `mrr`: of the best supporting one; `auc`: of supporting
ones above others. Intervals are Wilson's, 95%. `--cost`: seconds of whole matrices, naive ones extrapolated from three
rows. `--online`: medians of answers with and without attribution, in alternation.
"""

import argparse
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import of_model
from benchmarks.public_sets import letta_rows
from common.config import RecallConfig, ServeConfig
from common.files import write_json
from models.encoders.encoding_queue import RecalledMemory
from models.engine.engine import Engine
from models.engine.generation_stats import GenerationStats
from models.engine.sampling import Sampling
from models.kv import prefix as kv
from models.kv.blocks import BlockStore
from models.scoring.hidden_blocks import HiddenBlocks, prefix_of
from models.scoring.leave_one_out import LeaveOneOut, ScoreContext, naive_row
from models.text.embed import Embedder
from models.text.prompt import PromptBuilder
from models.weights.adapters import BASE, AdapterStore
from models.weights.load import LoadedModel, load_model
from models.weights.versions import ModelVersions
from train.evaluation.evaluate import wilson
from train.generation.chat import SHORTEST_SPAN

Json = dict[str, Any]
SERVED = kv.Policy(kind="best_last", best=2)
NAIVE_ROWS = 3


@dataclass(frozen=True)
class Item:
    memories: tuple[str, ...]
    question: str
    answer: str
    supporting: frozenset[int]


def of_letta(folder: Path) -> Iterator[Item]:
    for row in letta_rows(folder):
        if row.supporting:
            yield Item(row.facts, row.question, row.answer, frozenset(row.supporting))


def of_babi(folder: Path, tasks: Sequence[int]) -> Iterator[Item]:
    """One question of each story in turn of task: its sentences so far, and the lines that support the answer."""
    yield from (
        item
        for of_each in zip(
            *(_babi(next(folder.glob(f"qa{task}_*_test.txt"))) for task in tasks), strict=False
        )
        for item in of_each
    )


def _babi(path: Path) -> Iterator[Item]:
    lines: dict[int, str] = {}
    found: Item | None = None
    for row in path.read_text().splitlines():
        number, said = row.split(" ", 1)
        if number == "1":
            if found:
                yield found
            lines, found = {}, None
        if "\t" not in said:
            lines[int(number)] = said
            continue
        question, answer, support = said.split("\t")
        places = {line: i for i, line in enumerate(lines)}
        needed = frozenset(places[int(line)] for line in support.split())
        found = Item(tuple(lines.values()), question.strip(), answer.replace(",", ", "), needed)
    if found:
        yield found


class Ways:
    def __init__(self, loaded: LoadedModel) -> None:
        self._model, self._builder = loaded.model, PromptBuilder(loaded.tokenizer)
        self._embedder = Embedder()
        self.all: dict[str, Callable[[Item], np.ndarray]] = {
            "text": self.text,
            "prefix": self.prefix,
            "best_last": self.best_last,
            "closed": self.closed,
            "cosine": self.cosine,
        }

    def text(self, item: Item) -> np.ndarray:
        rows = LeaveOneOut(self._model, self._context(item))
        base = rows.row(None)[0]
        return np.array([base - rows.row(i)[0] for i in range(len(item.memories))])

    def prefix(self, item: Item) -> np.ndarray:
        context = self._context(item)
        prefix = prefix_of(self._model, context.head, context.memories)
        return self._hidden(prefix, context, len(item.memories))

    def best_last(self, item: Item) -> np.ndarray:
        order = np.argsort(-self.cosine(item))
        context = self._context(item)
        prefix = prefix_of(self._model, context.head, [context.memories[i] for i in order], SERVED)
        found = np.empty(len(order))
        found[order] = self._hidden(prefix, context, len(order))
        return found

    def closed(self, item: Item) -> np.ndarray:
        context, found = self._context(item), []
        for omitted in (None, *range(len(item.memories))):
            kept = [ids for i, ids in enumerate(context.memories) if i != omitted]
            prefix = prefix_of(self._model, context.head, kept)
            found.append(HiddenBlocks(prefix, context.transcripts).rows(self._model, [()])[0, 0])
        return found[0] - np.array(found[1:])

    def cosine(self, item: Item) -> np.ndarray:
        return self._embedder.encode([*item.memories]) @ self._embedder.encode([item.question])[0]

    def _hidden(self, prefix: kv.Prefix, context: ScoreContext, count: int) -> np.ndarray:
        rows = HiddenBlocks(prefix, context.transcripts).rows(
            self._model, [(), *((i,) for i in range(count))]
        )
        return rows[0, 0] - rows[1:, 0]

    def _context(self, item: Item) -> ScoreContext:
        return context_of(self._builder, item.memories, [(item.question, item.answer)])


def context_of(
    builder: PromptBuilder, memories: Sequence[str], asked: Sequence[tuple[str, str]]
) -> ScoreContext:
    talks = [
        [
            {"role": "system", "content": SHORTEST_SPAN},
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        for question, answer in asked
    ]
    return ScoreContext(
        builder.head,
        [builder.memory(text) for text in memories],
        [builder.transcript(talk, memories=True) for talk in talks],
    )


def measure_first(loaded: LoadedModel, items: Sequence[Item], names: Sequence[str]) -> Json:
    made = Ways(loaded)
    ways = {name: made.all[name] for name in names}
    for way in ways.values():
        way(items[0])  # what is loaded once
    told: dict[str, list[tuple[bool, float, float]]] = {name: [] for name in ways}
    seconds = dict.fromkeys(ways, 0.0)
    for item in items:
        for name, way in ways.items():
            started = time.perf_counter()
            scores = way(item)
            seconds[name] += time.perf_counter() - started
            order = np.argsort(-scores, kind="stable")
            places = [place for place, i in enumerate(order) if i in item.supporting]
            others = [i for i in range(len(scores)) if i not in item.supporting]
            above = [scores[i] > scores[j] for i in item.supporting for j in others]
            told[name].append((places[0] == 0, 1.0 / (1 + places[0]), float(np.mean(above or [1.0]))))
    report = {}
    for name, rows in told.items():
        first, mrr, auc = (float(np.mean([row[i] for row in rows])) for i in range(3))
        low, high = wilson(sum(row[0] for row in rows), len(rows))
        report[name] = {
            "first": first, "low": low, "high": high, "mrr": mrr, "auc": auc, "n": len(rows),
            "seconds": seconds[name],
        }  # fmt: skip
        print(name, report[name], flush=True)
    return report


NAMES = "Ada Bo Cy Dee Eli Fay Gus Hal Ida Jo Kit Lou Max Ned Ola Pia Ray Sue Tom Una".split()
PLACES = "Lisbon Oslo Turin Graz Porto Bergen Malmo Ghent Lyon Bath Cork Riga Bern Nice Ulm".split()
THINGS = "a goat;the harp;an old bicycle;two canaries;a lighthouse;rare stamps;a red boat".split(";")


def invented(count: int) -> list[tuple[str, str, str]]:
    """(memory, question, answer), the same every time."""
    rng = random.Random(7)
    found = []
    for i in range(count):
        name, place, thing = (
            f"{rng.choice(NAMES)} {chr(65 + i % 26)}{i}",
            rng.choice(PLACES),
            rng.choice(THINGS),
        )
        memory = f"{name} lives in {place} and keeps {thing} there."
        found.append((memory, f"Where does {name} live?", place))
    return found


def measure_cost(loaded: LoadedModel, memories: int, responses: int) -> Json:
    """Seconds of a whole matrix, baseline included; the naive one from `NAIVE_ROWS` of its rows."""
    facts = invented(memories)
    asked = [
        (question, answer) for _, question, answer in random.Random(3).sample(facts, min(responses, memories))
    ]
    builder = PromptBuilder(loaded.tokenizer)
    context = context_of(builder, [memory for memory, _, _ in facts], asked)
    rows = [None, *range(memories)]
    started = time.perf_counter()
    naive = [naive_row(loaded.model, context, row) for row in rows[:NAIVE_ROWS]]
    seconds = {"naive": (time.perf_counter() - started) / NAIVE_ROWS * len(rows)}
    started = time.perf_counter()
    prefix = prefix_of(loaded.model, context.head, context.memories)
    encoded = time.perf_counter() - started
    found = HiddenBlocks(prefix, context.transcripts).rows(
        loaded.model, [() if row is None else (row,) for row in rows]
    )
    seconds["prefix"] = time.perf_counter() - started
    report = {
        "memories": memories, "responses": len(asked), "tokens_of_memories": sum(map(len, context.memories)),
        "encoding_seconds": encoded, "true_first": _true_first(found, facts, asked), "seconds": seconds,
    }  # fmt: skip
    if memories <= 64:
        started = time.perf_counter()
        text = LeaveOneOut(loaded.model, context)
        exact = [text.row(row) for row in rows]
        seconds["text"] = time.perf_counter() - started
        report["text_off_by"] = max(float(np.abs(a - b).max()) for a, b in zip(exact, naive, strict=False))
    report["ratios"] = {name: spent / seconds["naive"] for name, spent in seconds.items()}
    report["cells_per_second"] = memories * len(asked) / seconds["prefix"]
    print(report, flush=True)
    return report


def _true_first(
    rows: np.ndarray, facts: Sequence[tuple[str, str, str]], asked: Sequence[tuple[str, str]]
) -> float:
    questions = [question for _, question, _ in facts]
    best = (rows[0] - rows[1:]).argmax(axis=0)
    return float(np.mean([questions[i] == question for i, (question, _) in zip(best, asked, strict=True)]))


def measure_online(loaded: LoadedModel, k: int, tokens: int, repeats: int) -> Json:
    """Answers of exactly `tokens` tokens from k memories, with and without attribution in alternation."""
    facts = invented(64)
    memories = [RecalledMemory(id=str(i), text=memory) for i, (memory, _, _) in enumerate(facts)]
    sampling = Sampling(max_tokens=tokens, ignore_eos=True)
    with TemporaryDirectory() as scratch:
        engine = Engine(
            loaded,
            ModelVersions(loaded, AdapterStore(Path(scratch) / "adapters"), 1),
            BlockStore(Path(scratch) / "blocks", 1 << 30),
            RecallConfig(),
            ServeConfig(),
        )
        engine.queue.enqueue("n", memories, BASE)
        while engine.encode_some():
            pass
        spent: dict[bool, list[float]] = {False: [], True: []}
        added, noise = [], 0.0
        for i in range(repeats + 1):
            for attribute in (False, True):
                turn, started = GenerationStats(mode="prefix"), time.perf_counter()
                answer = engine.answer(
                    [{"role": "user", "content": facts[i][1]}],
                    memories[i : i + k],
                    namespace="n",
                    adapter=BASE,
                    sampling=sampling,
                    turn=turn,
                    attribute=attribute,
                )
                "".join(answer)
                if not i:
                    continue  # warms up
                spent[attribute].append(time.perf_counter() - started)
                if attribute:
                    added.append(turn.attribute_s / turn.generate_s)
                    noise = turn.influence_noise or 0.0
    without, with_it = (float(np.median(spent[attribute])) for attribute in (False, True))
    report = {
        "k": k, "tokens": tokens, "answers": repeats, "seconds": without, "seconds_attributed": with_it,
        "added": float(np.median(added)), "noise": noise,
    }  # fmt: skip
    print(report, flush=True)
    return report


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--letta", type=Path)
    parser.add_argument("--babi", type=Path)
    parser.add_argument("--tasks", type=numbers, default=[1, 2, 3, 5, 14])
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--ways", default="text,prefix,best_last,closed,cosine")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--memories", type=numbers, default=[32, 256])
    parser.add_argument("--responses", type=int, default=20)
    parser.add_argument("--online", action="store_true")
    parser.add_argument("--k", type=numbers, default=[2, 8])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path, default=Path("runs/influence.json"))
    given = parser.parse_args()
    loaded = load_model(given.model, given.dtype)
    report: Json = of_model(loaded, given.model)
    sets = {
        "letta": given.letta and of_letta(given.letta),
        "babi": given.babi and of_babi(given.babi, given.tasks),
    }
    for name, items in sets.items():
        if items:
            report[name] = measure_first(loaded, [*islice(items, given.items)], given.ways.split(","))
    if given.cost:
        report["cost"] = [measure_cost(loaded, count, given.responses) for count in given.memories]
    if given.online:
        report["online"] = [measure_online(loaded, k, given.tokens, given.repeats) for k in given.k]
    write_json(given.out, report)


if __name__ == "__main__":
    main()
