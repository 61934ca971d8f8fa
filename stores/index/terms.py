"""Words of a text as the lexical index counts them.

A text is split at everything that is no letter or digit, in lower case and without accents. English endings go; Arabic
words lose their affixes. Besides:

    scripts without spaces   Chinese, Japanese, Thai, Lao, Khmer, Burmese, and Korean, whose particles are written to
                             the word: pairs of neighbouring characters, and in a stored text single ones as well
    compounds                of a long word in a stored text also its beginnings and endings of five letters and more,
                             so that "Versicherung" finds "Krankenversicherung"; they count by `PART`
    identifiers              what punctuation joins ("INV-2024-00123", "ada@example.org", "00:1B:44") and groups of
                             digits with spaces between ("+351 912 345 607") are one more word, without punctuation

Negations are words: "is open" and "is not open" differ.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

import tantivy

from stores.memory.memory import KIND_FIELDS

STOP_WORDS = frozenset(
    """a about an and any are as at be been being but by can could did do does doing for from had has have
    having he her hers him his how i if in into is it its just may me might more most my of on or
    our ours out s she should so some such than that the their theirs them then there these they this those
    to too us was we were what when where which while who whom whose why will with would you your yours d ll m
    re ve""".split()
)
PART = 0.3  # of an occurrence: a beginning or ending of a longer word
LONG, SHORTEST_PART = 10, 5  # letters of a word that has parts, and of a part
PARTED = "~"  # before a part, so that it never equals a word
MAX_WORD = 200  # characters; of a longer one the first

_NO_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3130-\u318f"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]+"
)
_ARABIC = re.compile("[\u0600-\u06ff\u0750-\u077f]")
_NEGATED = re.compile(r"n['\u2019]t\b", re.IGNORECASE)
_JOINED = re.compile(r"\w+(?:[-./:@+&=?%#~,]{1,3}\w+)+")  # words with only punctuation between them
_GROUPED = re.compile(r"(?<!\w)[^\W\d]{0,4}\d+(?:[-./() \u00a0\u202f]{1,3}\d+)+(?!\w)")
_MAYBE_JOINED = re.compile(r"[-./:@+&=?%#~,]\w")  # quick to look for, and mostly absent
_MAYBE_GROUPED = re.compile(r"\d[-./() \u00a0\u202f]{1,3}\d")
_BETWEEN = re.compile(r"[\W_]+")
MIN_GROUPED = 7  # digits that groups with spaces between must have together: fewer are numbers in a list


def _analyzer(language: str) -> tantivy.TextAnalyzer:
    steps = (
        tantivy.Filter.lowercase(),
        tantivy.Filter.ascii_fold(),
        tantivy.Filter.custom_stopword(sorted(STOP_WORDS)),
        tantivy.Filter.stemmer(language),
    )
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
    for step in steps:
        builder = builder.filter(step)
    return builder.build()


_ENGLISH, _OF_ARABIC = _analyzer("english"), _analyzer("arabic")


def terms(text: str) -> list[str]:
    """The content words of a text, as a query names them, in no particular order."""
    return _terms(text, stored=False)


def stored_terms(text: str) -> list[str]:
    """The words of a stored text, each as often as it occurs, single characters included."""
    return _terms(text, stored=True)


def parts(word: str) -> Iterator[str]:
    """Beginnings and endings of a long word, each with `PARTED` before it."""
    if len(word) >= LONG and word.isascii() and word.isalpha():
        for size in range(SHORTEST_PART, len(word) - 2):
            yield PARTED + word[:size]
            yield PARTED + word[-size:]


def is_part(word: str, other: str) -> bool:
    """Whether `word` is a beginning or ending of `other`, as `parts` gives them."""
    long = SHORTEST_PART <= len(word) <= len(other) - 3 and len(other) >= LONG
    return long and (other.startswith(word) or other.endswith(word)) and other.isascii() and other.isalpha()


def text_of(memory: Mapping[str, Any]) -> str:
    """The searched text of a memory: its text, and those fields of its kind that the text lacks."""
    text = str(memory["text"])
    names = KIND_FIELDS[memory["kind"]]
    if not names:
        return text
    words = [value.replace("_", " ") for name in names if isinstance(value := memory.get(name), str)]
    return " ".join([text, *(word for word in words if word.casefold() not in text.casefold())])


def _terms(text: str, *, stored: bool) -> list[str]:
    plain = text if text.isascii() else _plain(text)
    if "'" in plain or "\u2019" in plain:
        plain = _NEGATED.sub(" not", plain)
    found: list[str] = _ENGLISH.analyze(plain)
    if len(plain) > MAX_WORD:
        found = [word[:MAX_WORD] for word in found]
    if not plain.isascii():
        found = [part for word in found for part in _of_script(word, stored)]
    found.extend(_identifiers(plain))
    return found


def _plain(text: str) -> str:
    """The text in one Unicode form, without marks that would split words, and without lone surrogates."""
    normal = unicodedata.normalize("NFKC", text.encode("utf-8", "replace").decode())
    return "".join(c for c in normal if not unicodedata.combining(c))


def _of_script(word: str, stored: bool) -> Iterator[str]:
    """The word, or for scripts without spaces its pairs of characters."""
    if word.isascii():
        yield word
        return
    if _ARABIC.search(word):
        yield from _OF_ARABIC.analyze(word)
        return
    end = 0
    for run in _NO_SPACES.finditer(word):
        if run.start() > end:
            yield word[end : run.start()]
        end, letters = run.end(), run.group()
        yield from (letters[i : i + 2] for i in range(len(letters) - 1))
        if stored or len(letters) == 1:
            yield from letters
    if end < len(word):
        yield word[end:]


def _identifiers(plain: str) -> Iterator[str]:
    """Words joined by punctuation, and groups of digits, each as one word."""
    seen: set[str] = set()
    if _MAYBE_JOINED.search(plain):
        seen.update(_BETWEEN.sub("", match.group()).lower() for match in _JOINED.finditer(plain))
    if _MAYBE_GROUPED.search(plain):
        for match in _GROUPED.finditer(plain):
            joined, groups = _BETWEEN.sub("", match.group()).lower(), len(_BETWEEN.split(match.group()))
            if sum(map(str.isdigit, joined)) >= max(MIN_GROUPED, 2 * groups):
                seen.add(joined)
    yield from (word[:MAX_WORD] for word in sorted(seen))
