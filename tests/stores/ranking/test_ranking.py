"""Fusion, gate, concert and pages, over candidates without a store."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidInput
from stores.index.bm25 import WordStatistics, longest_first, matched, query_words
from stores.index.terms import stored_terms
from stores.ranking import ranking

NOW = 1_700_000_000.0


def hit(id: str, dense: float, *, text: str = "", time: float = 0.0, **fields):
    memory = {"id": id, "kind": "episodic", "text": text, "time": time, **fields}
    return {"memory": memory, "scores": {"dense": dense, "lexical": None}}


def words_of(found, query: str | None) -> WordStatistics:
    """What the shards' indexes count, which `test_bm25` compares with texts."""
    each = [stored_terms(hit["memory"]["text"]) for hit in found]
    having = {word: sum(word in text for text in each) for word in query_words(query or "")}
    return WordStatistics(texts=len(each), length=sum(map(len, each)), found=having)


def matching(found, query: str | None):
    """The hits with what their texts have of the query, as a shard gives them."""
    asked = frozenset(query_words(query or ""))
    return [
        {**hit, "words": matched(asked, longest_first(stored_terms(hit["memory"]["text"])))} for hit in found
    ]


def full(query, found, k, *, now=NOW, **options):
    """The ranking with statistics of exactly these texts."""
    return ranking.full(query, matching(found, query), k, now=now, words=words_of(found, query), **options)


def ids(results) -> list[str]:
    return [result["memory"]["id"] for result in results]


texts = st.lists(st.sampled_from("harbor lantern violin coral not meets".split()), max_size=6).map(" ".join)
hits = st.lists(
    st.tuples(st.integers(0, 30), st.floats(-1, 1, width=32), texts, st.integers(0, 3)),
    max_size=25,
    unique_by=lambda row: row[0],
).map(lambda rows: [hit(f"m{i:02}", dense, text=text, time=1e6 * t) for i, dense, text, t in rows])


def test_fusion_is_the_formula():
    dense, lexical = np.array([0.9, 0.8, 0.1]), np.array([np.nan, 5.0, 7.0])
    k = ranking.FUSE
    best = 2 / (k + 1)
    expected = np.array([1 / (k + 1), 1 / (k + 2) + 1 / (k + 2), 1 / (k + 3) + 1 / (k + 1)]) / best
    assert ranking.fuse([dense, lexical], 10) == pytest.approx(expected)
    assert ranking.fuse([dense, lexical], 1) == pytest.approx(np.array([1, 0, 1]) / (k + 1) / best)
    assert ranking.fuse([dense, np.full(3, np.nan)], 10)[0] == pytest.approx(1.0)


@given(hits, st.integers(1, 12), st.randoms(use_true_random=False))
def test_the_order_of_candidates_does_not_matter(found, k, shuffled):
    mixed = [*found]
    shuffled.shuffle(mixed)
    for query in ("where is the harbor", None):
        first, second = (full(query, some, k)[0] for some in (found, mixed))
        assert ids(first) == ids(second)
    assert ids(ranking.flat(found, k)[0]) == ids(ranking.flat(mixed, k)[0])


@given(hits, st.integers(1, 5))
def test_pages_put_together_are_the_ranking(found, size):
    for rank_page in (
        lambda k, offset: full("harbor", found, k, offset=offset)[0],
        lambda k, offset: ranking.flat(found, k, offset)[0],
    ):
        pages = [id for offset in range(0, 25, size) for id in ids(rank_page(size, offset))]
        assert pages == ids(rank_page(25, 0)) and len(pages) == len(found)


@given(hits, st.integers(1, 7))
def test_candidates_of_several_shards_rank_as_those_of_one(found, shards):
    parts = [found[i::shards] for i in range(shards)]
    words = WordStatistics.of_all(words_of(part, "harbor violin") for part in parts)
    hits = matching([hit for part in parts for hit in part], "harbor violin")
    of_many = ranking.full("harbor violin", hits, 5, now=NOW, words=words)[0]
    assert of_many == full("harbor violin", found, 5)[0]


