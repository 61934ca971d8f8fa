"""BM25 over the texts of one namespace, by tantivy in memory, rebuilt from the log.

Each namespace has an index of its own, so no tenant's words count in another's statistics. Writes are buffered and
enter the index before the next search (`flush`), or in the background once `BUFFER` of them wait: a search sees every
write before it (a flush takes tens of milliseconds for `BUFFER` writes, 5 for one). Adding and removing never wait
for a flush or for tantivy's merges. The writer, with its thread and heap, exists only during those.

Statistics still count the words of removed texts until tantivy merges them away; no search finds those.
"""

import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import tantivy

from stores.memory.memory import KIND_FIELDS

BUFFER = 1000  # buffered writes at which a flush begins by itself
HEAP_BYTES = 15_000_000  # of the writer; tantivy's minimum
MAX_SET = 4096  # chosen rows that become part of the query; of more, the hits are filtered
MAX_TERMS = 128  # of one query: a text of 16 KB is not a question
STOP_WORDS = frozenset(
    """a about an and any are as at be been being but by can could did do does doing for from had has have
    having he her hers him his how i if in into is it its just may me might more most my no nor not of on or
    our ours out s she should so some such t than that the their theirs them then there these they this those
    to too us was we were what when where which while who whom whose why will with would you your yours d ll m
    re ve""".split()
)


def _analyzer() -> tantivy.TextAnalyzer:
    steps = (
        tantivy.Filter.remove_long(64),
        tantivy.Filter.lowercase(),
        tantivy.Filter.ascii_fold(),
        tantivy.Filter.custom_stopword(sorted(STOP_WORDS)),
        tantivy.Filter.stemmer("english"),
    )
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
    for step in steps:
        builder = builder.filter(step)
    return builder.build()


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    builder.add_unsigned_field("row", indexed=True, fast=True)
    builder.add_text_field("words", tokenizer_name="words", index_option="freq")
    return builder.build()


_ANALYZER, _SCHEMA = _analyzer(), _schema()


def terms(text: str) -> list[str]:
    """The content words of a text as indexed: lower case, without accents, stop words and English endings."""
    words: list[str] = _ANALYZER.analyze(_clean(text))
    return words


def text_of(memory: Mapping[str, Any]) -> str:
    """The searched text of a memory: its text, and those fields of its kind that the text lacks."""
    text = str(memory["text"])
    names = KIND_FIELDS[memory["kind"]]
    if not names:
        return text
    words = [value.replace("_", " ") for name in names if isinstance(value := memory.get(name), str)]
    return " ".join([text, *(word for word in words if word.casefold() not in text.casefold())])


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
        self._index.register_tokenizer("words", _ANALYZER)
        self._index.config_reader("manual")  # reload explicitly, without a watcher thread
        self._rows: set[int] = set()
        self._added: dict[int, str] = {}
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
        self.drop([entry.seq])

    def put(self, rows: Sequence[int], texts: Sequence[str]) -> None:
        with self._aside:
            for row, text in zip(rows, texts, strict=True):
                assert row not in self._rows, "a row is added once"
                self._rows.add(row)
                self._added[row] = text
        self._flush_if_many()

    def drop(self, rows: Sequence[int]) -> int:
        """Remove rows; unknown ones are ignored. Returns how many were removed."""
        with self._aside:
            gone = self._rows.intersection(rows)
            self._rows -= gone
            self._removed += [row for row in gone if self._added.pop(row, None) is None]
        self._flush_if_many()
        return len(gone)

    def search(
        self, query: str, k: int, among: Collection[int] | None = None
    ) -> tuple[list[float], list[int]]:
        """BM25 scores and rows of the `k` best texts (all, or those in `among`) that share a content word with the
        query, best first. Any text is a valid query: it has no syntax."""
        self.flush()
        return self.find(query, k, among)

    def find(self, query: str, k: int, among: Collection[int] | None = None) -> tuple[list[float], list[int]]:
        """As `search` without a flush, for callers that hold a lock which blocks writers: texts added since the last
        flush are not found."""
        words = [*dict.fromkeys(terms(query))][:MAX_TERMS]
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
        for row, text in added.items():
            document = tantivy.Document()
            document.add_unsigned("row", row)
            document.add_text("words", _clean(text))
            writer.add_document(document)
        writer.commit()
        self._index.reload()
        with self._aside:
            self._leaving, self._unseen = [], False
        writer.wait_merging_threads()
        self._index.reload()


def _any_of(words: Sequence[str]) -> tantivy.Query:
    terms = [tantivy.Query.term_query(_SCHEMA, "words", word) for word in words]
    return tantivy.Query.boolean_query([(tantivy.Occur.Should, term) for term in terms])


def _within(query: tantivy.Query, rows: Collection[int]) -> tantivy.Query:
    """A query for only these rows that does not contribute to the score."""
    chosen = tantivy.Query.const_score_query(tantivy.Query.term_set_query(_SCHEMA, "row", list(rows)), 0.0)
    return tantivy.Query.boolean_query([(tantivy.Occur.Must, query), (tantivy.Occur.Must, chosen)])


def _clean(text: str) -> str:
    """The text without lone surrogates, which tantivy does not accept."""
    return text.encode("utf-8", "replace").decode()
