"""A ranking depends neither on how memories fall on shards, nor on how many there are, nor on what was erased."""

import random

import pytest

from stores.ranking import ranking
from stores.writes.batch import MemoryBatch
from tests.support.stores import NOW, memory, open_shard, unit

WORDS = "harbor lantern violin coral novel dessert garden engine winter market not open closed choir meets".split()
QUERIES = ("Where is the violin?", "the choir meets", "winter market garden", "is it open or not")


def memories(seed: int, count: int):
    rng = random.Random(seed)
    return [
        (memory(f"m{i}", text=" ".join(rng.choices(WORDS, k=rng.randint(1, 8))), time=NOW - i * 1e5), unit(i))
        for i in range(count)
    ]


def results(folder, items, of, erased=()):
    """The ranking of each query over shards: item i lies on shard `of(i)`; `erased` were written and forgotten."""
    shards = [open_shard(folder / str(number)) for number in range(max(map(of, range(len(items)))) + 1)]
    for i, item in enumerate([*items, *erased]):
        options = {"op_id": f"p{i}", "now": NOW}
        shards[of(i % len(items))].memories.put(MemoryBatch.of([item]), **options)
    for shard in shards:
        if erased:
            shard.erasure.forget("acme", ids=[each.id for each, _ in erased], op_id="f", now=NOW)
    found = []
    for number, query in enumerate(QUERIES):
        replies = [shard.search.candidates("acme", unit(number), 12, query=query) for shard in shards]
        hits = [hit for reply in replies for hit in reply["hits"]]
        ranked, _ = ranking.full(query, hits, 12, now=NOW, words=ranking.words_of(replies))
        found.append(
            [(r["memory"]["id"], round(r["score"], 5), round(r["scores"]["lexical"] or 0, 5)) for r in ranked]
        )
    for shard in shards:
        shard.close()
    return found


@pytest.mark.parametrize("seed", range(3))
def test_any_number_of_shards_ranks_alike(tmp_path, seed):
    items = memories(seed, 90)
    expected = results(tmp_path / "one", items, lambda i: 0)
    assert all(expected)
    for shards in (2, 5):
        falls = random.Random(seed + shards).choices(range(shards), k=len(items))
        falls[0] = shards - 1
        assert results(tmp_path / str(shards), items, falls.__getitem__) == expected
    erased = [
        (memory(f"gone{i}", text=text.text), vector)
        for i, (text, vector) in enumerate(memories(seed + 9, 30))
    ]
    assert results(tmp_path / "erased", items, lambda i: i % 2, erased) == expected
