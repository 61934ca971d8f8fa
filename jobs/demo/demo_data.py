"""The demo's world: invented people, places and routes, made from a seed. Open `write_demo` first.

Every fact is one memory with one short answer and questions in three wording families that share no
syntax: `train` are plain wh-questions (they become training forms), `audit` are commands (they watch the
training), `test` put the statement first and ask last (they measure; nothing else ever sees them).
"""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import write_bytes, write_json

FAMILIES = ("train", "audit", "test")
START = 1_772_352_000.0  # 2026-03-01T08:00:00Z; a memory every six hours after it


@dataclass(frozen=True, kw_only=True)
class Topic:
    """One sort of fact. `{x}` is the person or place, `{a}` the answer; `fields` names the kind's own."""

    kind: str
    text: str
    answers: tuple[str, ...]
    train: tuple[str, ...]
    audit: tuple[str, ...]
    test: tuple[str, ...]
    relation: str = ""


@dataclass(frozen=True, kw_only=True)
class DemoFiles:
    experiences: Path
    questions: Path
    transcript: Path
    num_memories: int
    num_questions: int


EPISODIC = (
    Topic(
        kind="episodic",
        text="{x} came home from the shelter with a {a} and would not stop smiling.",
        answers=("parrot", "rabbit", "turtle", "hamster", "lizard", "goat"),
        train=(
            "What animal did {x} adopt?",
            "Which pet does {x} have?",
            "What kind of animal lives with {x}?",
            "Which animal did {x} bring home from the shelter?",
        ),
        audit=(
            "Name the animal that {x} adopted.",
            "Say which pet {x} keeps.",
            "Give the sort of pet {x} owns.",
        ),
        test=(
            "{x} went to the shelter and adopted an animal. Which one was it?",
            "Since {x} now has a pet, that pet must be what animal?",
            "I heard {x} keeps an animal at home; what is it?",
        ),
    ),
    Topic(
        kind="episodic",
        text="After a long winter {x} packed every box and moved to {a}.",
        answers=("Lisbon", "Oslo", "Cairo", "Dublin", "Toronto", "Athens"),
        train=(
            "Where does {x} live?",
            "Which city did {x} move to?",
            "What city is the home of {x}?",
            "In which city does {x} live now?",
        ),
        audit=("Name the city {x} lives in.", "Say where {x} moved.", "Give the home town of {x}."),
        test=(
            "{x} moved to another city. Which one was it?",
            "To visit {x} at home, I would have to travel to what city?",
            "I heard {x} has moved away; to where?",
        ),
    ),
    Topic(
        kind="episodic",
        text="At the street party {x} played the {a} for everyone until midnight.",
        answers=("violin", "trumpet", "piano", "guitar", "flute", "drums"),
        train=(
            "What instrument does {x} play?",
            "Which instrument did {x} play at the party?",
            "What musical instrument can {x} play?",
            "Which instrument is played by {x}?",
        ),
        audit=(
            "Name the instrument of {x}.",
            "Say what {x} plays in music.",
            "Give the instrument {x} has mastered.",
        ),
        test=(
            "{x} made music at the party. On which instrument?",
            "When {x} makes music, the instrument is what?",
            "I heard {x} is a musician; playing what?",
        ),
    ),
    Topic(
        kind="episodic",
        text="On Sunday {x} took a brush and painted the front door {a}.",
        answers=("purple", "orange", "yellow", "silver", "pink", "green"),
        train=(
            "What colour did {x} paint the door?",
            "Which colour is the door of {x}?",
            "What is the colour of {x}'s front door?",
            "Which colour did {x} choose for the door?",
        ),
        audit=(
            "Name the colour of the door of {x}.",
            "Say how {x} painted the door.",
            "Give the door colour {x} chose.",
        ),
        test=(
            "{x} painted the front door on Sunday. In which colour?",
            "Looking at the house of {x}, I would see a door of what colour?",
            "I heard {x} has a newly painted door; what colour is it?",
        ),
    ),
    Topic(
        kind="episodic",
        text="For the harvest feast {x} stayed in the kitchen all day and cooked {a}.",
        answers=("soup", "pasta", "pizza", "curry", "pancakes", "rice"),
        train=(
            "What did {x} cook for the feast?",
            "Which dish did {x} cook?",
            "What dish did {x} make for the harvest feast?",
            "Which food was cooked by {x}?",
        ),
        audit=(
            "Name the dish that {x} cooked.",
            "Say what {x} made in the kitchen.",
            "Give the food {x} prepared.",
        ),
        test=(
            "{x} cooked all day for the feast. What was the dish?",
            "When {x} brought food to the feast, it was what?",
            "I heard {x} cooked for everyone; what did they eat?",
        ),
    ),
)

