"""Near-duplicate places: coordinates close to each other, and names that differ by a typing slip or word order."""

import math
import unicodedata
from difflib import SequenceMatcher

from stores.facts.names import Aliases
from stores.places.layout import Point

_SLIP = 0.8  # similarity of two words that may be one with a slip
_SLIP_LENGTH = 5  # shorter words, and those with a digit, must be equal


class NearDuplicatePlaces:
    """Links near-duplicate places in `aliases` as long as they are close together."""

    def __init__(self, aliases: Aliases, epsilon: float) -> None:
        self._aliases = aliases
        self._epsilon = epsilon
        self._points: dict[str, Point] = {}
        self._cells: dict[tuple[int, int], set[str]] = {}
        self._sources: dict[str, set[str]] = {}  # place -> sources of its links

    def of(self, place: str, point: Point) -> list[str]:
        """Other places that one at `point` named `place` would be merged with."""
        column, row = self._cell(point)
        close = (
            other
            for x in range(column - 1, column + 2)
            for y in range(row - 1, row + 2)
            for other in self._cells.get((x, y), ())
            if other != place and math.dist(point, self._points[other]) <= self._epsilon
        )
        return sorted(other for other in close if similar(place, other))

    def move(self, place: str, point: Point | None) -> bool:
        """Set the point of `place`, or remove it (None). Returns whether a link was added or removed."""
        gone = self._sources.pop(place, set())
        for source in gone:
            self._aliases.unlink(source)
        if place in self._points:
            self._cells[self._cell(self._points.pop(place))].discard(place)
        if point is None:
            return bool(gone)
        found = self.of(place, point)
        for other in found:
            source = "twins:" + "|".join(sorted((place, other)))
            self._aliases.unlink(source)
            self._aliases.link(place, other, source)
            self._sources.setdefault(place, set()).add(source)
            self._sources.setdefault(other, set()).add(source)
        self._points[place] = point
        self._cells.setdefault(self._cell(point), set()).add(place)
        return bool(gone or found)

    def _cell(self, point: Point) -> tuple[int, int]:
        return math.floor(point[0] / self._epsilon), math.floor(point[1] / self._epsilon)


def similar(one: str, other: str) -> bool:
    """True for the same words in any order, accents aside; a long word may hold a typing slip."""
    words, others = sorted(_plain(one).split()), sorted(_plain(other).split())
    return len(words) == len(others) and all(map(_slip, words, others))


def _slip(word: str, other: str) -> bool:
    if word == other:
        return True
    if min(len(word), len(other)) < _SLIP_LENGTH or any(c.isdigit() for c in word + other):
        return False
    return SequenceMatcher(None, word, other, autojunk=False).ratio() >= _SLIP


def _plain(name: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
