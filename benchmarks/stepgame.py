"""StepGame answered by the place map alone, no model.

    python benchmarks/stepgame.py FOLDER [--out FILE]

FOLDER holds clean_qa1_test.json to clean_qa3_test.json (StepGame, MIT): stories of k observations about k + 1 agents,
and the relation of two of them. A sentence becomes one spatial memory by the rules of `read_sentence`, which do not
see the label. Some templates of the data are wrong (they say the opposite of the label, stand for several labels, or
name one agent twice): those whose plain reading agrees with fewer than 0.9 of their labels in the stories of one
observation. Accuracy is given for all questions, and for those whose story uses sound templates only. Intervals are
Wilson's, 95%.
"""

import argparse
import json
import platform
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.files import write_json
from stores.places.directions import Step
from stores.places.map import PlaceMap
from train.evaluation.evaluate import wilson

HOPS = (1, 2, 3)
LABELS: dict[Step, str] = {
    (-1, 0): "left",
    (1, 0): "right",
    (0, 1): "above",
    (0, -1): "below",
    (-1, 1): "upper-left",
    (1, 1): "upper-right",
    (-1, -1): "lower-left",
    (1, -1): "lower-right",
    (0, 0): "overlap",
}
SIDES = {
    "left": "left lefthand west",
    "right": "right righthand east",
    "above": "above over top upper up north front",
    "below": "below under bottom lower down south",
}
SIDE_OF = {word: side for side, words in SIDES.items() for word in words.split()}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
AGREES = 0.9
QUESTION = re.compile(r"What is the relation of the agent ([A-Z]) to the agent ([A-Z])\?")
FORMS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"If (?P<b>[A-Z]) is the center of a clock face, (?P<a>[A-Z]) (?P<side>.*)",
        r"(?P<b>[A-Z]) is there and (?P<a>[A-Z]) is at (?P<side>.*)",
        r"(?P<b>[A-Z]) is over there (?:and|with) (?P<a>[A-Z])\b(?P<side>.*)",
        r"(?P<a>[A-Z]) is (?P<side>[^A-Z]*) and (?P<b>[A-Z]) is .*",
    )
)


@dataclass(frozen=True)
class Reading:
    a: str
    side: str
    b: str


def read_sentence(sentence: str) -> Reading | None:
    """ "`a` lies on `side` of `b`", or None where the sentence does not say of which two, or where."""
    names = [*dict.fromkeys(re.findall(r"\b[A-Z]\b", sentence))]
    if len(names) != 2:
        return None
    for form in FORMS:
        if m := form.fullmatch(sentence):
            side = _side(m["side"])
            return Reading(m["a"], side, m["b"]) if side else None
    # "A and B are next to each other with B on the right": the one that a side follows
    pair = re.match(r"(?:The objects? )?[A-Z] and [A-Z] are\b", sentence)
    rest = sentence[pair.end() :] if pair else sentence
    m = re.search(r"\b([A-Z])\b([^A-Z]*)", re.sub(r"\bThe (?=object)|\bObject ", "", rest))
    if m is None:
        return None
    # without such a pair, all that is said is said of the first: "A is to the left of B and below B"
    side = _side(m[2] if pair else rest)
    return Reading(m[1], side, names[names[0] == m[1]]) if side else None


def _side(text: str) -> str | None:
    """The sides named, as a relation; an hour of a clock face is one or two sides."""
    hour = re.search(r"\b(1[0-2]|[1-9])\b(?! degree)", text)
    if hour:
        number = int(hour[1])
        sides = {"above"} if number in (10, 11, 12, 1, 2) else {"below"} if 4 <= number <= 8 else set()
        sides |= {"right"} if 1 <= number <= 5 else {"left"} if 7 <= number <= 11 else set()
    else:
        sides = {SIDE_OF[word] for word in re.findall(r"[a-z]+", text.lower()) if word in SIDE_OF}
    if not sides or any(OPPOSITE[side] in sides for side in sides):
        return None
    return "_".join(sorted(sides)) + "_of"


def answer(story: list[str], question: str) -> str | None:
    places = PlaceMap()
    for i, sentence in enumerate(story):
        if reading := read_sentence(sentence):
            memory = {"place": reading.a, "relation": reading.side, "other": reading.b}
            places.add({"id": str(i), "time": float(i), **memory}, i)
    m = QUESTION.fullmatch(question)
    bearing = places.relation_of(m[1], m[2]) if m else None
    return LABELS[bearing.step] if bearing else None


def template(sentence: str) -> str:
    """The sentence with its agents numbered in order of mention."""
    numbers: dict[str, str] = {}
    return re.sub(r"\b[A-Z]\b", lambda m: numbers.setdefault(m[0], f"#{len(numbers)}"), sentence)


def wrong_templates(asked: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Templates of stories of one observation that agree with fewer than `AGREES` of their labels."""
    counts: dict[str, Counter[bool]] = defaultdict(Counter)
    for row in asked:
        counts[template(row["story"][0])][row["right"]] += 1
    return {
        name: {"uses": count.total(), "agree": count[True]}
        for name, count in sorted(counts.items())
        if count[True] < AGREES * count.total()
    }


def ask_all(folder: Path, hops: int) -> Iterator[dict[str, Any]]:
    for row in json.loads((folder / f"clean_qa{hops}_test.json").read_text()).values():
        got = answer(row["story"], row["question"])
        yield {**row, "got": got, "right": got == row["label"]}


def summary(asked: list[dict[str, Any]]) -> dict[str, Any]:
    right = sum(row["right"] for row in asked)
    low, high = wilson(right, len(asked))
    return {"accuracy": right / len(asked), "low": low, "high": high, "n": len(asked)}


def measure(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = {}
    for hops in HOPS:
        started = time.perf_counter()
        asked = [*ask_all(folder, hops)]
        seconds = time.perf_counter() - started
        if hops == 1:
            report["wrong_templates"] = wrong_templates(asked)
        sound = [r for r in asked if not report["wrong_templates"].keys() & set(map(template, r["story"]))]
        report[str(hops)] = {
            "all": summary(asked),
            "sound": summary(sound),
            "ms": 1e3 * seconds / len(asked),
            "wrong_though_sound": [row for row in sound if not row["right"]][:20],
        }
        print(hops, report[str(hops)]["all"], report[str(hops)]["sound"], flush=True)
    return report


def markdown(report: dict[str, Any]) -> str:
    lines = [
        "| StepGame k | n | accuracy | 95% interval | n, sound templates | accuracy | 95% interval |",
        "|---|---|---|---|---|---|---|",
    ]
    for hops in map(str, HOPS):
        cells = [
            f"{part['n']} | {part['accuracy']:.4f} | {part['low']:.4f} to {part['high']:.4f}"
            for part in (report[hops]["all"], report[hops]["sound"])
        ]
        lines.append(f"| {hops} | {' | '.join(cells)} |")
    lines += ["", "| template with wrong labels | uses at k = 1 | label agrees |", "|---|---|---|"]
    for name, count in report["wrong_templates"].items():
        lines.append(f"| {name} | {count['uses']} | {count['agree']} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/stepgame.json"))
    arguments = parser.parse_args()
    report = {"command": "python benchmarks/stepgame.py FOLDER", "hardware": platform.machine()}
    report |= measure(arguments.folder)
    write_json(arguments.out, report)
    arguments.out.with_suffix(".md").write_text(markdown(report) + "\n")
    print(markdown(report))


if __name__ == "__main__":
    main()
