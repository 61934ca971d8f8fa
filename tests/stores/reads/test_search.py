"""Candidates of a shard: filters against the naive search, whole states under writers."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InvalidInput
from stores.ranking import ranking
from stores.reads import search
from stores.writes.batch import MemoryBatch
from tests.support.stores import DIM, NOW, memory, open_shard, unit

N = 400
WORDS = "harbor lantern violin coral novel dessert garden engine".split()


def made(i: int):
    text = f"{WORDS[i % 8]} and {WORDS[(i // 8) % 8]} {i}"
    extra = {"kind": "episodic", "text": text, "time": NOW - i, "context": {"rare": i % 50, "half": i % 2}}
    return memory(**{"id": f"m{i:03}", **extra})


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    opened = open_shard(tmp_path_factory.mktemp("search") / "shard")
    opened.memories.put(MemoryBatch.of([(made(i), unit(i)) for i in range(N)]), op_id="all", now=NOW)
    yield opened
    opened.close()


def where(field: str, value: int) -> dict:
    return {"field": f"context.{field}", "op": "eq", "value": value}


filters = st.sampled_from(
    [
        None,
        where("rare", 7),
        where("half", 1),
        where("rare", 999),
        {"not": where("half", 1)},
        {
            "and": [
                {"field": "time", "op": "gte", "value": NOW - 100},
                {"field": "time", "op": "lt", "value": NOW - 3},
            ]
        },
    ]
)


@settings(max_examples=60, deadline=None)
@given(filters, st.integers(1, 60), st.integers(0, 50))
def test_filtered_flat_search_is_the_naive_one(shard, spec, k, seed):
    from stores.memory.filters import compile_filter
    from stores.memory.memory import to_json

    keep, query = compile_filter(spec), unit(10_000 + seed)
    scored = [(-float(unit(i) @ query), f"m{i:03}") for i in range(N) if keep(to_json(made(i)))]
    found = shard.search.find("acme", query, k, retrieval="flat", where=spec)
    assert [hit["memory"]["id"] for hit in found] == [id for _, id in sorted(scored)[:k]]


@settings(max_examples=40, deadline=None)
@given(filters, st.integers(1, 6))
def test_filtered_candidates_hold_the_best_of_both_channels(shard, spec, k):
    from stores.memory.filters import compile_filter
    from stores.memory.memory import to_json

    keep, query = compile_filter(spec), unit(77)
    admitted = {f"m{i:03}" for i in range(N) if keep(to_json(made(i)))}
    everything = shard.search.candidates("acme", query, N, query="violin garden 7")["hits"]
    hits = shard.search.candidates("acme", query, k, query="violin garden 7", where=spec)["hits"]
    found = {hit["memory"]["id"]: hit["scores"] for hit in hits}
    assert set(found) <= admitted
    for channel in ("dense", "lexical"):
        allowed = [
            hit["scores"][channel]
            for hit in everything
            if hit["memory"]["id"] in admitted and hit["scores"][channel] is not None
        ]
        best = sorted(allowed, reverse=True)[: ranking.depth_of(k)]
        got = sorted((s[channel] for s in found.values() if s[channel] is not None), reverse=True)
        assert got[: len(best)] == pytest.approx(best, abs=1e-5)


def test_words_find_what_vectors_do_not(shard):
    far = -unit(123)
    best = shard.search.find("acme", far, 3, query=f"the {made(123).text}", now=NOW)[0]
    assert best["memory"]["id"] == "m123" and best["scores"]["lexical"] > 0
    assert best["scores"]["dense"] == pytest.approx(-1.0, abs=1e-5)
    assert "m123" not in [h["memory"]["id"] for h in shard.search.find("acme", far, 3, retrieval="flat")]


def test_pages_of_a_search(shard):
    whole = [
        h["memory"]["id"] for h in shard.search.find("acme", unit(3), 12, query="violin", now=NOW, offset=0)
    ]
    parts = [
        h["memory"]["id"]
        for offset in (0, 4, 8)
        for h in shard.search.find("acme", unit(3), 4, query="violin", now=NOW, offset=offset)
    ]
    assert parts == whole and len(set(parts)) == 12


def test_pages_end(shard):
    with pytest.raises(InvalidInput):
        shard.search.find("acme", unit(3), 4, query="violin", offset=ranking.PAGED)


def test_the_answer_is_the_callers_own(shard):
    shard.search.find("acme", unit(3), 1, query="violin")[0]["memory"]["context"].clear()
    assert shard.search.find("acme", unit(3), 1, query="violin")[0]["memory"]["context"]


def test_other_namespaces_say_nothing(shard):
    assert shard.search.candidates("other", unit(1), 3, query="violin")["hits"] == []
    assert shard.search.find("other", unit(1), 3, query="violin") == []


def test_bad_retrieval_is_refused(shard):
    with pytest.raises(InvalidInput):
        shard.search.find("acme", unit(1), 3, retrieval="best")


def test_forgotten_memories_leave_both_channels(tmp_path):
    shard = open_shard(tmp_path / "shard")
    shard.memories.put(MemoryBatch.of([(made(i), unit(i)) for i in range(20)]), op_id="a", now=NOW)
    assert shard.search.find("acme", unit(5), 1, query=made(5).text)[0]["memory"]["id"] == "m005"
    shard.erasure.forget("acme", ids=["m005"], op_id="b", now=NOW)
    assert all(
        h["memory"]["id"] != "m005" for h in shard.search.find("acme", unit(5), 50, query=made(5).text)
    )
    shard.close()
    again = open_shard(tmp_path / "shard")
    assert len(again.search.find("acme", unit(5), 50, query=made(6).text)) == 19
    again.close()


@pytest.mark.parametrize("spec", [None, where("rare", 3)])
def test_a_write_is_seen_whole_or_not_at_all(tmp_path, spec, monkeypatch):
    """Pairs are written and forgotten together; no search, filtered in Python or not, sees one of them."""
    monkeypatch.setattr(search, "WIDE", 1)  # filters take the long way
    shard = open_shard(tmp_path / "shard")
    shard.memories.put(MemoryBatch.of([(made(i), unit(i)) for i in range(N)]), op_id="base", now=NOW)
    near = unit(5)
    stop, torn = threading.Event(), []

    def look():
        while not stop.is_set():
            hits = shard.search.find("acme", near, 8, query="pair", where=spec, now=NOW)
            seen = [h["memory"]["id"] for h in hits if h["memory"]["id"].startswith("pair")]
            if len(seen) % 2:
                torn.append(seen)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(20):
            pair = [
                (memory(f"pair{turn}-{side}", context={"rare": 3}), _close(near, turn + side))
                for side in (0, 1)
            ]
            shard.memories.put(MemoryBatch.of(pair), op_id=f"put{turn}", now=NOW)
            shard.erasure.forget("acme", ids=[m.id for m, _ in pair], op_id=f"forget{turn}", now=NOW)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        shard.close()
    assert not torn


def _close(vector: np.ndarray, seed: int) -> np.ndarray:
    moved = vector + 0.05 * unit(seed, DIM)
    return moved / np.linalg.norm(moved)


def test_an_exact_identifier_is_before_those_that_share_its_common_parts(tmp_path):
    """However near the vectors of the others are: rare words count more than ones that all of them have."""
    shard = open_shard(tmp_path / "shard")
    query, far = unit(0), unit(1)
    others = [
        (memory(f"o{i}", text=f"Note {i}: the reference is INV-2024-{i:05}."), unit(0) + 0.01 * unit(i + 2))
        for i in range(100)
    ]
    wanted = (memory("wanted", text="The parcel of Nils has the reference INV-2024-48191."), far)
    shard.memories.put(
        MemoryBatch.of([(m, v / np.linalg.norm(v)) for m, v in [*others, wanted]]), op_id="all", now=NOW
    )
    for spelt in ("Whose is inv 2024 48191?", "INV-2024-48191", "inv-2024-48191 please"):
        found = shard.search.find("acme", query, 3, query=spelt, retrieval="full", now=NOW)
        assert found[0]["memory"]["id"] == "wanted"
    shard.close()
