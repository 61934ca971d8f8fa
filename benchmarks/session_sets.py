"""Facts and questions for `session.py`: generated sets, letta_core_memory, LoCoMo."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.public_sets import letta_rows, locomo_turns, named_turns
from jobs.demo.demo_data import EPISODIC, FAMILIES, FIRST, LAST, RELATIONAL, SPATIAL, START, Topic

TARGETS = 20  # facts of an own set that are asked about


@dataclass(frozen=True, kw_only=True)
class Fact:
    id: str
    text: str
    time: float


@dataclass(frozen=True, kw_only=True)
class Asked:
    """`style`: the wording family or the set's own category; `evidence`: ids of the facts that answer it."""

    text: str
    answers: tuple[str, ...]
    style: str
    evidence: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class FactSet:
    name: str
    facts: list[Fact]
    questions: list[Asked]


def own(size: int, seed: int) -> FactSet:
    """`size` invented facts of all three kinds and 60 questions in three wording families, about up to 20 facts
    that lie anywhere in the history. Names are all different; answers are not."""
    rng = random.Random(f"{seed}/{size}")
    words = [first + last for first in FIRST for last in LAST]
    names: dict[str, None] = {}
    while len(names) < size:
        names[" ".join(rng.sample(words, 2))] = None
    topics: Sequence[Topic] = (*EPISODIC, *RELATIONAL, *SPATIAL)
    facts, makers = [], []
    for number, name in enumerate(names):
        topic = rng.choice(topics)
        named = name if topic.kind != "spatial" else name.replace(" ", "")
        answer = rng.choice(topic.answers)
        text = topic.text.format(x=named, a=answer)
        facts.append(Fact(id=f"own-{number:04d}", text=text, time=START + 3600 * number))
        makers.append((topic, named, answer))
    questions = []
    targets = sorted(rng.sample(range(size), min(size, TARGETS)))
    for place in targets:
        topic, named, answer = makers[place]
        for family in FAMILIES:
            for wording in rng.sample(getattr(topic, family), max(1, TARGETS // len(targets))):
                asked = wording.format(x=named)
                evidence = frozenset([facts[place].id])
                questions.append(Asked(text=asked, answers=(answer,), style=family, evidence=evidence))
    return FactSet(name="own", facts=facts, questions=questions)


def letta(folder: Path, size: int, most: int, seed: int) -> FactSet:
    """The facts of the first sets, ten each, and at most `most` of their questions, drawn by seed."""
    ids: dict[str, str] = {}
    questions = []
    for row in letta_rows(folder):
        if len(ids) >= size and not all(fact in ids for fact in row.facts):
            continue
        for fact in row.facts:
            ids.setdefault(fact, f"letta-{len(ids):04d}")
        evidence = frozenset(ids[row.facts[i]] for i in row.supporting)
        style = "one fact" if len(evidence) == 1 else "several facts" if evidence else "unknown"
        questions.append(Asked(text=row.question, answers=(row.answer,), style=style, evidence=evidence))
    found = [Fact(id=id, text=text, time=START + 60 * place) for place, (text, id) in enumerate(ids.items())]
    return FactSet(name="letta", facts=found, questions=_some(questions, most, seed))


LOCOMO = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop"}  # 5 has no answer to find


def locomo(file: Path, number: int, most: int, seed: int) -> FactSet:
    """One conversation, a turn a memory, with its date and speaker; questions that have an answer."""
    sample = json.loads(file.read_text())[number]
    facts: list[Fact] = []
    for turn in locomo_turns(sample["conversation"]):
        text = f"{turn.held:%d %B %Y}, {turn.speaker}: {turn.text}"
        facts.append(Fact(id=turn.id, text=text, time=turn.held.timestamp() + len(facts) * 1e-3))
    known = {fact.id for fact in facts}
    questions = []
    for asked in sample["qa"]:
        if asked["category"] in LOCOMO and "answer" in asked:
            questions.append(
                Asked(
                    text=asked["question"],
                    answers=(str(asked["answer"]),),
                    style=LOCOMO[asked["category"]],
                    evidence=frozenset(known.intersection(named_turns(asked["evidence"]))),
                )
            )
    return FactSet(name=f"locomo-{number}", facts=facts, questions=_some(questions, most, seed))


def _some(questions: list[Asked], most: int, seed: int) -> list[Asked]:
    if len(questions) <= most:
        return questions
    kept = sorted(random.Random(seed).sample(range(len(questions)), most))
    return [questions[place] for place in kept]
