"""A fact that was told several times: each telling is erased by itself."""

import pytest

from stores.writes.batch import MemoryBatch
from tests.support.stores import NOW, memory, open_shard, unit


@pytest.mark.parametrize("by", ["id", "filter"])
def test_one_telling_of_a_fact_is_erased_and_the_others_stay(tmp_path, by):
    shard = open_shard(tmp_path / "shard")

    def tell(id, place, start, conversation):
        fact = {"subject": "Ann", "relation": "lives_in", "object": place, "time": start}
        item = memory(id, kind="relational", text=f"{id} says {place}", conversation=conversation, **fact)
        return shard.memories.put(MemoryBatch.of([(item, unit(len(place)))]), op_id=f"put-{id}", now=start)[0]

    tell("rome", "Rome", NOW, "c1")
    tell("oslo", "Oslo", NOW + 10, "c1")
    statuses = [tell(id, "Oslo", NOW + 20, talk)["status"] for id, talk in (("two", "c2"), ("three", "c1"))]
    assert statuses == ["aggregated", "aggregated"]
    shard.conversations.push(
        "acme", "talk", [{"role": "user", "text": "two says Oslo"}], op_id="push", now=NOW
    )
    where = {"field": "conversation", "op": "eq", "value": "c2"}
    chosen = {"ids": ["two"]} if by == "id" else {"where": where}
    assert shard.erasure.texts_of("acme", **chosen) == ["two says Oslo"]
    receipt = shard.erasure.forget("acme", **chosen, op_id="forget", now=NOW + 30)
    assert receipt["forgotten"] == ["two"] and receipt["turns"] == 1 and receipt["scrubbed"]
    for _ in range(2):
        [fact] = shard.graph.query_facts("acme", object="Oslo")
        assert [each["id"] for each in fact["provenance"]] == ["oslo", "three"]
        ends = {each["id"]: each.get("valid_to") for each in shard.memories.list("acme")}
        assert ends == {"rome": NOW + 10, "oslo": None}
        assert shard.chain.verify() is None
        shard.close()
        assert not any(b"two says" in f.read_bytes() for f in tmp_path.rglob("*") if f.is_file())
        shard = open_shard(tmp_path / "shard")
    shard.erasure.forget("acme", ids=["three", "oslo"], op_id="rest", now=NOW + 40)
    assert [(each["id"], each.get("valid_to")) for each in shard.memories.list("acme")] == [("rome", None)]
    shard.close()