RELATIONAL = (
    Topic(
        kind="relational",
        relation="works_as",
        text="{x} works as a {a}.",
        answers=("carpenter", "nurse", "pilot", "baker", "lawyer", "farmer"),
        train=(
            "What is the job of {x}?",
            "What does {x} do for a living?",
            "Which profession does {x} have?",
            "What does {x} work as?",
        ),
        audit=("Name the profession of {x}.", "Say what {x} works as.", "Give the job {x} holds."),
        test=(
            "{x} goes to work every morning. In which job?",
            "To earn a living, {x} has taken the job of what?",
            "I heard {x} likes the job; what is it?",
        ),
    ),
    Topic(
        kind="relational",
        relation="collects",
        text="{x} collects {a}.",
        answers=("stamps", "coins", "clocks", "shells", "books", "maps"),
        train=(
            "What does {x} collect?",
            "Which things does {x} collect?",
            "What is in the collection of {x}?",
            "What is collected by {x}?",
        ),
        audit=(
            "Name the things that {x} collects.",
            "Say what {x} collects.",
            "Give the contents of the collection of {x}.",
        ),
        test=(
            "{x} has a large collection at home. Of which things?",
            "As a collector, {x} is always looking for what?",
            "I heard {x} is a collector; of what?",
        ),
    ),
    Topic(
        kind="relational",
        relation="speaks",
        text="{x} speaks {a}.",
        answers=("Italian", "Russian", "Arabic", "Dutch", "Korean", "Greek"),
        train=(
            "What language does {x} speak?",
            "Which language is spoken by {x}?",
            "In what language does {x} talk?",
            "Which language does {x} know?",
        ),
        audit=("Name the language of {x}.", "Say which language {x} speaks.", "Give the language {x} uses."),
        test=(
            "{x} talks in a foreign language. Which one is it?",
            "When {x} talks, the language is what?",
            "I heard {x} is fluent in a language; which one?",
        ),
    ),
)

SPATIAL = (
    Topic(
        kind="spatial",
        relation="next_to",
        text="The {x} Inn is next to the {a}.",
        answers=("library", "museum", "bakery", "school"),
        train=(
            "What is next to the {x} Inn?",
            "Which building does the {x} Inn stand next to?",
            "What building is beside the {x} Inn?",
            "Which building is the neighbour of the {x} Inn?",
        ),
        audit=(
            "Name the building beside the {x} Inn.",
            "Say what the {x} Inn stands next to.",
            "Give the neighbour of the {x} Inn.",
        ),
        test=(
            "The {x} Inn has a building right beside it. Which one?",
            "Walking out of the {x} Inn, next door I would find what?",
            "I heard the {x} Inn has a neighbour; what building is it?",
        ),
    ),
    Topic(
        kind="spatial",
        relation="leads_to",
        text="The {x} Path leads to the {a}.",
        answers=("harbour", "castle", "lake", "forest"),
        train=(
            "Where does the {x} Path lead?",
            "What place does the {x} Path lead to?",
            "Which place is at the end of the {x} Path?",
            "Where does the {x} Path end?",
        ),
        audit=(
            "Name the place the {x} Path leads to.",
            "Say where the {x} Path goes.",
            "Give the end of the {x} Path.",
        ),
        test=(
            "The {x} Path goes a long way and then ends. At which place?",
            "Following the {x} Path to its end, I would arrive at what place?",
            "I heard the {x} Path is a fine walk; to what place?",
        ),
    ),
)

CHAT = (
    ("user", "Good evening! We have just come back from {place} and our boots are full of sand."),
    ("assistant", "Welcome back. Shall I note anything about {place} for the next trip?"),
    ("user", "Yes: the gate of {place} closes at six, and {person} has the spare key."),
    ("assistant", "Noted. The gate closes at six and {person} has the spare key."),
)

