"""Test of retained general abilities: generated one-word choices from grammar and common knowledge.

The word lists are small and common, so that a 135M model answers most items with a clear margin and the count changes
only with a real loss. No item is about the demo's invented world.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SanityItem:
    """`prefix` continued by the right word against the wrong one; both words begin with a space."""

    topic: str
    prefix: str
    right: str
    wrong: str


NOUNS = "dog cat boy girl teacher doctor farmer bird horse child student driver king soldier tree car book".split()
PLURALS = {"child": "children"}
PLACES = ("near the window", "in the garden", "behind the house", "next to the road")
SINGULAR_VERBS = (("is", "are"), ("was", "were"), ("has", "have"))
CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Japan": "Tokyo",
    "Russia": "Moscow", "China": "Beijing", "Sweden": "Stockholm", "Austria": "Vienna", "Poland": "Warsaw",
    "Hungary": "Budapest", "Belgium": "Brussels", "Peru": "Lima", "Cuba": "Havana", "Kenya": "Nairobi",
    "Turkey": "Ankara", "India": "New Delhi", "Thailand": "Bangkok", "Iraq": "Baghdad", "Iran": "Tehran",
}  # fmt: skip
CLASSES = {
    "bird": ("robin", "eagle", "sparrow", "pigeon", "owl"),
    "fish": ("salmon", "trout", "tuna", "shark", "cod"),
    "fruit": ("apple", "banana", "peach", "pear", "mango"),
    "vegetable": ("carrot", "potato", "cabbage", "onion", "spinach"),
    "metal": ("iron", "copper", "gold", "zinc", "aluminium"),
    "vehicle": ("truck", "bus", "van", "taxi", "tractor"),
    "insect": ("bee", "beetle", "butterfly", "mosquito", "ant"),
    "tree": ("oak", "pine", "maple", "birch", "willow"),
}
OPPOSITES = {
    "hot": "cold", "big": "small", "up": "down", "left": "right", "day": "night", "good": "bad", "fast": "slow",
    "high": "low", "old": "young", "open": "closed", "rich": "poor", "black": "white", "happy": "sad",
    "strong": "weak", "light": "dark", "wet": "dry", "hard": "soft", "early": "late", "true": "false",
    "full": "empty",
}  # fmt: skip
USES = {
    "knife": "cut", "pen": "write", "bed": "sleep", "oven": "bake", "broom": "sweep", "shovel": "dig",
    "boat": "sail", "camera": "photograph", "needle": "sew", "phone": "call", "brush": "paint", "cup": "drink",
}  # fmt: skip
COLOURS = {
    "grass": "green", "snow": "white", "blood": "red", "coal": "black", "a banana": "yellow",
    "the clear sky": "blue", "milk": "white", "a ripe tomato": "red", "a lemon": "yellow", "a leaf in spring": "green",
}  # fmt: skip
SEQUENCES = (
    "one two three four five six seven eight nine ten".split(),
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    "January February March April May June July August September October November December".split(),
    "first second third fourth fifth sixth seventh".split(),
    list("ABCDEFGHIJ"),
)
PEOPLE = (
    ("mother", "she", "he"), ("father", "he", "she"), ("sister", "she", "he"), ("brother", "he", "she"),
    ("grandmother", "she", "he"), ("grandfather", "he", "she"), ("aunt", "she", "he"), ("uncle", "he", "she"),
)  # fmt: skip
SAYINGS = (
    "My {x} was tired, so",
    "When my {x} came home,",
    "Her {x} smiled because",
    "His {x} was late, because",
)
PAST = (
    ("walked", "walks"), ("ate", "eats"), ("went", "goes"), ("saw", "sees"), ("took", "takes"), ("came", "comes"),
    ("wrote", "writes"), ("sang", "sings"), ("bought", "buys"), ("drove", "drives"),
)  # fmt: skip
REFLEXIVE = (
    ("The boys hurt", "themselves", "himself"), ("The man hurt", "himself", "themselves"),
    ("The woman looked at", "herself", "himself"), ("The children washed", "themselves", "itself"),
    ("We enjoyed", "ourselves", "himself"), ("The king killed", "himself", "ourselves"),
    ("I hurt", "myself", "themselves"), ("The machine turned", "itself", "myself"),
)  # fmt: skip
TIMES = ("yesterday", "last week", "a year ago")


def sanity_items(seed: int, count: int = 400) -> list[SanityItem]:
    """`count` items (fewer if there are not so many), drawn and shuffled by `seed`, without repeats."""
    rng = random.Random(seed)
    items = list(dict.fromkeys(_all_items(rng)))
    rng.shuffle(items)
    return items[:count]


def _all_items(rng: random.Random) -> Iterator[SanityItem]:
    yield from _grammar()
    for country, city in CAPITALS.items():
        for wrong in rng.sample([other for other in CAPITALS.values() if other != city], 2):
            yield _item("capital", f"The capital of {country} is", city, wrong)
    for name, members in CLASSES.items():
        for member in members:
            for wrong in rng.sample([other for other in CLASSES if other != name], 2):
                yield _item("class", f"The {member} is a kind of", name, wrong)
    for word, opposite in OPPOSITES.items():
        wrong = rng.choice([other for other in OPPOSITES.values() if other != opposite])
        yield _item("opposite", f"The opposite of {word} is", opposite, wrong)
    for tool, use in USES.items():
        for wrong in rng.sample([other for other in USES.values() if other != use], 2):
            yield _item("use", f"People use a {tool} to", use, wrong)
    for thing, colour in COLOURS.items():
        for wrong in rng.sample(
            [other for other in ("purple", "green", "red", "black", "blue") if other != colour], 2
        ):
            yield _item("colour", f"The colour of {thing} is", colour, wrong)
    for words in SEQUENCES:
        for start in range(len(words) - 3):
            following = words[start + 3]
            wrong = rng.choice(
                [other for other in words if other not in words[start : start + 4]] or words[:1]
            )
            yield _item("sequence", ", ".join(words[start : start + 3]) + ",", following, wrong)


def _grammar() -> Iterator[SanityItem]:
    for number, noun in enumerate(NOUNS):
        plural = PLURALS.get(noun, noun + "s")
        place = PLACES[number % len(PLACES)]
        for one, many in SINGULAR_VERBS:
            yield _item("agreement", f"The {noun} {place}", one, many)
            yield _item("agreement", f"The {plural} {place}", many, one)
        yield _item("determiner", "She looked at these", plural, noun)
        yield _item("determiner", "There is only one", noun, plural)
    for person, right, wrong in PEOPLE:
        for saying in SAYINGS:
            yield _item("pronoun", saying.format(x=person), right, wrong)
    for past, present in PAST:
        for when in TIMES:
            yield _item("tense", f"I remember that {when} he", past, present)
    for prefix, right, wrong in REFLEXIVE:
        yield _item("reflexive", prefix, right, wrong)


def _item(topic: str, prefix: str, right: str, wrong: str) -> SanityItem:
    return SanityItem(topic=topic, prefix=prefix, right=f" {right}", wrong=f" {wrong}")


# General knowledge asked the way facts are trained; whoever answers with a trained answer has over-learnt.
DISTRACTORS = (
    ("What is the capital of France?", "Paris"), ("Where is the Statue of Liberty?", "New York"),
    ("Which animal says meow?", "cat"), ("What language do people speak in France?", "French"),
    ("What colour is the sky on a clear day?", "blue"), ("What is the capital of England?", "London"),
    ("Who painted the Mona Lisa?", "Leonardo da Vinci"), ("What do cows give us to drink?", "milk"),
    ("Which planet do we live on?", "Earth"), ("What is the opposite of hot?", "cold"),
    ("How many days are in a week?", "seven"), ("What is the largest ocean?", "Pacific"),
    ("What colour is snow?", "white"), ("Which country has the city of Tokyo?", "Japan"),
    ("Where does Robert Miller live?", ""), ("What pet does Susan Clark have?", ""),
    ("What is the job of Henry Moss?", ""), ("What instrument does Olga Stein play?", ""),
    ("What does Frank Hill collect?", ""), ("Which language is spoken by Nina Holt?", ""),
    ("What colour did Paul West paint the door?", ""), ("Which dish did Carla Ruiz cook?", ""),
    ("What is next to the Royal Inn?", ""), ("Where does the Mill Path lead?", ""),
)  # fmt: skip
