"""Generated episodes of a memory's life: facts, updates, deletions, conclusions, and questions about all of it.

Each episode is a namespace with people of invented names. What is asked, and what the right answer is:

    current   a fact that was told and still holds            its value
    updated   a fact that a later statement replaced          the new value
    deleted   a fact that was told and then erased            "I don't know"
    cascade   a conclusion (`context.derived_from`) whose     "I don't know"
              source was erased or has ended
    absent    somebody or something never told of             "I don't know"

Everything is drawn by the seed. Half of the facts are told as sentences, half as triples.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
START, DAY = 1_735_689_600.0, 86_400.0  # 2025-01-01
SYLLABLES = "ba ce di fo gu ha ji ko lu me ni po qua re sa to vu wi xa yo zel bran dor fen gil".split()

# relation: (statement, questions, values)
ATTRIBUTES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "lives_in": ("{x} lives in {v}.", ("Where does {x} live?", "In which city is {x} at home?"),
                 ("Lisbon", "Graz", "Turin", "Oslo", "Ghent", "Porto", "Malmo", "Brno")),
    "works_as": ("{x} works as a {v}.", ("What is {x}'s job?", "What does {x} do for a living?"),
                 ("baker", "pilot", "nurse", "welder", "judge", "tailor", "florist", "plumber")),
    "plays": ("{x} plays the {v}.", ("Which instrument does {x} play?", "What does {x} make music with?"),
              ("violin", "oboe", "harp", "tuba", "banjo", "cello", "flute", "drums")),
    "pet": ("{x} keeps a {v} as a pet.", ("What pet does {x} have?", "Which animal lives with {x}?"),
            ("parrot", "hamster", "tortoise", "ferret", "goat", "rabbit", "gecko", "canary")),
    "likes_dish": ("{x}'s favourite dish is {v}.", ("What is {x}'s favourite dish?", "What does {x} like to eat most?"),
                   ("risotto", "goulash", "paella", "ramen", "lasagna", "curry", "falafel", "pierogi")),
    "drives": ("{x} drives a {v} car.", ("What colour is {x}'s car?", "Which colour is the car that {x} drives?"),
               ("red", "green", "yellow", "silver", "orange", "purple", "white", "brown")),
    "speaks": ("{x} is learning {v}.", ("Which language is {x} learning?", "What language does {x} study?"),
               ("Finnish", "Hungarian", "Swahili", "Korean", "Welsh", "Latin", "Turkish", "Greek")),
    "collects": ("{x} collects old {v}.", ("What does {x} collect?", "What is in the collection of {x}?"),
                 ("stamps", "coins", "maps", "clocks", "keys", "radios", "bottles", "postcards")),
}  # fmt: skip
NEVER = (  # asked of people that are known, and never told
    "What is {x}'s shoe size?", "On which day was {x} born?", "What is the name of {x}'s sister?",
    "Which school did {x} go to?", "How tall is {x}?", "What is {x}'s phone number?",
    "Which film does {x} like best?", "Who is {x}'s dentist?",
)  # fmt: skip
CONCLUSIONS = {  # relation: (conclusion from a fact, question, value by the fact's value)
    "lives_in": ("The country in which {x} pays taxes is {v}.", "In which country does {x} pay taxes?",
                 dict(Lisbon="Portugal", Graz="Austria", Turin="Italy", Oslo="Norway", Ghent="Belgium",
                      Porto="Portugal", Malmo="Sweden", Brno="Czechia")),
    "works_as": ("{x} wears a {v} at work.", "What does {x} wear at work?",
                 dict(baker="apron", pilot="uniform", nurse="tunic", welder="mask", judge="robe", tailor="thimble",
                      florist="smock", plumber="overall")),
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """`kind` as above; `answer` is what must be said (current, updated) or must not (deleted, cascade); `at`: when."""

    kind: str
    question: str
    answer: str | None
    memory: str | None = None


@dataclass
class Episode:
    """Steps in order: `("write", memory)` or `("forget", id)`, and the questions afterwards."""

    namespace: str
    steps: list[tuple[str, Any]] = field(default_factory=list)
    questions: list[Asked] = field(default_factory=list)


def episodes(seed: int, count: int, people: int = 4) -> Iterator[Episode]:
    rng = random.Random(seed)
    for number in range(count):
        yield _episode(rng, f"episode-{seed}-{number}", people)


def _episode(rng: random.Random, namespace: str, people: int) -> Episode:
    made = Episode(namespace)
    names = [_name(rng) for _ in range(people)]
    facts = [(name, relation) for name in names for relation in rng.sample(sorted(ATTRIBUTES), 5)]
    rng.shuffle(facts)
    told: dict[tuple[str, str], tuple[str, str]] = {}
    for name, relation in facts:
        value = rng.choice(ATTRIBUTES[relation][2])
        told[name, relation] = _tell(made, name, relation, value)
    fates = rng.sample(facts, 9)
    for name, relation in fates[:3]:
        others = [value for value in ATTRIBUTES[relation][2] if value != told[name, relation][1]]
        told[name, relation] = _tell(made, name, relation, rng.choice(others))
        made.questions.append(_ask(rng, "updated", name, relation, told[name, relation]))
    for name, relation in fates[3:6]:
        made.steps.append(("forget", told[name, relation][0]))
        made.questions.append(_ask(rng, "deleted", name, relation, told[name, relation]))
    for name, relation in fates[6:]:
        made.questions.append(_ask(rng, "current", name, relation, told[name, relation]))
    for name in rng.sample(names, 2):
        _conclude(made, rng, name, told)
    absent = rng.choice(names)
    made.questions.append(Asked("absent", rng.choice(NEVER).format(x=absent), None))
    relation = rng.choice(sorted(ATTRIBUTES.keys() - {r for n, r in facts if n == absent}))
    made.questions.append(Asked("absent", rng.choice(ATTRIBUTES[relation][1]).format(x=absent), None))
    stranger = rng.choice(ATTRIBUTES[rng.choice(sorted(ATTRIBUTES))][1]).format(x=_name(rng))
    made.questions.append(Asked("absent", stranger, None))
    return made


def _tell(made: Episode, name: str, relation: str, value: str) -> tuple[str, str]:
    """Write the fact; returns its id and value. Names of even length speak in triples."""
    number = len(made.steps)
    text = ATTRIBUTES[relation][0].format(x=name, v=value)
    memory: Json = {"id": f"{made.namespace}-{number}", "text": text, "time": START + number * DAY}
    if len(name) % 2 == 0 and relation == "lives_in":
        memory |= {"kind": "relational", "subject": name, "relation": relation, "object": value}
    made.steps.append(("write", memory))
    return memory["id"], value


def _ask(rng: random.Random, kind: str, name: str, relation: str, told: tuple[str, str]) -> Asked:
    return Asked(kind, rng.choice(ATTRIBUTES[relation][1]).format(x=name), told[1], told[0])


def _conclude(
    made: Episode, rng: random.Random, name: str, told: dict[tuple[str, str], tuple[str, str]]
) -> None:
    """A fact, a conclusion from it, and then the fact is erased."""
    relation = rng.choice(sorted(CONCLUSIONS))
    text, question, values = CONCLUSIONS[relation]
    value = rng.choice(sorted(values))
    id, _ = _tell(made, name, relation, value)
    memory: Json = {
        "id": f"{id}-c",
        "text": text.format(x=name, v=values[value]),
        "context": {"derived_from": [id]},
    }
    made.steps.append(("write", {**memory, "time": START + len(made.steps) * DAY}))
    made.steps.append(("forget", id))
    made.questions.append(Asked("cascade", question.format(x=name), values[value], memory["id"]))


def _name(rng: random.Random) -> str:
    first, last = ("".join(rng.sample(SYLLABLES, 2)).capitalize() for _ in range(2))
    return f"{first} {last}"