FIRST = (
    "Bre",
    "Cal",
    "Dru",
    "Fen",
    "Gri",
    "Hol",
    "Jor",
    "Kel",
    "Lor",
    "Mev",
    "Nar",
    "Pel",
    "Quil",
    "Sor",
    "Tav",
    "Vel",
    "Zel",
)
LAST = ("dan", "mira", "nik", "tho", "vo", "lisk", "rana", "bek", "sul", "wen")


def write_demo(folder: Path, seed: int = 1337) -> DemoFiles:
    """Write `experiences.jsonl`, `questions.jsonl` and `transcript.json` into `folder`, durably.

    The same seed gives the same bytes. 20 memories (10 episodic, 6 relational, 4 spatial), 3 test questions
    each; the transcript has no questions.
    """
    rng = random.Random(seed)
    names = invent_names(rng, 20)
    memories = list(_memories(rng, names))
    check_families(memories)
    questions = [
        {"memory": memory["id"], "kind": memory["kind"], **cue}
        for memory in memories
        for cue in memory["cues"]
        if cue["family"] == "test"
    ]
    files = DemoFiles(
        experiences=folder / "experiences.jsonl",
        questions=folder / "questions.jsonl",
        transcript=folder / "transcript.json",
        num_memories=len(memories),
        num_questions=len(questions),
    )
    write_bytes(files.experiences, _json_lines(memories))
    write_bytes(files.questions, _json_lines(questions))
    write_json(files.transcript, _transcript(names[-1], names[0]))
    return files


def invent_names(rng: random.Random, count: int) -> list[str]:
    """`count` two-word names; no word occurs twice, so that no name shares a part with another."""
    words = [first + last for first in FIRST for last in LAST]
    picked = rng.sample(words, 2 * count)
    return [f"{picked[2 * i]} {picked[2 * i + 1]}" for i in range(count)]


def check_families(memories: list[dict[str, Any]]) -> None:
    """Raise `AssertionError` where a question of one family equals one of another, case and marks aside."""
    seen: dict[str, str] = {}
    for memory in memories:
        for cue in memory["cues"]:
            plain = " ".join(re.findall(r"\w+", cue["question"].lower()))
            other = seen.setdefault(plain, cue["family"])
            assert other == cue["family"], f"{plain!r} is in the families {other} and {cue['family']}"


def _memories(rng: random.Random, names: list[str]) -> Iterator[dict[str, Any]]:
    """Ten people have one episodic memory each, six of them also a relational one; four places are spatial."""
    people, places = names[:10], names[10:14]
    plan = [
        *_assign(rng, EPISODIC, people),
        *_assign(rng, RELATIONAL, rng.sample(people, 6)),
        *_assign(rng, SPATIAL, [name.split()[0] for name in places]),
    ]
    for number, (topic, name, answer) in enumerate(plan):
        text = topic.text.format(x=name, a=answer)
        memory: dict[str, Any] = {
            "id": f"demo-{number:02d}",
            "kind": topic.kind,
            "text": text,
            "time": START + 6 * 3600 * number,
            "context": {"source": "demo"},
        }
        if topic.kind == "episodic":
            memory["conversation"] = f"evening-{number // 5 + 1}"
        elif topic.kind == "relational":
            memory |= {"subject": name, "relation": topic.relation, "object": answer, "confidence": 0.9}
        else:
            memory |= {
                "place": text.split(" is ")[0].split(" leads ")[0],
                "relation": topic.relation,
                "other": answer,
            }
        memory["cues"] = [
            {"question": question.format(x=name), "answer": answer, "family": family}
            for family in FAMILIES
            for question in getattr(topic, family)
        ]
        yield memory


def _assign(
    rng: random.Random, topics: tuple[Topic, ...], names: list[str]
) -> Iterator[tuple[Topic, str, str]]:
    """Deal the names out to the topics in turn; no answer is used twice within a topic."""
    decks = [rng.sample(topic.answers, len(topic.answers)) for topic in topics]
    for number, name in enumerate(names):
        topic = number % len(topics)
        yield topics[topic], name, decks[topic].pop()


def _transcript(place: str, person: str) -> dict[str, Any]:
    where = f"the {place.split()[0]} Gardens"
    return {
        "id": "demo-chat",
        "messages": [
            {"role": role, "content": text.format(place=where, person=person)} for role, text in CHAT
        ],
    }


def _json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode()
