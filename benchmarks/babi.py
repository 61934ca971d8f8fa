"""bAbI answered by the stores alone, no model; and how often flat retrieval finds the supporting facts.

    python benchmarks/babi.py FOLDER [--tasks 1,2,3,4,5,15,17,19] [--recall 6,7,8] [--out FILE]

FOLDER holds qa*_test.txt (bAbI 1.2, English; CC BY 3.0). A story's sentences become memories by the few rules of
`read_sentence`; its questions become one question to the place map or the fact graph by the rules of `ask`. Neither
sees answers or supporting facts. Tasks 1 to 3 ask where things are and were (containment over time), 5 and 15 for
facts, 4, 17 and 19 for relations of places and paths. `named`: share of questions whose right answer named all of the
supporting facts among its memories. `recall@k` of the other tasks: all supporting facts among the k sentences of the
story so far nearest to the question by cosine. Intervals are Wilson's, 95%.
"""

import argparse
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.files import write_json
from stores.facts.graph import FactGraph
from stores.places.map import PlaceMap
from train.evaluation.evaluate import wilson

STORE_TASKS = (1, 2, 3, 4, 5, 15, 17, 19)
RECALL_TASKS = (6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 18, 20)
RECALL_AT = (1, 3, 10)

WENT = r"(?:went back|went|journeyed|travelled|moved) to"
GOT = r"(?:got|grabbed|took|picked up)"
DROPPED = r"(?:dropped|discarded|left|put down)"
GAVE = r"(?:gave|handed|passed)"
SIDE = r"(?:is )?(?:to the )?(left of|right of|above|below|north of|south of|east of|west of)"
OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}
SINGULAR = {"wolves": "wolf", "mice": "mouse", "cats": "cat"}  # "sheep" is its own
AXIS = {"left of": (0, -1), "right of": (0, 1), "above": (1, 1), "below": (1, -1)}

Answer = tuple[str | None, tuple[str, ...]]  # what, and the memories it rests on


@dataclass
class Story:
    """The stores of one story; memories are named after their line."""

    places: PlaceMap = field(default_factory=PlaceMap)
    facts: FactGraph = field(default_factory=FactGraph)
    lines: dict[int, str] = field(default_factory=dict)

    def tell(self, line: int, sentence: str) -> None:
        self.lines[line] = sentence
        for part, (kind, first, relation, other) in enumerate(read_sentence(sentence, line)):
            memory = {"id": f"{line}.{part}", "time": float(line), "relation": relation}
            if kind == "spatial":
                self.places.add(memory | {"place": first, "other": other}, line)
            else:
                self.facts.add(memory | {"subject": first, "object": other}, line)


@dataclass(frozen=True)
class Question:
    task: int
    text: str
    answer: str
    support: frozenset[int]
    story: dict[int, str]
    got: str | None
    named: bool


def read_sentence(sentence: str, line: int) -> Iterator[tuple[str, str, str, str]]:
    """Memories of a sentence: (kind, place or subject, relation, other or object).

    A gift has three parts, so it is an event with three facts, and the thing changes hands.
    """
    text = sentence.rstrip(".").removesuffix(" there")
    if m := re.fullmatch(rf"(\w+) {WENT} the (\w+)", text):
        yield "spatial", m[1], "moved_to", m[2]
    elif m := re.fullmatch(rf"(\w+) {GOT} the (\w+)", text):
        yield "spatial", m[2], "carried_by", m[1]
    elif m := re.fullmatch(rf"(\w+) {DROPPED} the (\w+)", text):
        yield "spatial", m[2], "dropped_by", m[1]
    elif m := re.fullmatch(rf"(\w+) {GAVE} the (\w+) to (\w+)", text):
        yield "spatial", m[2], "given_to", m[3]
        for role, name in zip(("giver", "gift", "receiver"), m.groups(), strict=True):
            yield "relational", f"gift {line}", role, name
    elif m := re.fullmatch(rf"The (.+) is {SIDE} the (.+)", text):
        yield "spatial", m[1], m[2], m[3]
    elif m := re.fullmatch(r"(\w+) are afraid of (\w+)", text):
        yield "relational", _singular(m[1]), "afraid_of", _singular(m[2])
    elif m := re.fullmatch(r"(\w+) is an? (\w+)", text):
        yield "relational", m[1], "is_a", m[2]