def test_depth_cuts_what_more_shards_add():
    found = [hit(f"m{i:03}", 1 - i / 200, text=f"word{i}") for i in range(200)]
    assert ids(full(None, found, 8)[0]) == ids(full(None, found[:32], 8)[0])


def test_who_shares_words_passes_who_shares_none():
    found = [hit("near", 0.60, text="a painting"), hit("named", 0.58, text="the violin in Lisbon")]
    assert ids(full("violin Lisbon", found, 2)[0]) == ["named", "near"]


def test_the_strange_go_behind_everybody():
    found = [
        hit("strange", 0.2, text="coral"),
        *(hit(f"m{i}", 0.1, text="violin") for i in range(9)),
    ]
    results, _ = full("violin", found, 10)
    assert ids(results)[-1] == "strange" and results[-1]["score"] < 0 < results[-2]["score"]
    scores = [result["score"] for result in results]
    assert scores == sorted(scores, reverse=True)


def test_a_query_of_stop_words_opens_the_gate():
    found = [hit("a", 0.2), hit("b", 0.1)]
    assert all(result["score"] > 0 for result in full("what is it", found, 2)[0])


def test_of_near_ties_the_newer_wins_at_any_age():
    for age in (3600.0, 86400.0, 7 * 86400.0, 3e7, 3e8):
        found = [
            hit("old", 0.5, text="violin alpha", time=NOW - 1.5 * age),
            hit("new", 0.5, text="violin omega", time=NOW - age),
        ]
        results, _ = full("violin", found, 2)
        concert = [r["scores"]["concert"] for r in results]
        assert ids(results) == ["new", "old"] and 1.0 >= concert[0] > concert[1] > 0.0


def test_concert_stays_mild():
    best = hit("best", 0.9, text="a violin of old wood in the attic")
    rest = [hit(f"m{i}", 0.5 - i / 10, text=f"violin number {i}", time=NOW) for i in range(3)]
    results, _ = full("old violin", [best, *rest], 4)
    assert results[0]["score"] <= (1 + ranking.CONCERT) and ids(results)[0] == "best"


def test_equal_scores_share_a_rank():
    scores = ranking.fuse([np.array([0.5, 0.5 + 1e-9, 0.1, 0.9])], 10) * 1.0
    assert scores[0] == scores[1] < scores[3] and scores[2] == pytest.approx(
        (ranking.FUSE + 1) / (ranking.FUSE + 4)
    )


def test_the_querys_own_text_is_first_also_before_its_negation():
    found = [
        hit("negated", 0.999, text="The shop is not open on Sundays.", time=NOW),
        hit("same", 1.0, text="The shop is open on Sundays.", time=1.0),
    ]
    assert ids(full("the shop is open on Sundays", found, 2)[0]) == ["same", "negated"]


STATEMENTS = [
    ("The choir meets on Mondays.", "The choir meets on Thursdays.", "When does the choir meet?"),
    ("Ada's favourite tea is oolong.", "Ada's favourite tea is now jasmine.", "What is Ada's favourite tea?"),
    ("Der Chor probt montags im Saal.", "Der Chor probt donnerstags im Saal.", "Wann probt der Chor?"),
    ("合唱团每周一在礼堂排练。", "合唱团每周四在礼堂排练。", "合唱团什么时候排练?"),
]


@pytest.mark.parametrize("age", [60.0, 86400.0, 40 * 86400.0, 5e8])
@pytest.mark.parametrize(("old", "new", "query"), STATEMENTS)
def test_of_two_statements_the_newer_is_first(old, new, query, age):
    """Also where the older one is nearer to the question."""
    found = [hit("old", 0.8, text=old, time=NOW - 2 * age), hit("new", 0.7, text=new, time=NOW - age)]
    others = [hit(f"m{i}", 0.75, text=f"Something else, number {i}.", time=NOW) for i in range(5)]
    results, stages = full(query, [*found, *others], 7)
    assert [id for id in ids(results) if id in ("old", "new")] == ["new", "old"] and ids(results)[0] == "new"
    scores = [result["score"] for result in results]
    assert scores == sorted(scores, reverse=True) and stages[-1]["stage"] == "order"


