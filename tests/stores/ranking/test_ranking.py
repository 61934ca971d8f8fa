"""Fusion, gate, concert and pages, over candidates without a store."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidInput
from stores.ranking import ranking
from stores.ranking.concert import Concert, recency, weights

NOW = 1_700_000_000.0


def hit(
    id: str, dense: float, lexical: float | None = None, *, text: str = "", time: float = 0.0, novelty=0.5
):
    memory = {"id": id, "kind": "episodic", "text": text, "time": time, "statistics": {"novelty": novelty}}
    return {"memory": memory, "scores": {"dense": dense, "lexical": lexical}}


def ids(results) -> list[str]:
    return [result["memory"]["id"] for result in results]


hits = st.lists(
    st.tuples(st.integers(0, 30), st.floats(-1, 1, width=32), st.none() | st.floats(0.125, 20, width=32)),
    max_size=25,
    unique_by=lambda row: row[0],
).map(lambda rows: [hit(f"m{i:02}", dense, lexical, text="harbor" * (i % 2)) for i, dense, lexical in rows])


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
        first, second = (ranking.full(query, some, k, now=NOW)[0] for some in (found, mixed))
        assert ids(first) == ids(second)
    assert ids(ranking.flat(found, k)[0]) == ids(ranking.flat(mixed, k)[0])


@given(hits, st.integers(1, 5))
def test_pages_put_together_are_the_ranking(found, size):
    for rank_page in (
        lambda k, offset: ranking.full("harbor", found, k, now=NOW, offset=offset)[0],
        lambda k, offset: ranking.flat(found, k, offset)[0],
    ):
        pages = [id for offset in range(0, 25, size) for id in ids(rank_page(size, offset))]
        assert pages == ids(rank_page(25, 0)) and len(pages) == len(found)


@given(hits)
def test_candidates_of_five_shards_rank_as_those_of_one(found):
    """Every shard gives its best of each channel: more candidates in all, the same results."""
    depth = ranking.depth_of(3)
    parts = [found[i::5] for i in range(5)]
    best = [h for part in parts for h in part]
    assert len(best) <= depth
    assert ids(ranking.full("harbor", best, 3, now=NOW)[0]) == ids(
        ranking.full("harbor", found, 3, now=NOW)[0]
    )


def test_depth_cuts_what_more_shards_add():
    found = [hit(f"m{i:03}", 1 - i / 200, None if i < 150 else 1.0 + i) for i in range(200)]
    of_one = sorted(found, key=lambda h: -h["scores"]["dense"])[:32] + found[-32:]
    assert ids(ranking.full(None, found, 8, now=NOW)[0]) == ids(ranking.full(None, of_one, 8, now=NOW)[0])


def test_who_shares_words_passes_who_shares_none():
    found = [hit("near", 0.60, 5.0, text="a painting"), hit("named", 0.58, 5.1, text="the violin in Lisbon")]
    assert ids(ranking.full("violin Lisbon", found, 2, now=NOW)[0]) == ["named", "near"]


def test_the_strange_go_behind_everybody():
    found = [
        hit("strange", 0.2, None, text="coral"),
        *(hit(f"m{i}", 0.1, 1.0, text="violin") for i in range(9)),
    ]
    results, _ = ranking.full("violin", found, 10, now=NOW)
    assert ids(results)[-1] == "strange" and results[-1]["score"] < 0 < results[-2]["score"]
    scores = [result["score"] for result in results]
    assert scores == sorted(scores, reverse=True)


def test_a_query_of_stop_words_opens_the_gate():
    found = [hit("a", 0.2), hit("b", 0.1)]
    assert all(result["score"] > 0 for result in ranking.full("what is it", found, 2, now=NOW)[0])


def test_concert_decides_near_ties_and_is_told():
    found = [hit("old", 0.5, 2.0, time=NOW - 1e7), hit("fresh", 0.5, 2.0, time=NOW)]
    results, _ = ranking.full(None, found, 2, now=NOW)
    expected = weights([0.5, 0.5], recency([NOW, NOW - 1e7], NOW, Concert().tau_s), [0.5, 0.5])
    assert [r["scores"]["concert"] for r in results] == pytest.approx(
        expected[:: 1 if ids(results)[0] == "fresh" else -1]
    )
    assert results[0]["scores"]["concert"] <= 1.0


def test_concert_stays_mild():
    best = hit("best", 0.9, 9.0, text="violin", time=0.0, novelty=0.0)
    rest = [hit(f"m{i}", 0.5, 3.0 - i, text="violin", time=NOW, novelty=1.0) for i in range(3)]
    results, _ = ranking.full("violin", [best, *rest], 4, now=NOW)
    assert results[0]["score"] <= (1 + ranking.CONCERT) and ids(results)[0] == "best"


def test_relevant_is_who_scores_a_share_of_the_best():
    found = [hit(f"m{i}", 0.8 - i / 10, 3.0 - i, text="violin" if i < 2 else "drum") for i in range(4)]
    results, _ = ranking.full("violin", found, 4, now=NOW)
    scores = [result["score"] for result in results]
    for share in (0.0, 0.3, 0.6, 0.9, 1.0):
        kept = ranking.relevant(results, share)
        assert kept == [r for r, score in zip(results, scores, strict=True) if score >= share * scores[0]]
    assert len(ranking.relevant(results, 0.6)) < len(ranking.relevant(results, 0.0)) == 4
    assert ids(ranking.relevant(results, 1.0)) == [ids(results)[0]]
    assert ranking.relevant([], 0.6) == []


def test_all_are_relevant_where_scores_do_not_tell():
    strangers = [hit(f"m{i}", 0.2 - i / 100, None, text="drum") for i in range(3)]
    results, _ = ranking.full("violin", strangers, 3, now=NOW)
    assert results[0]["score"] < 0 and ranking.relevant(results, 0.9) == results
    found = [hit(f"m{i}", 0.8 - i / 10, 3.0 - i, text="violin") for i in range(3)]
    results, _ = ranking.full("violin", found, 3, now=NOW, rerank=lambda texts, query: [1.0, 2.0, 3.0])
    assert ranking.relevant(results, 1.0) == results


def test_an_injected_model_reranks():
    found = [hit(f"m{i}", 1 - i / 10, None, text=f"text {i}") for i in range(5)]
    asked = []

    def rerank(texts, query):
        asked.append((list(texts), query))
        return [float(text.split()[1]) for text in texts]

    results, stages = ranking.full("which text", found, 3, now=NOW, rerank=rerank)
    assert ids(results) == ["m4", "m3", "m2"] and results[0]["scores"]["rerank"] == 4.0
    assert asked[0][1] == "which text" and stages[-1]["stage"] == "rerank"


def test_the_trace_names_every_stage():
    found = [hit(f"m{i}", random.Random(i).random(), 1.0 + i, text="violin") for i in range(20)]
    _, stages = ranking.full("violin", found, 3, now=NOW)
    assert [stage["stage"] for stage in stages] == ["fuse", "gate", "concert"]
    for stage in stages:
        assert stage["ms"] >= 0 and stage["candidates"] == 20 and len(stage["best"]) == ranking.TRACED


def test_an_id_comes_once():
    assert ids(ranking.full(None, [hit("a", 0.5), hit("a", 0.5), hit("b", 0.4)], 5, now=NOW)[0]) == ["a", "b"]


def test_an_unknown_retrieval_is_refused():
    with pytest.raises(InvalidInput):
        ranking.ranked("best", None, [], 3, now=NOW)
    assert ranking.ranked("full", "x", [], 3, now=NOW)[0] == []
