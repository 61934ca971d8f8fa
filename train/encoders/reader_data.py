"""Training scenes for the reader: a few memories, and questions whose answers lie in one or several of them.

All is invented and drawn by seed, without end. Topics, wordings, names and answers are others than the demo's
(`jobs.demo_data`), which benchmarks ask about: what is measured must never have been trained on.

Kinds of questions: `one` fact; `who` (the same, asked the other way round); `which` of two people; `more` (two
numbers compared); `count`; `chain` (one fact leads to the next). All but the first two need several facts at once,
which is where blocks that do not see each other lose.
"""

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class Topic:
    """One sort of fact. `{x}` is who, `{a}` the answer. `who` asks for the person, `which` fits "Which of the two, X or
    Y, ...?", `more` compares numbers, `count` asks how many, `of` what a chain says of somebody: "the {of} of X"."""

    texts: tuple[str, ...]
    answers: tuple[str, ...]
    asks: tuple[str, ...]
    who: str
    which: str
    count: str = ""
    more: str = ""


@dataclass(frozen=True, kw_only=True)
class Question:
    """`answers`: any of them is right, unless one of `wrong` is named beside it."""

    text: str
    answers: tuple[str, ...]
    kind: str
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Memories in the order they stand in, and what is asked about them."""

    memories: tuple[str, ...]
    questions: tuple[Question, ...]


NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
TOPICS = (
    Topic(
        texts=("{x} gets around in a {a}.", "Whenever it rains, {x} still drives the old {a}."),
        answers=("van", "tractor", "jeep", "scooter", "minibus", "limousine", "truck", "motorbike"),
        asks=("What does {x} drive?", "Which vehicle belongs to {x}?", "{x} drives what kind of vehicle?"),
        who="Who drives the {a}?", which="drives the {a}", count="How many people drive a {a}?",
    ),
    Topic(
        texts=("{x} always orders {a} at the corner table.", "Nothing makes {x} happier than a glass of {a}."),
        answers=("lemonade", "cocoa", "cider", "espresso", "milk", "mint tea", "tomato juice", "ginger beer"),
        asks=("What does {x} drink?", "What is the favourite drink of {x}?", "Tell me what {x} orders."),
        who="Who likes to drink {a}?", which="drinks {a}", count="How many people drink {a}?",
    ),
    Topic(
        texts=("{x} trains {a} three evenings a week.", "The coach says that {x} was born for {a}."),
        answers=("tennis", "fencing", "rowing", "judo", "archery", "hockey", "volleyball", "climbing"),
        asks=("Which sport does {x} do?", "What sport does {x} train?", "{x} is an athlete in which sport?"),
        who="Who trains {a}?", which="does {a}", count="How many people do {a}?",
    ),
    Topic(
        texts=("{x} celebrates a birthday in {a}.", "The cake for {x} is baked every {a}."),
        answers=("January", "February", "March", "April", "June", "August", "October", "November"),
        asks=("In which month is the birthday of {x}?", "When does {x} have a birthday?", "Month of {x}'s birth?"),
        who="Whose birthday is in {a}?", which="has a birthday in {a}",
        count="How many people have their birthday in {a}?",
    ),
    Topic(
        texts=("{x} is terribly afraid of {a}.", "Ever since that summer, {x} cannot stand {a}."),
        answers=("spiders", "thunder", "heights", "clowns", "snakes", "needles", "ghosts", "deep water"),
        asks=("What is {x} afraid of?", "What frightens {x}?", "Tell me the fear of {x}."),
        who="Who is afraid of {a}?", which="is afraid of {a}", count="How many people are afraid of {a}?",
    ),
    Topic(
        texts=("{x} teaches {a} at the evening college.", "The classes of {x} in {a} are always full."),
        answers=("chemistry", "history", "algebra", "biology", "economics", "geography", "philosophy", "drawing"),
        asks=("What subject does {x} teach?", "What can I learn from {x}?", "{x} gives classes in what?"),
        who="Who teaches {a}?", which="teaches {a}", count="How many people teach {a}?",
    ),
    Topic(
        texts=("{x} planted a {a} behind the shed.", "In the yard of {x} stands a tall {a}."),
        answers=("walnut tree", "palm", "cedar", "cherry tree", "lemon tree", "chestnut", "fig tree", "poplar"),
        asks=("Which tree did {x} plant?", "What grows in the yard of {x}?", "{x} has what tree?"),
        who="Who has a {a}?", which="has the {a}", count="How many people have a {a}?",
    ),
    Topic(
        texts=("{x} grew up beside the river {a}.", "As a child, {x} swam in the {a} every summer."),
        answers=("Danube", "Rhine", "Ganges", "Volga", "Mekong", "Loire", "Hudson", "Tiber"),
        asks=("Which river did {x} grow up at?", "In which river did {x} swim?", "{x} comes from which river?"),
        who="Who grew up at the {a}?", which="grew up at the {a}", count="How many people grew up at the {a}?",
    ),
    Topic(
        texts=("{x} won a {a} in the lottery.", "First prize went to {x}: a {a}."),
        answers=("television", "bicycle", "telescope", "sofa", "canoe", "sewing machine", "tent", "microscope"),
        asks=("What did {x} win?", "Which prize went to {x}?", "Tell me the prize of {x}."),
        who="Who won the {a}?", which="won the {a}", count="How many people won a {a}?",
    ),
    Topic(
        texts=("{x} wears a {a} even at dinner.", "Nobody has seen {x} without the {a}."),
        answers=("scarf", "cowboy hat", "raincoat", "bow tie", "cape", "monocle", "beret", "leather jacket"),
        asks=("What does {x} wear?", "What is {x} never seen without?", "{x} is dressed in what?"),
        who="Who wears a {a}?", which="wears the {a}", count="How many people wear a {a}?",
    ),
    Topic(
        texts=("{x} has {a} grandchildren.", "Around the table of {x} sit {a} grandchildren."),
        answers=NUMBERS,
        asks=("How many grandchildren does {x} have?", "What is the number of {x}'s grandchildren?"),
        who="Who has {a} grandchildren?", which="has {a} grandchildren", more="has more grandchildren",
    ),
    Topic(
        texts=("{x} owns {a} sailing boats.", "In the bay lie {a} boats that belong to {x}."),
        answers=NUMBERS,
        asks=("How many boats does {x} own?", "What is the number of boats of {x}?"),
        who="Who owns {a} boats?", which="owns {a} boats", more="owns more boats",
    ),
)  # fmt: skip
TIES = {  # what leads from one person to another in a chain
    "neighbour": "The neighbour of {x} is {y}.",
    "boss": "{x} has a strict boss, {y}.",
    "cousin": "{x} is glad to have {y} as a cousin.",
    "best friend": "{x} met {y} at school, and they have been best friends since.",
    "dentist": "For every toothache {x} goes to {y}, a dentist.",
}
ONSETS = "Ar Bal Cor Dai Em Far Gus Hei Ig Jas Kor Lu Mor Nol Os Pip Rav Sil Tam Ur Vin Wil Yor".split()
ENDINGS = "a en ia o us ette ley ric ford son well mond by dell".split()
FIRST_NAMES = (
    "Agnes Bruno Clara Diego Edith Felix Greta Hugo Irene Jakob Karin Leon Mabel Noel Priya Rosa".split()
)
LAST_NAMES = (
    "Abbot Becker Chand Duarte Ekdal Frost Gomez Huber Ibsen Jansen Keller Lang Munro Novak Ortiz".split()
)
SIZES = (2, 2, 3, 3, 3, 4, 4, 5, 6, 7, 8)  # facts in a scene; as many as recall brings are the most
WORDS_FOR = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")


def scene(seed: int, number: int, questions: int) -> Scene:
    """The `number`-th scene of a seed: 2 to 8 memories of 1 to 3 topics, `questions` questions at most."""
    rng = random.Random(f"reader/{seed}/{number}")
    people = _names(rng, 9)
    topics = rng.sample(TOPICS, rng.randint(1, 3))
    facts = [(people[i], topics[i % len(topics)]) for i in range(rng.choice(SIZES))]
    some = rng.choice((2, 4, 8))  # answers a topic is given here: with few, several people share one
    pools = {id(topic): rng.sample(topic.answers, min(some, len(topic.answers))) for topic in topics}
    told = [(name, topic, rng.choice(pools[id(topic)])) for name, topic in facts]
    memories = [rng.choice(topic.texts).format(x=name, a=answer) for name, topic, answer in told]
    asked = [*_singles(rng, told), *_several(rng, told)]
    if len(told) < 8 and rng.random() < 0.6:  # somebody else, known only by whom they know
        tie, (name, topic, answer) = rng.choice(list(TIES)), rng.choice(told)
        memories.append(TIES[tie].format(x=people[8], y=name))
        ask = rng.choice(topic.asks).format(x=f"the {tie} of {people[8]}")
        asked.append(Question(text=ask, answers=_as_written(answer), kind="chain"))
        asked.append(Question(text=_ask_tie(rng, people[8], tie), answers=(name,), kind="one"))
    rng.shuffle(memories)
    # Of every kind something, however many facts there are of the first.
    rng.shuffle(asked)
    order = sorted(range(len(asked)), key=lambda i: sum(q.kind == asked[i].kind for q in asked[:i]))
    return Scene(memories=tuple(memories), questions=tuple(asked[i] for i in order[:questions]))


def data_digest(seed: int, scenes: int, questions: int) -> str:
    """Of the first `scenes` scenes of a seed, 16 hex digits."""
    total = hashlib.blake2b(digest_size=8)
    for number in range(scenes):
        total.update(json.dumps(asdict(scene(seed, number, questions)), sort_keys=True).encode())
    return total.hexdigest()


_Told = list[tuple[str, Topic, str]]


def _singles(rng: random.Random, told: _Told) -> Iterator[Question]:
    for name, topic, answer in told:
        yield Question(text=rng.choice(topic.asks).format(x=name), answers=_as_written(answer), kind="one")
        if sum(other is topic and value == answer for _, other, value in told) == 1:
            yield Question(text=topic.who.format(a=answer), answers=(name,), kind="who")


def _several(rng: random.Random, told: _Told) -> Iterator[Question]:
    for topic in {id(topic): topic for _, topic, _ in told}.values():
        of_topic = [(name, answer) for name, other, answer in told if other is topic]
        if topic.count:
            answer = rng.choice(of_topic)[1]
            count = sum(value == answer for _, value in of_topic)
            yield Question(
                text=topic.count.format(a=answer), answers=(str(count), WORDS_FOR[count]), kind="count"
            )
        if len(of_topic) < 2:
            continue
        (one, first), (other, second) = rng.sample(of_topic, 2)
        if first == second:
            continue
        asked = f"Which of the two, {one} or {other}, {topic.which.format(a=first)}?"
        yield Question(text=asked, answers=(one,), wrong=(other,), kind="which")
        if topic.more:
            more, less = (one, other) if NUMBERS.index(first) > NUMBERS.index(second) else (other, one)
            asked = f"Who {topic.more}, {one} or {other}?"
            yield Question(text=asked, answers=(more,), wrong=(less,), kind="more")


def _ask_tie(rng: random.Random, name: str, tie: str) -> str:
    return rng.choice(("Who is the {tie} of {x}?", "What is the name of {x}'s {tie}?")).format(
        x=name, tie=tie
    )


def _as_written(answer: str) -> tuple[str, ...]:
    """The answer, and where it is a number also in digits."""
    return (answer, str(NUMBERS.index(answer) + 2)) if answer in NUMBERS else (answer,)


def _names(rng: random.Random, count: int) -> list[str]:
    """Half of them invented, half ordinary; no two share a word."""
    words = rng.sample([onset + ending for onset in ONSETS for ending in ENDINGS], 2 * count)
    firsts, lasts = rng.sample(FIRST_NAMES, count), rng.sample(LAST_NAMES, count)
    ordinary = [f"{first} {last}" for first, last in zip(firsts, lasts, strict=True)]
    invented = [f"{words[2 * i]} {words[2 * i + 1]}" for i in range(count)]
    return [rng.choice(pair) for pair in zip(ordinary, invented, strict=True)]
