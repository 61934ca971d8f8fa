"""A store and exports written by earlier code (commit 4f97a4c, before rooms and names changed) read as they did.

`tests/data/store-4f97a4c/` holds an LMDB shard, a shard of JSON lines with a snapshot and a tail, two export files,
and what that code answered about them. Fields have other names today than on disk (`STORED_AS`): assertions of a
fact are `tellings` there, retention is `vigour`.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from common.config import StoreConfig
from stores.shard.shard import Shard
from stores.transfer import files

DATA = Path(__file__).resolve().parents[2] / "data" / "store-4f97a4c"
DIM, NOW = 8, 1_780_000_000.0


def unit(seed):
    vector = np.random.default_rng(seed).normal(size=DIM).astype(np.float32)
    return vector / np.linalg.norm(vector)


def opened(folder, backend="lmdb"):
    config = StoreConfig(backend=backend, map_size_bytes=1 << 24, snapshot_every=0)
    return Shard(folder, number=0, dim=DIM, config=config)


def answers(shard, namespace):
    listed = shard.memories.list(namespace, limit=100)
    found = shard.search.find(namespace, unit(2), 5, query="cat sleeps", now=NOW)
    return {
        "list": listed,
        "history": {m["id"]: shard.memories.history(namespace, m["id"]) for m in listed},
        "weakest": shard.memories.weakest(namespace, 10, now=NOW + 200_000),
        "facts": shard.graph.query_facts(namespace),
        "where": shard.graph.query_places(namespace, "position", place="museum"),
        "relation": shard.graph.query_places(namespace, "relation", place="cafe", other="library"),
        "line": shard.keyed.get(namespace, "drink"),
        "turns": shard.conversations.peek(namespace, "talk", 10),
        "search": [[hit["memory"]["id"], round(hit["score"], 6)] for hit in found],
    }


def as_json(value):
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("backend", ["lmdb", "jsonl"])
def test_a_shard_answers_as_it_did_and_goes_on(tmp_path, backend):
    folder = shutil.copytree(DATA / backend / "0000", tmp_path / "0000")
    expected = json.loads((DATA / f"{backend}.json").read_text())
    shard = opened(folder, backend)
    assert shard.counts()["snapshot"]["seq"] == (23 if backend == "jsonl" else 0)
    for namespace in ("acme", "globex"):
        found = as_json(answers(shard, namespace))
        for name, value in expected[namespace].items():
            if name == "search":  # scores are the ranking's, which changes
                assert [id for id, _ in found[name]] == [id for id, _ in value]
            else:
                assert found[name] == value, name
    counts = shard.counts()
    assert {name: counts[name] for name in expected["counts"]} == expected["counts"]
    assert shard.chain.verify() is None

    retried = shard.memories.touch("acme", ["e1", "e2", "f1"], op_id="op-10", now=NOW)
    assert retried["touched"] == ["e1", "e2", "f1"] and shard.counts()["seq"] == counts["seq"], "a retry"
    receipt = shard.erasure.forget("acme", ids=["f2"], op_id="forget", now=NOW + 1)
    assert receipt["forgotten"] == ["f2"]
    facts = shard.graph.query_facts("acme", subject="Ada", object="Lisbon")
    assert [[source["id"] for source in fact["provenance"]] for fact in facts] == [["f1"]]
    shard.snapshot()
    shard.close()
    again = opened(folder, backend)
    assert again.graph.query_facts("acme", subject="Ada", object="Lisbon") == facts
    again.close()


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_an_export_file_comes_in_whole(tmp_path, form):
    expected = json.loads((DATA / "lmdb.json").read_text())["acme"]
    _, rows = files.load(DATA / f"export.{form}", max_text_bytes=10_000)
    shard = opened(tmp_path / "0000")
    assert files.import_rows(rows, shard.memories.import_rows, op_id="import", now=NOW) == 8
    for memory in expected["list"]:
        found = as_json(shard.memories.get("acme", memory["id"]))
        for name in ("text", "context", "time", "cues", "kind"):
            assert found[name] == memory[name]
        for name in ("usage", "salience", "strength", "count", "last_used", "last_scored"):
            assert found["statistics"][name] == memory["statistics"][name], (memory["id"], name)
    assert as_json(shard.memories.weakest("acme", 10, now=NOW + 200_000))[0]["strength"] == pytest.approx(
        expected["weakest"][0]["strength"],
        abs=1e-4,  # one was written when it was imported
    )
    facts = shard.graph.query_facts("acme", subject="Ada", object="Lisbon")
    assert [[source["id"] for source in fact["provenance"]] for fact in facts] == [["f1", "f2"]]
    shard.close()