def ask(story: Story, question: str) -> Answer:
    text = question.strip().rstrip("?").strip()
    for pattern, answer in QUESTIONS:
        if m := re.fullmatch(pattern, text):
            return answer(story, *m.groups())
    return None, ()


def _where(story: Story, thing: str) -> Answer:
    found = story.places.where(thing)
    return found.place, found.memories


def _where_before(story: Story, thing: str, place: str) -> Answer:
    trail = story.places.trail(thing)
    for i in range(len(trail) - 1, 0, -1):
        if trail[i].place == place:
            return trail[i - 1].place, (*trail[i - 1].memories, *trail[i].memories)
    return None, ()


def _what_is(story: Story, side: str, place: str) -> Answer:
    found = story.places.related(side, place)
    return (found[0].place, found[0].memories) if found else (None, ())


def _what_of(story: Story, place: str, side: str) -> Answer:
    return _what_is(story, OPPOSITE[side.split()[0]] + " of", place)


def _is_it(story: Story, a: str, side: str, b: str) -> Answer:
    bearing = story.places.relation_of(a, b)
    axis, sign = AXIS[side]
    return (
        (None, ()) if bearing is None else ("yes" if bearing.step[axis] == sign else "no", bearing.memories)
    )


def _how_to_go(story: Story, a: str, b: str) -> Answer:
    path = story.places.path(a, b, by="observed")
    if path is None:
        return None, ()
    return ",".join((direction or "?")[0] for direction in path.directions), path.memories


def _gift(wanted: str, *roles: str) -> Callable[..., Answer]:
    """Who or what played the part `wanted` in the newest gift whose other parts are the question's names."""

    def answer(story: Story, *names: str) -> Answer:
        known = [("?gift", role, name) for role, name in zip(roles, names, strict=True)]
        found = story.facts.solve([*known, ("?gift", wanted, "?it")])
        return (found[0].values["?it"], tuple(f["id"] for f in found[0].facts)) if found else (None, ())

    return answer


def _afraid_of(story: Story, name: str) -> Answer:
    found = story.facts.solve([(name, "is_a", "?kind"), ("?kind", "afraid_of", "?it")])
    return (found[0].values["?it"], tuple(f["id"] for f in found[0].facts)) if found else (None, ())


QUESTIONS: tuple[tuple[str, Callable[..., Answer]], ...] = (
    (r"Where is (?:the )?(\w+)", _where),
    (r"Where was the (\w+) before the (\w+)", _where_before),
    (r"What is the (\w+) (\w+ of)", _what_of),
    (r"What is (\w+ of) the (\w+)", _what_is),
    (rf"Is the (.+?) {SIDE} the (.+)", _is_it),
    (r"How do you go from the (\w+) to the (\w+)", _how_to_go),
    (r"What did (\w+) give to (\w+)", _gift("gift", "giver", "receiver")),
    (r"Who gave the (\w+) to (\w+)", _gift("giver", "gift", "receiver")),
    (r"Who did (\w+) give the (\w+) to", _gift("receiver", "giver", "gift")),
    (r"Who gave the (\w+)", _gift("giver", "gift")),
    (r"Who received the (\w+)", _gift("receiver", "gift")),
    (r"What is (\w+) afraid of", _afraid_of),
)


def read_task(folder: Path, task: int) -> Iterator[Question]:
    (path,) = folder.glob(f"qa{task}_*_test.txt")
    story = Story()
    for row in path.read_text().splitlines():
        number, _, rest = row.partition(" ")
        if number == "1":
            story = Story()
        if "\t" not in rest:
            story.tell(int(number), rest)
            continue
        text, answer, support = rest.split("\t")
        got, memories = ask(story, text) if task in STORE_TASKS else (None, ())
        lines = frozenset(map(int, support.split()))
        named = lines <= {int(id.partition(".")[0]) for id in memories}
        yield Question(task, text, answer, lines, dict(story.lines), got, named)


