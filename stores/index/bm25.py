"""Lexical candidates and the statistics of BM25 for the texts of one namespace, rebuilt from the log.

Each namespace has an index of its own, so no tenant's words count in another's statistics. Tantivy finds candidates, in
memory; its own scores only choose them, since they also count removed texts and know one shard only. `bm25` scores
candidates by the statistics of the whole namespace: those of its shards, added.

Writes are buffered and enter the index before the next search (`flush`), or in the background once `BUFFER` of them
wait: a search sees every write before it (a flush takes tens of milliseconds for `BUFFER` writes, 5 for one). Adding
and removing never wait for a flush or for tantivy's merges. The writer, with its thread and heap, exists only during
those.
"""

import math
import sys
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import tantivy

from stores.index.terms import LONG, PART, PARTED, SHORTEST_PART, is_part, parts, stored_terms, terms, text_of

BUFFER = 1000  # buffered writes at which a flush begins by itself
HEAP_BYTES = 15_000_000  # of the writer; tantivy's minimum
MAX_SET = 4096  # chosen rows that become part of the query; of more, the hits are filtered
MAX_TERMS = 128  # of one query: a text of 16 KB is not a question
K1, B = 1.2, 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class WordStatistics:
    """Of the texts of a namespace, for the words of a query: how many `texts` there are, their `length` in words
    together, and in how many of them each word occurs (`found`)."""

    texts: int = 0
    length: int = 0
    found: Mapping[str, int]

    @staticmethod
    def of_all(shards: Iterable["WordStatistics"]) -> "WordStatistics":
        each = [*shards]
        found: Counter[str] = Counter()
        for one in each:
            found.update(one.found)
        return WordStatistics(
            texts=sum(one.texts for one in each), length=sum(one.length for one in each), found=found
        )


def query_words(query: str) -> list[str]:
    """The different words of a query, the first `MAX_TERMS` of them."""
    return [*dict.fromkeys(terms(query))][:MAX_TERMS]


@dataclass(frozen=True, slots=True)
class Matched:
    """What a text has of a query's words: how often each (as a part of a longer word it counts `PART`), and how many
    words the text has in all."""

    counts: Mapping[str, float]
    length: int


def matched(asked: Collection[str], has: Sequence[str]) -> Matched:
    """What a text of the words `has` (`longest_first`) has of the asked ones."""
    counts = {word: float(count) for word in asked if (count := has.count(word))}
    for long in has:
        if len(long) < LONG:
            break
        if long not in asked:
            for word in asked:
                if is_part(word, long):
                    counts[word] = counts.get(word, 0.0) + PART
    return Matched(counts, len(has))


def longest_first(words: Iterable[str]) -> tuple[str, ...]:
    """The words of a stored text; one that many texts have is held once."""
    return tuple(sorted(map(sys.intern, words), key=len, reverse=True))


def bm25(text: Matched, known: WordStatistics, rarity: Mapping[str, float]) -> float:
    """The BM25 score of a text (Robertson and Zaragoza 2009, with Lucene's idf); 0 if it has none of the words."""
    norm = K1 * (1.0 - B + B * text.length * known.texts / max(1, known.length))
    score = 0.0
    for word, count in sorted(text.counts.items()):
        score += rarity[word] * count * (K1 + 1.0) / (count + norm)
    return score


def rarity_of(words: Iterable[str], known: WordStatistics) -> dict[str, float]:
    """Inverse document frequency of each word: the higher, the fewer texts have it."""
    found = {word: min(known.texts, known.found.get(word, 0)) for word in words}
    return {word: math.log1p((known.texts - having + 0.5) / (having + 0.5)) for word, having in found.items()}


def covered(texts: Sequence[Matched], rarity: Mapping[str, float], power: float = 1.0) -> list[float]:
    """For each text the share of the query's words that it has, each weighed by its rarity to the `power`; 0 for a
    query without words."""
    weights = {word: value**power for word, value in rarity.items()}
    total = sum(weights.values()) or 1.0
    return [sum(weights[word] * min(1.0, n) for word, n in text.counts.items()) / total for text in texts]


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    builder.add_unsigned_field("row", indexed=True, fast=True)
    builder.add_text_field("words", tokenizer_name="given", index_option="freq")
    return builder.build()


