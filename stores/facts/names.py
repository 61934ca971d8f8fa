"""Names of people, places and relations: one spelling for each, groups of aliases, mentions in a text."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator

_POSSESSIVE = re.compile(r"['\u2019]s\b")
_WORD = re.compile(r"(?<!\w)-?\d+(?:\.\d+)*(?!\w)|[^\W_]+[+#]*")
_ARTICLES = ("the", "a", "an")


def words_of(text: str) -> list[str]:
    """Words in the spelling that names are compared in: NFKC, case folded, no punctuation, no possessive.

    A number keeps its sign and point, and `C`, `C++` and `C#` stay three things.
    """
    folded = _POSSESSIVE.sub("", unicodedata.normalize("NFKC", text).casefold())
    return _WORD.findall(folded.replace("'", "").replace("\u2019", ""))


def normalise(name: str) -> str:
    """The key of a name, without a leading article. A name of symbols only is its own key."""
    words = words_of(name)
    if len(words) > 1 and words[0] in _ARTICLES:
        del words[0]
    return " ".join(words) or name.strip()


def normalise_relation(relation: str) -> str:
    """`Lives in`, `lives-in` and `lives_in` are one relation."""
    return "_".join(words_of(relation)) or relation.strip()


class Aliases:
    """Names that stand for one thing. A link belongs to its source and is removed with it."""

    def __init__(self) -> None:
        self._links: dict[str, list[tuple[str, str]]] = {}  # source -> pairs
        self._others: dict[str, Counter[str]] = {}  # name -> linked names, counted over sources

    def link(self, a: str, b: str, source: str) -> None:
        if a == b:
            return
        self._links.setdefault(source, []).append((a, b))
        for one, other in ((a, b), (b, a)):
            self._others.setdefault(one, Counter())[other] += 1

    def unlink(self, source: str) -> None:
        for a, b in self._links.pop(source, ()):
            for one, other in ((a, b), (b, a)):
                self._others[one][other] -= 1
                if not self._others[one][other]:
                    del self._others[one][other]
                if not self._others[one]:
                    del self._others[one]

    def copy(self) -> "Aliases":
        other = Aliases()
        other._links = {source: [*pairs] for source, pairs in self._links.items()}
        other._others = {name: others.copy() for name, others in self._others.items()}
        return other

    def group(self, name: str) -> list[str]:
        """All names of the thing, sorted; the first stands for it."""
        if name not in self._others:
            return [name]
        found, waiting = {name}, [name]
        while waiting:
            for other in self._others[waiting.pop()]:
                if other not in found:
                    found.add(other)
                    waiting.append(other)
        return sorted(found)

    def canonical(self, name: str) -> str:
        return name if name not in self._others else self.group(name)[0]

    def sources(self, name: str) -> list[str]:
        """Sources of the links of the group that `name` is in."""
        names = set(self.group(name))
        if len(names) == 1:
            return []
        return [source for source, pairs in self._links.items() if any(pair[0] in names for pair in pairs)]


class Mentions:
    """Known names, found in a text by the longest match from left to right."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lengths: dict[str, Counter[int]] = {}  # first word -> lengths in words of names

    def add(self, name: str) -> None:
        self._counts[name] += 1
        if self._counts[name] == 1:
            words = name.split()
            self._lengths.setdefault(words[0], Counter())[len(words)] += 1

    def discard(self, name: str) -> None:
        self._counts[name] -= 1
        if not self._counts[name]:
            del self._counts[name]
            words = name.split()
            self._lengths[words[0]][len(words)] -= 1

    def find(self, text: str) -> Iterator[str]:
        words, i = words_of(text), 0
        while i < len(words):
            lengths = self._lengths.get(words[i], ())
            name = next(
                (
                    name
                    for length in sorted(lengths, reverse=True)
                    if (name := " ".join(words[i : i + length])) in self._counts
                ),
                None,
            )
            if name is not None:
                yield name
            i += len(name.split()) if name else 1
