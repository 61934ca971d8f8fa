"""The last word on the order of candidates: rules that no sum of scores can express.

1. What does not hold at the time asked about comes after all that does.
2. A memory whose text is the query's own, word for word, is first.
3. Of statements of one shape about one thing the newest is first, at any age: "The choir meets on Mondays", then "...
   on Thursdays". They match the same words of the query, and most of their words are the same in the same order.

The rules change places, not scores.
"""

from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np

from common.types import Json
from stores.memory.memory import plain_words

SHAPED = 16  # places among which statements of one shape are looked for
ALIKE = 0.6  # of the words of two texts, in order, that must be the same


def ruled(
    order: Sequence[int],
    query: str | None,
    memories: Sequence[Json],
    found: Sequence[frozenset[str]],
    now: float,
) -> list[int]:
    """The order (indices of candidates, best first) after the rules. `found`: the query's words in each text; `now`:
    the time asked about (seconds)."""
    result = _newest_first(order, memories, found)
    asked = plain_words(query) if query else []
    every = max(map(len, found), default=0)  # a text that is the query has all words that any text has
    same = {
        i for i in result if asked and len(found[i]) == every and plain_words(memories[i]["text"]) == asked
    }
    ended = {i for i in result if has_ended(memories[i], now)}
    return sorted(result, key=lambda i: (i in ended, i not in same)) if same or ended else result


def by_score(scores: np.ndarray, memories: Sequence[Json]) -> list[int]:
    """Indices, the highest score first; of equals the newer, then by id."""
    times = [time_of(memory) for memory in memories]
    return sorted(
        range(len(memories)), key=lambda i: (-round(float(scores[i]), 9), -times[i], memories[i]["id"])
    )


def time_of(memory: Json) -> float:
    """When what the memory states began (seconds): `valid_from` of a fact, else its time."""
    start = memory.get("valid_from")
    return float(memory["time"] if start is None else start)


def has_ended(memory: Json, now: float) -> bool:
    end = memory.get("valid_to")
    return end is not None and end <= now


def _newest_first(
    order: Sequence[int], memories: Sequence[Json], found: Sequence[frozenset[str]]
) -> list[int]:
    """The order with the statements of each shape among the first places sorted newest first, in their places."""
    result = [*order]
    by_words: dict[tuple[str, frozenset[str]], list[int]] = {}  # places
    for place, i in enumerate(order[:SHAPED]):
        by_words.setdefault((memories[i]["kind"], found[i]), []).append(place)
    for places in by_words.values():
        for group in _shapes([(place, _shape(memories[order[place]]["text"])) for place in places]):
            newest = sorted((order[place] for place in group), key=lambda i: -time_of(memories[i]))
            for place, i in zip(group, newest, strict=True):
                result[place] = i
    return result


def _shapes(texts: Sequence[tuple[int, Sequence[str]]]) -> list[list[int]]:
    """Places of texts of one shape; the first text of a group gives its shape."""
    groups: list[tuple[Sequence[str], list[int]]] = []
    for place, text in texts:
        for first, places in groups:
            if _alike(first, text):
                places.append(place)
                break
        else:
            groups.append((text, [place]))
    return [places for _, places in groups]


def _shape(text: str) -> Sequence[str]:
    """The words of a text; of a script without spaces its characters."""
    words = plain_words(text)
    return words if len(words) > 1 else "".join(words)


def _alike(one: Sequence[str], other: Sequence[str]) -> bool:
    shared = len({*one} & {*other})  # of words that come once an upper bound, and fast
    if 2 * shared < ALIKE * min(len({*one}) + len({*other}), len(one) + len(other)):
        return False
    return SequenceMatcher(None, one, other, autojunk=False).ratio() >= ALIKE