def test_statements_about_other_things_keep_their_places():
    found = [
        hit("asked", 0.9, text="Ada's cat is called Tom.", time=NOW - 1e7),
        hit("newer", 0.8, text="Bo's cat is called Kit.", time=NOW),
    ]
    assert ids(full("What is Ada's cat called?", found, 2)[0]) == ["asked", "newer"]


def test_what_has_ended_comes_last():
    found = [
        hit("ended", 0.9, text="Ivo lives in Oslo.", kind="relational", time=1.0, valid_to=NOW - 1),
        hit("holds", 0.3, text="Ivo owns a boat.", time=NOW),
    ]
    assert ids(full("Where does Ivo live?", found, 2)[0]) == ["holds", "ended"]
    assert ids(full("Where does Ivo live?", found, 2, now=NOW - 10)[0]) == ["ended", "holds"]


def test_relevant_is_who_scores_a_share_of_the_best():
    texts = ["violin by the sea", "one more violin", "a drum", "some drum"]
    found = [hit(f"m{i}", 0.8 - i / 10, text=text) for i, text in enumerate(texts)]
    results, _ = full("violin", found, 4)
    scores = [result["score"] for result in results]
    for share in (0.0, 0.3, 0.6, 0.9, 1.0):
        kept = ranking.relevant(results, share)
        assert kept == [r for r, score in zip(results, scores, strict=True) if score >= share * scores[0]]
    assert len(ranking.relevant(results, 0.6)) < len(ranking.relevant(results, 0.0)) == 4
    assert ids(ranking.relevant(results, 1.0)) == [ids(results)[0]]
    assert ranking.relevant([], 0.6) == []


def test_all_are_relevant_where_scores_do_not_tell():
    strangers = [hit(f"m{i}", 0.2 - i / 100, text="drum") for i in range(3)]
    results, _ = full("violin", strangers, 3)
    assert results[0]["score"] < 0 and ranking.relevant(results, 0.9) == results
    found = [hit(f"m{i}", 0.8 - i / 10, text=f"violin {i}") for i in range(3)]
    results, _ = full("violin", found, 3, rerank=lambda texts, query: [1.0, 2.0, 3.0])
    assert ranking.relevant(results, 1.0) == results


def test_an_injected_model_reranks():
    found = [hit(f"m{i}", 1 - i / 10, text=f"text {i} {'abcde'[i] * 3}") for i in range(5)]
    asked = []

    def rerank(texts, query):
        asked.append((list(texts), query))
        return [float(text.split()[1]) for text in texts]

    results, stages = full("which text", found, 3, rerank=rerank)
    assert ids(results) == ["m4", "m3", "m2"] and results[0]["scores"]["rerank"] == 4.0
    assert asked[0][1] == "which text" and stages[-2]["stage"] == "rerank"


def test_the_trace_names_every_stage():
    found = [hit(f"m{i}", random.Random(i).random(), text="violin") for i in range(20)]
    _, stages = full("violin", found, 3)
    assert [stage["stage"] for stage in stages] == ["lexical", "fuse", "gate", "concert", "order"]
    for stage in stages:
        assert stage["ms"] >= 0 and stage["candidates"] == 20 and len(stage["best"]) == ranking.TRACED


def test_an_id_comes_once():
    assert ids(full(None, [hit("a", 0.5), hit("a", 0.5), hit("b", 0.4)], 5)[0]) == ["a", "b"]


def test_an_unknown_retrieval_is_refused():
    with pytest.raises(InvalidInput):
        ranking.ranked("best", None, [], 3, now=NOW)
    assert ranking.ranked("full", "x", [], 3, now=NOW)[0] == []
