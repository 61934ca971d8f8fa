"""A shard by itself: what is written is found, refused whole, safe among threads, and there after kill -9."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from common.config import StoreConfig
from common.errors import Conflict, InvalidInput, NotReady, StoreCorrupt
from stores.locks import ReadWriteLock
from stores.memory.memory import content_digest, to_json
from stores.shard.shard import Shard
from stores.view.view import cursor_of
from stores.writes import lookups
from stores.writes.batch import MemoryBatch
from tests.support.stores import DIM, NOW, axis, ids, memory, open_shard, unit

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def shard(tmp_path):
    shard = open_shard(tmp_path / "shard")
    yield shard
    shard.close()


def conflicts(shard, *memories):
    return shard.memories.prepare(memories, MemoryBatch([], [])).conflicts


def put(shard, *memories, op_id=None, vectors=None):
    vectors = vectors or [unit(crc32(m.id.encode())) for m in memories]
    return shard.memories.put(
        MemoryBatch.of(list(zip(memories, vectors, strict=True))), op_id=op_id or os.urandom(8).hex(), now=NOW
    )


def test_a_put_has_the_digest_that_earlier_versions_gave_it():
    """A retry may come after an upgrade."""
    told = {"context": {"b": [1, 2.5, None, True], "ä": {"a": ""}}, "time": 1.7e9, "reward": 0.25}
    first = memory("m1", text='Zoë moved \u2028 "to" Oslo\n', **told)
    second = memory("m2", cues=[{"question": "q?", "answer": "a"}])
    assert lookups.put_digest([first, second]) == "7e368a9f9304827f"
    huge = memory("m3", context={"number": 10**40})
    assert lookups.put_digest([huge]) == lookups.request_digest(
        "put", [content_digest(replace(huge, time=0.0))]
    )


# Writing


def test_one_clash_refuses_the_whole_call_and_writes_nothing(shard):
    put(shard, memory("m1"))
    before = shard.counts()
    with pytest.raises(Conflict, match="'m1'"):
        put(shard, memory("m2"), memory("m1", text="something else"))
    with pytest.raises(Conflict, match="'m3'"):
        put(shard, memory("m3"), memory("m3", text="something else"))
    assert shard.counts() == before and shard.memories.get("acme", "m2") is None
    assert conflicts(shard, memory("m1"), memory("m2"), memory("m1", text="x"))[:2] == [None, None]
    assert "m1" in conflicts(shard, memory("m1", text="x"))[0]


def test_an_op_id_stands_for_one_request(shard):
    """Else a retry with a used id would answer with what somebody else wrote."""
    theirs = put(shard, memory("m1", namespace="other"), op_id="o")
    assert put(shard, memory("m1", namespace="other"), op_id="o") == theirs
    for taken in (memory("m1"), memory("m2", namespace="other"), memory("m1", namespace="other", text="new")):
        with pytest.raises(Conflict, match="op_id 'o'"):
            put(shard, taken, op_id="o")
    with pytest.raises(Conflict):
        shard.memories.touch("other", ["m1"], op_id="o", now=NOW)


def test_the_same_id_in_two_namespaces_is_two_memories(shard):
    put(shard, memory("m1"), memory("m1", namespace="other", text="theirs"))
    assert shard.memories.get("other", "m1")["text"] == "theirs" != shard.memories.get("acme", "m1")["text"]
    shard.erasure.forget("acme", everything=True, op_id="f", now=NOW)
    assert ids(shard.memories.list("other")) == ["m1"] and shard.memories.list("acme") == []


def test_an_empty_call_is_fine(shard):
    assert put(shard) == []
    assert shard.memories.touch("acme", [], op_id="t", now=NOW) == {"touched": [], "unknown": []}
    assert shard.memories.score("acme", [], op_id="s", now=NOW) == {"scored": {}, "unknown": []}
    assert shard.erasure.forget("acme", ids=[], op_id="f", now=NOW)["forgotten"] == []
    assert shard.search.find("acme", unit(0), 3) == [] and shard.memories.statistics("acme").num_rows == 0


def test_a_memory_of_a_megabyte_comes_back(shard):
    large = memory("m1", text="x" * 9_999, context={"notes": ["é" * 100] * 40})
    put(shard, large)
    assert to_json(large).items() <= shard.memories.get("acme", "m1").items()


@pytest.mark.parametrize(
    "vector",
    [
        np.ones(DIM, np.float32),
        np.zeros(DIM, np.float32),
        np.full(DIM, np.nan, np.float32),
        np.eye(DIM + 1, dtype=np.float32)[0],
        np.eye(DIM, dtype=np.float32),
    ],
)
def test_vectors_that_would_spoil_the_index_are_refused(shard, vector):
    with pytest.raises(InvalidInput):
        put(shard, memory("m1"), memory("m2"), vectors=[unit(1), vector])
    assert shard.counts()["memories"] == 0
    with pytest.raises(InvalidInput):
        shard.search.find("acme", vector, 1)


def test_the_gate_stores_what_is_novel_rewarded_or_pinned_and_says_why(tmp_path):
    shard = open_shard(tmp_path / "shard", gate_tau=0.5)
    same = axis(0)
    close = np.array([0.9, np.sqrt(1 - 0.81), 0, 0, 0, 0, 0, 0], np.float32)
    answers = put(
        shard,
        *(
            memory("first"),
            memory("close"),
            memory("paid", reward=1.0),
            memory("pinned", pin=True),
            memory("new"),
        ),
        vectors=[same, close, same, same, axis(5)],
    )
    assert [answer["status"] for answer in answers] == ["new", "refused", "new", "new", "new"]
    assert answers[1] | {"gate": None} == {
        **{"id": "close", "kind": "episodic", "stored": False, "status": "refused", "gate": None},
        **{"anchor": None, "shard": 0, "seq": None},
    }
    assert answers[1]["gate"]["score"] == pytest.approx(0.1, abs=1e-5)
    assert "novelty 0.100" in answers[1]["gate"]["reason"] and "0.5" in answers[1]["gate"]["reason"]
    for _ in range(2):
        counts = shard.counts()
        assert (counts["gate_attempts"], counts["gate_accepts"], counts["memories"]) == (5, 4, 4)
        shard.close()
        shard = open_shard(tmp_path / "shard", gate_tau=0.5)
    answer = shard.memories.put(
        MemoryBatch.of([(memory("far"), axis(6))]), op_id="o", now=NOW, elsewhere=[0.8]
    )
    assert answer[0]["status"] == "refused", "what other shards hold counts as well"
    shard.close()


def test_novelty_is_one_minus_the_highest_cosine_of_the_namespace(shard):
    put(shard, memory("a"), memory("b"), memory("c", namespace="other"), vectors=[axis(0), axis(0), axis(0)])
    novelty = {row["id"]: row["novelty"] for row in shard.memories.statistics("acme").to_pylist()}
    assert novelty == {"a": 1.0, "b": 0.0}
    assert shard.memories.statistics("other")["novelty"].to_pylist() == [1.0]
    assert [
        cosine
        for space, vector in (("acme", axis(0)), ("other", axis(1)), ("empty", axis(0)))
        for cosine in shard.memories.prepare(
            [], MemoryBatch.of([(memory("z", namespace=space), vector)])
        ).cosines
    ] == [1.0, 0.0, 0.0]


def test_scores_average_into_salience_and_bad_ones_change_nothing(shard):
    put(shard, memory("m1"))
    for bad in [[("m1", float("nan"))], [("m1", 1.0), ("m1", 2.0)]]:
        with pytest.raises(InvalidInput):
            shard.memories.score("acme", bad, op_id="bad", now=NOW)
    found = [
        shard.memories.score("acme", [("m1", d), ("x", 1.0)], op_id=f"{d}", now=NOW)["scored"]["m1"]
        for d in (10, -4, 2)
    ]
    assert found == pytest.approx([10.0, 7.0, 5.5])


def test_a_memory_written_again_after_forgetting_is_a_new_generation(shard):
    put(shard, memory("m1"))
    shard.memories.touch("acme", ["m1"], op_id="t", now=NOW)
    first = shard.memories.get("acme", "m1")["statistics"]
    shard.erasure.forget("acme", ids=["m1"], op_id="f", now=NOW)
    put(shard, memory("m1", text="other content"))
    second = shard.memories.get("acme", "m1")["statistics"]
    assert second["generation"] > first["generation"] and second["usage"] == 0


def test_forget_wants_one_way_of_choosing(shard):
    for how in ({}, {"ids": [], "everything": True}, {"ids": ["a"], "where": {}}):
        with pytest.raises(InvalidInput):
            shard.erasure.forget("acme", **how, op_id="f", now=NOW)


def test_forgotten_content_is_nowhere_on_disk(shard):
    put(shard, memory("m1", text="the secret of Ada"), memory("m2"))
    secret = unit(77)
    put(shard, memory("m3"), vectors=[secret])
    shard.erasure.forget("acme", ids=["m1", "m3", "absent"], op_id="f", now=NOW)
    disk = b"".join(file.read_bytes() for file in shard.core.log.path.rglob("*") if file.is_file())
    assert b"secret" not in disk and secret.tobytes() not in disk and b"this is m2" in disk
    assert shard.chain.verify() is None


# Reading


def test_search_is_restricted_before_the_best_k_are_taken(shard):
    """The wanted memory is the worst of 200 by cosine: a filter after k would lose it."""
    query = axis(0)
    crowd = [memory(f"m{i:03}", context={"n": i}) for i in range(200)]
    put(shard, *crowd, vectors=[query] * 200)
    put(shard, memory("wanted", context={"n": -1}), vectors=[axis(1)])
    put(shard, memory("place", kind="spatial", place="p", x=0, y=0), vectors=[-query])
    put(shard, memory("theirs", namespace="other"), vectors=[query])
    where = {"field": "context.n", "op": "lt", "value": 0}
    assert ids(shard.search.find("acme", query, 1, where=where)) == ["wanted"]
    assert ids(shard.search.find("acme", query, 1, kinds=["spatial"])) == ["place"]
    assert shard.search.find("acme", query, 1, kinds=["spatial"], where=where) == []
    assert shard.search.find("acme", query, 1, kinds=[]) == [] and shard.search.find("acme", query, 0) == []
    assert len(shard.search.find("acme", query, 10_000)) == 202
    assert ids(shard.search.find("other", query, 5)) == ["theirs"]
    assert shard.search.find("nobody", query, 5) == []


def test_search_equals_the_naive_search(shard):
    vectors = {f"m{i}": unit(i) for i in range(300)}
    put(shard, *(memory(name) for name in vectors), vectors=list(vectors.values()))
    for seed in range(1000, 1010):
        query = unit(seed)
        best = sorted(vectors, key=lambda name: -float(query @ vectors[name]))[:7]
        found = shard.search.find("acme", query, 7, retrieval="flat")
        assert ids(found) == best
        assert found[0]["scores"] == {"dense": found[0]["score"], "lexical": None, "concert": None}


@pytest.mark.parametrize("at_once", [2, 1024])
def test_pages_cover_every_memory_once_in_order(shard, at_once, monkeypatch):
    monkeypatch.setattr("stores.shard.memories.LISTED_AT_ONCE", at_once)
    for i in range(23):
        put(shard, memory(f"m{i:02}", time=i // 3, conversation=f"c{i % 2}"))
    for size in (1, 4, 23, 50):
        pages, cursor = [], None
        while page := shard.memories.list("acme", after=cursor, limit=size):
            assert len(page) <= size
            pages += ids(page)
            cursor = cursor_of(page[-1])
        assert pages == [f"m{i:02}" for i in range(23)]
    odd = shard.memories.list("acme", conversation="c1", where={"field": "time", "op": "lt", "value": 2})
    assert ids(odd) == ["m01", "m03", "m05"]
    assert ids(shard.memories.list("acme", conversation="c1", limit=2)) == ["m01", "m03"]
    assert shard.memories.list("acme", kind="spatial") == []
    for bad in ("x", "!!", "W10=", "é"):
        with pytest.raises(InvalidInput):
            shard.memories.list("acme", after=bad)


def test_answers_are_copies(shard):
    put(shard, memory("m1", context={"tags": ["a"]}))
    shard.memories.get("acme", "m1")["context"]["tags"].append("b")
    shard.search.find("acme", unit(0), 1)[0]["memory"]["context"].clear()
    assert shard.memories.get("acme", "m1")["context"] == {"tags": ["a"]}


# Many threads


def test_readers_see_a_write_whole_or_not_at_all(shard):
    """Batches of ten, forgotten again: every reader must always count tens."""
    stop, odd = threading.Event(), []

    def read():
        while not stop.is_set():
            for count in (
                len(shard.memories.list("acme", limit=1000)),
                len(shard.search.find("acme", unit(1), 1000)),
                shard.memories.statistics("acme").num_rows,
                shard.counts()["memories"],
            ):
                if count % 10:
                    odd.append(count)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for batch in range(20):
        put(shard, *(memory(f"b{batch}-{i}") for i in range(10)))
        if batch % 4 == 3:
            shard.erasure.forget("acme", ids=[f"b{batch}-{i}" for i in range(10)], op_id=f"f{batch}", now=NOW)
    stop.set()
    for reader in readers:
        reader.join(30)
    assert not odd and shard.counts()["memories"] == 150


def test_writers_of_many_threads_lose_nothing(shard):
    def write(thread):
        for i in range(15):
            put(shard, memory(f"t{thread}-{i}"))
            shard.memories.touch("acme", ["t0-0"], op_id=f"touch-{thread}-{i}", now=NOW)

    put(shard, memory("t0-0"))
    writers = [threading.Thread(target=write, args=(thread,)) for thread in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert shard.counts()["memories"] == 60 and shard.chain.verify() is None
    assert shard.memories.get("acme", "t0-0")["statistics"]["usage"] == 60


def test_a_waiting_writer_goes_before_new_readers():
    lock, order, done = ReadWriteLock(), [], threading.Event()

    def write():
        with lock.write():
            order.append("writer")
            done.wait(10)

    def read():
        with lock.read():
            order.append("reader")

    writer, reader = threading.Thread(target=write), threading.Thread(target=read)
    with lock.read():
        writer.start()
        while not lock._writers_waiting:
            time.sleep(0.001)
        reader.start()
        reader.join(0.05)
        assert order == []
    while not order:
        time.sleep(0.001)
    reader.join(0.05)
    assert order == ["writer"]
    done.set()
    reader.join(10)
    assert order == ["writer", "reader"]


# Damage and death


def test_a_damaged_log_is_not_served(tmp_path):
    shard = open_shard(tmp_path / "shard")
    for i in range(5):
        put(shard, memory(f"m{i}", text=f"needle-{i}-" * 300))
    shard.close()
    file = tmp_path / "shard" / "data.mdb"
    file.write_bytes(file.read_bytes().replace(b"needle-3-", b"needle-4-", 1))
    with pytest.raises(StoreCorrupt, match="record 4 "):
        open_shard(tmp_path / "shard")
    with pytest.raises(StoreCorrupt):  # and the failed open left nothing locked
        open_shard(tmp_path / "shard")


def test_a_closed_shard_refuses_writes(shard):
    shard.close()
    with pytest.raises(NotReady):
        put(shard, memory("m1"))


def test_another_dimension_is_refused(tmp_path):
    open_shard(tmp_path / "shard").close()
    with pytest.raises(Conflict, match="dim"):
        Shard(tmp_path / "shard", number=0, dim=DIM + 1, config=StoreConfig())


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, ".")
from stores.writes.batch import MemoryBatch
from tests.support.stores import NOW, memory, open_shard, unit

path, life = Path(sys.argv[1]), sys.argv[2]
shard = open_shard(path)
n = 0
while True:
    n += 1
    batch = [f"{life}-{n}-{i}" for i in range(3)]
    shard.memories.put(MemoryBatch.of([(memory(id), unit(n)) for id in batch]), op_id=f"put-{life}-{n}", now=NOW)
    print("put", *batch, flush=True)
    shard.memories.touch("acme", ["first"], op_id=f"touch-{life}-{n}", now=NOW)
    print("touched", flush=True)
    if n % 5 == 0:
        print("forgetting", batch[0], flush=True)
        shard.erasure.forget("acme", ids=[batch[0]], op_id=f"forget-{life}-{n}", now=NOW)
        print("forgot", batch[0], flush=True)
"""


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path):
    """The ledger is a file outside the store: what it names was acknowledged before the kill."""
    rng = random.Random(1337)
    path, ledger = tmp_path / "shard", tmp_path / "ledger"
    shard = open_shard(path)
    put(shard, memory("first"))
    shard.close()
    epochs = []
    for life in range(8):
        start = ledger.stat().st_size if ledger.exists() else 0
        with ledger.open("ab") as out:
            writer = subprocess.Popen(
                [sys.executable, "-c", WRITER, str(path), str(life)],
                cwd=ROOT,
                stdout=out,
                stderr=subprocess.PIPE,
            )
        while ledger.stat().st_size == start and writer.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.25))
        writer.send_signal(signal.SIGKILL)
        _, stderr = writer.communicate(timeout=30)
        assert writer.returncode == -signal.SIGKILL, stderr.decode()

        lines = [line.split() for line in ledger.read_text().splitlines()]
        written = {id for line in lines if line[0] == "put" for id in line[1:]}
        forgetting = {line[1] for line in lines if line[0] == "forgetting"}
        forgot = {line[1] for line in lines if line[0] == "forgot"}
        touched = sum(line == ["touched"] for line in lines)

        shard = open_shard(path)
        found = set(ids(shard.memories.list("acme", limit=100_000))) - {"first"}
        assert written - forgetting <= found, "acknowledged, so there"
        assert not forgot & found, "acknowledged, so gone"
        batches: dict[str, int] = {}
        for id in found | forgetting:
            batches[id.rpartition("-")[0]] = batches.get(id.rpartition("-")[0], 0) + 1
        assert set(batches.values()) <= {3}, "a write is whole or absent"
        assert len(found - written) <= 3 * (life + 1), "at most the write in flight is there unacknowledged"
        usage = shard.memories.get("acme", "first")["statistics"]["usage"]
        assert touched <= usage <= touched + life + 1
        assert len(shard.search.find("acme", unit(0), 100_000)) == len(found) + 1
        assert shard.chain.verify() is None
        epochs.append(shard.counts()["epoch"])
        shard.close()
    assert epochs == sorted(set(epochs)) and len(written) >= 24
