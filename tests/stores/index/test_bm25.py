"""BM25: against the formula written out, any text as a query, writes seen at once."""

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from stores.index import bm25 as bm25_module
from stores.index.bm25 import (
    BUFFER,
    LexicalIndex,
    WordStatistics,
    bm25,
    longest_first,
    matched,
    query_words,
    rarity_of,
)
from stores.index.terms import stored_terms, terms, text_of
from stores.memory.memory import to_json
from tests.support.stores import memory

WORDS = "harbor lantern violin coral novel dessert garden engine winter market".split()
sentences = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)


def oracle(texts: dict[int, str], query: str, k1: float = 1.2, b: float = 0.75) -> dict[int, float]:
    documents = {row: terms(text) for row, text in texts.items()}
    mean = sum(map(len, documents.values())) / len(documents)
    scores: dict[int, float] = {}
    for word in dict.fromkeys(terms(query)):
        holding = [row for row, words in documents.items() if word in words]
        idf = math.log(1 + (len(documents) - len(holding) + 0.5) / (len(holding) + 0.5))
        for row in holding:
            count, size = Counter(documents[row])[word], len(documents[row])
            part = idf * count * (k1 + 1) / (count + k1 * (1 - b + b * size / mean))
            scores[row] = scores.get(row, 0.0) + part
    return scores


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(sentences, st.integers(0, 2)), min_size=1, max_size=12), sentences)
def test_scores_are_bm25_of_all_shards_together(texts, query):
    """Three indexes hold a share each; removed texts do not count."""
    shards = [LexicalIndex() for _ in range(3)]
    for row, (text, shard) in enumerate(texts):
        shards[shard].put([row, 1000 + row], [text, "harbor removed"])
    for index in shards:
        index.flush()
    for row, (_, shard) in enumerate(texts):
        shards[shard].drop([1000 + row], ["harbor removed"])
    for index in shards:
        index.flush()
    known = WordStatistics.of_all(index.statistics(query) for index in shards)
    rows = {row for index in shards for row in index.search(query, len(texts))[1]}
    expected = oracle({row: text for row, (text, _) in enumerate(texts)}, query)
    assert rows == set(expected)
    asked = frozenset(query_words(query))
    for row, (text, shard) in enumerate(texts):
        kept, fresh = (
            shards[shard].matched(row, asked, "unread"),
            matched(asked, longest_first(stored_terms(text))),
        )
        assert kept == fresh
        assert bm25(kept, known, rarity_of(asked, known)) == pytest.approx(expected.get(row, 0.0), rel=1e-9)


class LexicalAgainstDict(RuleBasedStateMachine):
    @initialize()
    def start(self):
        self.index, self.model, self.next = LexicalIndex(), {}, 0

    @rule(texts=st.lists(sentences, min_size=1, max_size=5))
    def add(self, texts):
        rows = [*range(self.next, self.next + len(texts))]
        self.next += len(texts)
        self.index.put(rows, texts)
        self.model.update(zip(rows, texts, strict=True))

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data):
        gone = data.draw(st.lists(st.sampled_from(sorted(self.model)), unique=True))
        texts = [self.model[row] for row in gone]
        assert self.index.drop([*gone, -1], [*texts, "unknown"]) == len(gone)
        for row in gone:
            del self.model[row]

    @rule(query=sentences)
    def search(self, query):
        _, rows = self.index.search(query, 1000)
        asked = set(terms(query))
        assert sorted(rows) == [row for row in self.model if asked & set(terms(self.model[row]))]
        again = LexicalIndex()
        again.put([*self.model], [*self.model.values()])
        again.flush()
        assert self.index.statistics(query) == again.statistics(query)

    @rule(query=sentences, k=st.integers(0, 4), data=st.data())
    def search_among(self, query, k, data):
        among = data.draw(st.sets(st.sampled_from(sorted(self.model)))) if self.model else set()
        scores, rows = self.index.search(query, k, among)
        everywhere = dict(zip(*self.index.search(query, 1000)[::-1], strict=True))
        best = sorted((everywhere[row] for row in among if row in everywhere), reverse=True)[:k]
        assert set(rows) <= among and scores == pytest.approx(best, rel=1e-4)


TestLexicalAgainstDict = LexicalAgainstDict.TestCase
TestLexicalAgainstDict.settings = settings(max_examples=20, stateful_step_count=15, deadline=None)


def test_among_many_rows_equals_among_few(monkeypatch):
    index = LexicalIndex()
    index.put([*range(300)], [f"{WORDS[i % 10]} {WORDS[i % 7]} {i}" for i in range(300)])
    among = [row for row in range(300) if row % 3]
    few = index.search("violin garden", 20, among)
    monkeypatch.setattr(bm25_module, "MAX_SET", 10)
    many = index.search("violin garden", 20, among)
    assert few[0] == pytest.approx(many[0], rel=1e-4) and set(many[1]) <= set(among) and len(many[1]) == 20


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_stored_and_is_a_query(text):
    index = LexicalIndex()
    index.put([1, 2], [text, "plain harbor"])
    asked = set(terms(text))
    shared = [
        bool(matched(asked, longest_first(stored_terms(stored))).counts) for stored in (text, "plain harbor")
    ]
    assert sorted(index.search(text, 5)[1]) == [row for row, yes in zip((1, 2), shared, strict=True) if yes]
    assert shared[0] == bool(asked)
    assert index.search("harbor", 5)[1]


@pytest.mark.parametrize(
    "query", ['row:1 OR text:"', "(((", "a AND", "*", "harbor^", "\ud800 harbor", "harbor\x00", "[a TO b", ""]
)
def test_query_syntax_is_only_text(query):
    index = LexicalIndex()
    index.put([1], ["the harbor at night"])
    assert index.search(query, 3)[1] == ([1] if "harbor" in query else [])


def test_words_meet_in_other_forms():
    index = LexicalIndex()
    index.put([1, 2], ["Ada wrote novels in Malmö", "a coral reef"])
    assert index.search("Which novel?", 3)[1] == [1] and index.search("MALMO", 3)[1] == [1]
    assert index.search("what is the of", 3) == ([], [])


def test_a_long_query_is_cut():
    index = LexicalIndex()
    index.put([1], ["harbor"])
    assert index.search("harbor " + " ".join(f"w{i}" for i in range(5000)), 3)[1] == [1]


def test_writes_beyond_the_buffer_are_all_found():
    index = LexicalIndex()
    for row in range(BUFFER + 10):
        index.put([row], [f"harbor {row}"])
    index.drop([0, BUFFER + 5], ["harbor 0", f"harbor {BUFFER + 5}"])
    assert len(index.search("harbor", 2 * BUFFER)[1]) == len(index) == BUFFER + 8


def test_searches_of_many_threads_flush_once():
    index = LexicalIndex()
    index.put([*range(50)], [f"harbor {row}" for row in range(50)])
    with ThreadPoolExecutor(8) as pool:
        found = [*pool.map(lambda _: len(index.search("harbor", 100)[1]), range(40))]
    assert found == [50] * 40


def test_fields_that_the_text_lacks_are_searched():
    fact = memory(kind="relational", subject="Ada", relation="lives_in", object="Lisbon", text="She moved.")
    assert text_of(to_json(fact)) == "She moved. Ada lives in Lisbon"
    made = memory(kind="relational", subject="Ada", relation="lives_in", object="Lisbon")
    assert text_of(to_json(made)) == made.text