def measure_store(folder: Path, tasks: list[int]) -> dict[str, Any]:
    results = {}
    for task in tasks:
        started = time.perf_counter()
        asked = [*read_task(folder, task)]
        right = [_plain(q.got) == _plain(q.answer) for q in asked]
        low, high = wilson(sum(right), len(right))
        named = sum(ok and q.named for ok, q in zip(right, asked, strict=True)) / len(asked)
        wrong = [
            {"question": q.text, "answer": q.answer, "got": q.got, "story": [*q.story.values()]}
            for ok, q in zip(right, asked, strict=True)
            if not ok
        ]
        results[str(task)] = {
            "accuracy": sum(right) / len(right),
            "low": low,
            "high": high,
            "n": len(right),
            "named": named,
            "ms": 1e3 * (time.perf_counter() - started) / len(asked),
            "wrong": wrong[:20],
        }
        print(task, {k: v for k, v in results[str(task)].items() if k != "wrong"}, flush=True)
    return results


def measure_recall(folder: Path, tasks: list[int]) -> dict[str, Any]:
    """Flat retrieval: cosine of the project's embedder between question and sentence, nothing else."""
    if not tasks:
        return {}
    from models.text.embed import Embedder

    embedder, results = Embedder(), {}
    for task in tasks:
        asked = [q for q in read_task(folder, task) if q.support]
        texts = [*{text for q in asked for text in (q.text, *q.story.values())}]
        vectors = dict(zip(texts, embedder.encode(texts), strict=True))
        ranks = [_worst_rank(q, vectors) for q in asked]
        results[str(task)] = {"n": len(asked)} | {
            f"recall@{k}": float(np.mean([rank < k for rank in ranks])) for k in RECALL_AT
        }
        print(task, results[str(task)], flush=True)
    return results


def _worst_rank(question: Question, vectors: dict[str, np.ndarray]) -> int:
    """The place, from 0, of the supporting fact that is found last."""
    lines = [*question.story]
    cosines = np.stack([vectors[question.story[line]] for line in lines]) @ vectors[question.text]
    order = [lines[i] for i in np.argsort(-cosines, kind="stable")]
    return max(order.index(line) for line in question.support)


def markdown(report: dict[str, Any]) -> str:
    rows = [
        "| bAbI task | n | accuracy | 95% interval | supporting facts named | ms a question |",
        "|---|" * 1,
    ]
    rows[1] = "|---|---|---|---|---|---|"
    for task, r in report["store"].items():
        interval = f"{r['low']:.3f} to {r['high']:.3f}"
        rows.append(
            f"| {task} | {r['n']} | {r['accuracy']:.3f} | {interval} | {r['named']:.3f} | {r['ms']:.2f} |"
        )
    if report["recall"]:
        rows += [
            "",
            "| bAbI task, flat retrieval | n | recall@1 | recall@3 | recall@10 |",
            "|---|---|---|---|---|",
        ]
        for task, r in report["recall"].items():
            rows.append(
                f"| {task} | {r['n']} | " + " | ".join(f"{r[f'recall@{k}']:.3f}" for k in RECALL_AT) + " |"
            )
    return "\n".join(rows)


def _plain(text: str | None) -> str:
    return (text or "").strip().casefold()


def _singular(word: str) -> str:
    return SINGULAR.get(word.casefold(), word)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", type=_numbers, default=[*STORE_TASKS])
    parser.add_argument("--recall", type=_numbers, default=[*RECALL_TASKS], help="'' for none")
    parser.add_argument("--out", type=Path, default=Path("runs/babi.json"))
    arguments = parser.parse_args()
    report = {
        "command": "python benchmarks/babi.py FOLDER",
        "hardware": platform.machine(),
        "store": measure_store(arguments.folder, arguments.tasks),
        "recall": measure_recall(arguments.folder, arguments.recall),
    }
    write_json(arguments.out, report)
    arguments.out.with_suffix(".md").write_text(markdown(report) + "\n")
    print(markdown(report))


if __name__ == "__main__":
    main()
