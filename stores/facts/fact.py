"""Facts: a relational memory read as a triple, and the rule for what is no triple.

A fact has one or more assertions, by different sources; their confidences combine by noisy-or.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice, product
from operator import itemgetter

from common.types import Json
from stores.facts.names import words_of
from stores.memory.memory import Memory

Triple = tuple[str, str, str]
Key = tuple[str | None, str | None, str | None]

ALIAS_RELATIONS = ("alias_of", "also_known_as", "same_as")
PRONOUNS = frozenset(words_of("I you he she it we they him her them this that these those someone something"))
MAX_NAME_WORDS = 12
MAX_RELATION_WORDS = 6
SENTENCE_WORDS = 4  # a name that ends like a sentence and has this many words is one


@dataclass(frozen=True, slots=True, kw_only=True)
class Assertion:
    """One source's assertion of a fact. `end` (seconds) is infinite if none was given."""

    id: str
    confidence: float
    start: float
    end: float
    source: Json


@dataclass(slots=True, kw_only=True)
class Fact:
    """`stated` is the triple in the words of its first assertion. `triple` is normalised and, if the relation has an
    inverse, in the one direction in which both are stored (`flipped` if that is not the stated one)."""

    id: str
    seq: int
    stated: Triple
    triple: Triple
    flipped: bool
    assertions: list[Assertion]
    closed: dict[str | None, float] = field(default_factory=dict)

    @property
    def confidence(self) -> float:
        """Noisy-or: 1 - product of (1 - c) over the assertions."""
        return 1.0 - math.prod(1.0 - assertion.confidence for assertion in self.assertions)

    @property
    def start(self) -> float:
        return min(assertion.start for assertion in self.assertions)

    @property
    def end(self) -> float:
        """When it ends by its assertions or closings, rivals aside (seconds); infinite if it does not."""
        ends = [assertion.end for assertion in self.assertions if assertion.end < math.inf]
        return min([ends[-1] if ends else math.inf, *self.closed.values()])


TimelineEntry = tuple[float, int, str, Fact]  # of a timeline: start, seq, canonical object
PLACE = itemgetter(0, 1)  # of an entry in its timeline


def not_a_triple(memory: Json) -> str | None:
    """Why a relational memory is no usable triple, or None if it is.

    A name must have 1 to 12 words and be no pronoun, no lines and no sentence (4 words or more that end in
    `.`, `!` or `?`); a relation has 1 to 6 words.
    """
    for part in ("subject", "object"):
        words, text = words_of(memory[part]), memory[part].strip()
        if len(words) > MAX_NAME_WORDS:
            return f"{part} has {len(words)} words, a name has at most {MAX_NAME_WORDS}: kept as episodic"
        if "\n" in text or (len(words) >= SENTENCE_WORDS and text.endswith((".", "!", "?"))):
            return f"{part} is a sentence, not a name: kept as episodic"
        if len(words) == 1 and words[0] in PRONOUNS:
            return f"{part} is a pronoun, not a name: kept as episodic"
    words = words_of(memory["relation"])
    if not 1 <= len(words) <= MAX_RELATION_WORDS:
        return f"relation has {len(words)} words, of 1 to {MAX_RELATION_WORDS}: kept as episodic"
    return None


def as_episodic(memory: Memory) -> Memory:
    """A relational memory that was routed: same id and text, its fields in `context.relational`."""
    context = {**memory.context, "relational": dict(memory.fields)}
    return replace(memory, kind="episodic", fields={}, context=context)


def keys(triple: Triple) -> Iterator[Key]:
    """Every pattern that matches the triple, except the one that matches all."""
    subject, relation, object = triple
    for pattern in product((subject, None), (relation, None), (object, None)):
        if pattern != (None, None, None):
            yield pattern


def run_before(timeline: list[TimelineEntry], place: int) -> int:
    """Start of the run of entries with one object that ends before index `place`."""
    start = place
    while start and timeline[start - 1][2] == timeline[place - 1][2]:
        start -= 1
    return start


def next_rival(timeline: list[TimelineEntry], place: int, object: str) -> Iterator[TimelineEntry]:
    """The first entry from index `place` on with another object, or None."""
    others = (entry for entry in islice(timeline, place, None) if entry[2] != object)
    return islice(others, 1)