_SCHEMA = _schema()
_GIVEN = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace()).build()  # words come from `stored_terms`


class Stored(Protocol):
    """A memory as the view holds it; `seq` is its row."""

    seq: int
    memory: dict[str, Any]


class LexicalIndex:
    """Texts by row number. Many threads may search and flush. `add`, `drop` and `find` exclude each other by a lock of
    `Shard`, but wait for no flush.

    While `live` is false all writes are buffered: opening a log ends with `start`.
    """

    def __init__(self, *, live: bool = True) -> None:
        self.live = live
        self._index = tantivy.Index(_SCHEMA)
        self._index.register_tokenizer("given", _GIVEN)
        self._index.config_reader("manual")  # reload explicitly, without a watcher thread
        self._rows: set[int] = set()
        self._words: dict[int, tuple[str, ...]] = {}  # of the texts that a flush has taken in
        self._added: dict[int, str] = {}
        self._found: Counter[str] = (
            Counter()
        )  # texts that have each word; counts may be below 0 during a flush
        self._texts = self._length = 0
        self._removed: list[int] = []
        self._leaving: list[int] = []  # removed rows that a flush takes out now
        self._unseen = False  # does a flush hold writes that no search sees yet?
        self._aside = threading.Lock()  # around the above
        self._flushing = threading.Lock()
        self._flusher: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, entry: Stored, vector: Any = None) -> None:
        """Add a memory; its vector is not used."""
        self.put([entry.seq], [text_of(entry.memory)])

    def remove(self, entry: Stored) -> None:
        self.drop([entry.seq], [text_of(entry.memory)])

    def put(self, rows: Sequence[int], texts: Sequence[str]) -> None:
        with self._aside:
            for row, text in zip(rows, texts, strict=True):
                assert row not in self._rows, "a row is added once"
                self._rows.add(row)
                self._added[row] = text
        self._flush_if_many()

    def drop(self, rows: Sequence[int], texts: Sequence[str]) -> int:
        """Remove rows with the texts that they were added with; unknown ones are ignored. Returns how many were
        removed."""
        gone = 0
        for row, text in zip(rows, texts, strict=True):
            with self._aside:
                if row not in self._rows:
                    continue
                self._rows.discard(row)
                gone += 1
                if self._added.pop(row, None) is not None:
                    continue
                self._removed.append(row)
                words = self._words.pop(row, None)
            self._count([stored_terms(text) if words is None else words], -1)
        self._flush_if_many()
        return gone

    def statistics(self, query: str) -> WordStatistics:
        """Those of this index for the words of a query, as of the last flush. A text that has a word by itself and as
        a part of another counts twice."""
        words = query_words(query)
        with self._aside:
            found = {word: self._found[word] + self._found[PARTED + word] for word in words}
            return WordStatistics(
                texts=self._texts, length=self._length, found={word: n for word, n in found.items() if n > 0}
            )

    def matched(self, row: int, asked: Collection[str], text: str) -> Matched:
        """What the text of a row has of the asked words; `text` is read only where no flush has taken it in."""
        words = self._words.get(row)
        return matched(asked, longest_first(stored_terms(text)) if words is None else words)

    def _count(self, texts: Sequence[Sequence[str]], sign: int) -> None:
        """Add texts (`stored_terms`) to the statistics, or take them out."""
        found: Counter[str] = Counter()
        for words in texts:
            found.update(_indexed(words))
        with self._aside:
            self._texts += sign * len(texts)
            self._length += sign * sum(map(len, texts))
            for word, count in found.items():
                if not (left := self._found[word] + sign * count):
                    del self._found[word]
                else:
                    self._found[word] = left

    def search(
        self, query: str, k: int, among: Collection[int] | None = None
    ) -> tuple[list[float], list[int]]:
        """Scores and rows of about the `k` best texts (all, or those in `among`) that share a content word with the
        query, best first by tantivy's score, which is good enough to choose candidates. Any text is a valid query: it
        has no syntax."""
        self.flush()
        return self.find(query, k, among)

    def find(self, query: str, k: int, among: Collection[int] | None = None) -> tuple[list[float], list[int]]:
        """As `search` without a flush, for callers that hold a lock which blocks writers: texts added since the last
        flush are not found."""
        words = query_words(query)
        total = len(self._rows)
        if min(k, total) <= 0 or not words or (among is not None and not among):
            return [], []
        asked = _any_of(words)
        if among is None:
            return self._best(asked, min(k, total))
        if len(among) <= MAX_SET:
            return self._best(_within(asked, among), min(k, len(among)))
        chosen, wide = frozenset(among), 2 * k * total // len(among)
        while True:  # most rows are admitted, so that few turns are needed
            scores, rows = self._best(asked, min(wide, total))
            admitted = [i for i, row in enumerate(rows) if row in chosen][:k]
            if len(admitted) == k or len(rows) < wide or wide >= total:
                return [scores[i] for i in admitted], [rows[i] for i in admitted]
            wide *= 4

    def _best(self, query: tantivy.Query, k: int) -> tuple[list[float], list[int]]:
        searcher = self._index.searcher()
        with self._aside:
            leaving = len(self._removed) + len(self._leaving)
        hits = searcher.search(query, k + leaving, False).hits
        rows = searcher.fast_field_values("row", [address for _, address in hits])
        pairs = zip(hits, map(int, rows), strict=True)
        found = sorted((-score, row) for (score, _), row in pairs if row in self._rows)[:k]
        return [-score for score, _ in found], [row for _, row in found]  # equal scores: older first

    def flush(self) -> None:
        """Index all buffered writes; waits for those that another flush is indexing."""
        with self._aside:
            if not (self._added or self._removed or self._unseen):
                return
        with self._flushing:
            with self._aside:
                added, self._added = self._added, {}
                self._leaving, self._removed = self._removed, []
                self._unseen = bool(added or self._leaving)
            if self._unseen:
                self._write(added, self._leaving)

    def start(self) -> None:
        self.live = True
        self._flush_if_many()

    def _flush_if_many(self) -> None:
        many = self.live and len(self._added) + len(self._removed) >= BUFFER
        if many and (self._flusher is None or not self._flusher.is_alive()):
            self._flusher = threading.Thread(target=self.flush, name="lexical", daemon=True)
            self._flusher.start()

    def _write(self, added: Mapping[int, str], removed: Sequence[int]) -> None:
        writer = self._index.writer(HEAP_BYTES, 1)
        if removed:
            writer.delete_documents_by_query(tantivy.Query.term_set_query(_SCHEMA, "row", list(removed)))
        counted: dict[int, tuple[str, ...]] = {}
        for row, text in added.items():
            document = tantivy.Document()
            document.add_unsigned("row", row)
            words = stored_terms(text)
            document.add_text("words", " ".join([*words, *(_indexed(words) - {*words})]))
            writer.add_document(document)
            counted[row] = longest_first(words)
        writer.commit()
        self._index.reload()
        self._count([*counted.values()], 1)
        with self._aside:
            self._words.update((row, words) for row, words in counted.items() if row in self._rows)
            self._leaving, self._unseen = [], False
        writer.wait_merging_threads()
        self._index.reload()


def _indexed(words: Iterable[str]) -> set[str]:
    """The different words of a text, and the parts of its long ones."""
    return {*words, *(part for word in words for part in parts(word))}


def _any_of(words: Sequence[str]) -> tantivy.Query:
    wanted = [_word(word) for word in words]
    wanted += [
        tantivy.Query.boost_query(_word(PARTED + word), PART) for word in words if len(word) >= SHORTEST_PART
    ]
    return tantivy.Query.boolean_query([(tantivy.Occur.Should, each) for each in wanted])


def _word(word: str) -> tantivy.Query:
    return tantivy.Query.term_query(_SCHEMA, "words", word)


def _within(query: tantivy.Query, rows: Collection[int]) -> tantivy.Query:
    """A query for only these rows that does not contribute to the score."""
    chosen = tantivy.Query.const_score_query(tantivy.Query.term_set_query(_SCHEMA, "row", list(rows)), 0.0)
    return tantivy.Query.boolean_query([(tantivy.Occur.Must, query), (tantivy.Occur.Must, chosen)])
