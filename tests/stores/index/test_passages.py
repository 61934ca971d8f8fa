"""A long memory has several vectors and is found by the best of them, as one memory, wherever it goes."""

import numpy as np
import pytest

from stores.index.passages import Passages, encode, merged
from stores.shard.shard import Shard
from stores.writes.batch import MemoryBatch
from tests.support.stores import DIM, NOW, axis, memory, open_shard, unit


def put(shard, op_id="p"):
    """Memory `long` has axis 0 and, further on, axes 1 and 2; nine others have one vector each."""
    memories = [
        memory("long", text="first second third"),
        *(memory(f"m{i}", text=f"other {i}") for i in range(9)),
    ]
    vectors = np.stack([axis(0), *(unit(i) for i in range(9))])
    batch = MemoryBatch(memories, vectors, {0: np.stack([axis(1), axis(2)])})
    return shard.memories.put(batch, op_id=op_id, now=NOW)


def best(shard: Shard, vector, **options):
    found = shard.search.find("acme", vector, 3, retrieval="flat", **options)
    assert len({hit["memory"]["id"] for hit in found}) == len(found), "one memory once"
    return found[0]["memory"]["id"], found[0]["score"]


def test_found_by_any_of_its_vectors_also_after_a_restart_and_a_snapshot(tmp_path):
    shard = open_shard(tmp_path / "0")
    assert put(shard)[0]["status"] == "new"
    for turn in range(3):
        for number in range(3):
            assert best(shard, axis(number)) == ("long", pytest.approx(1.0, abs=1e-6)), turn
        kept = {"field": "id", "op": "in", "value": ["long", "m3"]}
        assert best(shard, axis(2), where=kept) == ("long", pytest.approx(1.0, abs=1e-6))
        assert best(shard, axis(2), where={"not": kept})[0] != "long"
        hits = shard.search.find("acme", axis(2), 3, query="second", now=NOW)
        assert hits[0]["memory"]["id"] == "long" and hits[0]["scores"]["dense"] > 0.99
        if turn == 1:
            assert shard.snapshot()
        shard.close()
        shard = open_shard(tmp_path / "0")
    shard.close()


def test_a_new_version_and_an_erasure_take_its_vectors_along(tmp_path):
    shard = open_shard(tmp_path / "0")
    seq = put(shard)[0]["seq"]
    shard.memories.supersede(
        memory("long", text="short"),
        axis(3),
        generation=seq,
        op_id="s",
        now=NOW,
        passages=axis(4).reshape(1, -1),
    )
    assert best(shard, axis(1))[1] < 0.99 and best(shard, axis(4)) == ("long", pytest.approx(1.0, abs=1e-6))
    rows = [*shard.memories.export_rows("acme")]
    other = open_shard(tmp_path / "other")
    other.memories.import_rows(rows, op_id="i", now=NOW)
    assert best(other, axis(4)) == ("long", pytest.approx(1.0, abs=1e-6))
    for each in (shard, other):
        each.erasure.forget("acme", ids=["long"], op_id="f", now=NOW)
        assert best(each, axis(4))[1] < 0.99 and len(each.core.view.spaces["acme"].passages) == 0
        each.close()


def test_search_is_the_maximum_over_vectors():
    rng = np.random.default_rng(3)
    passages, vectors = Passages(DIM), {}

    class Entry:
        def __init__(self, seq, count):
            self.seq = seq
            vectors[seq] = [unit(100 * seq + i) for i in range(count)]
            self.passages = encode(vectors[seq])

    entries = [Entry(seq, int(rng.integers(0, 4))) for seq in range(1, 40)]
    for entry in entries:
        passages.add(entry)
    for entry in entries[::3]:
        passages.remove(entry)
        vectors[entry.seq] = []
    query = unit(7)
    expected = {seq: max(float(v @ query) for v in own) for seq, own in vectors.items() if own}
    found = passages.search(query.reshape(1, -1), 1000)
    assert found == pytest.approx(expected, abs=1e-6)
    among = [seq for seq in expected if seq % 2]
    assert passages.search(query.reshape(1, -1), 5, among) == pytest.approx(
        {s: expected[s] for s in among}, abs=1e-6
    )
    assert [*merged({1: 0.5, 2: 0.4}, {2: 0.9, 3: 0.1}, 2).items()] == [(2, 0.9), (1, 0.5)]
