"""Shards as Ray actors, on a real local Ray."""

import asyncio
import os
import resource
import signal
import threading
import time

import numpy as np
import pyarrow as pa
import pytest
import ray

from actors.layout.layout import RAY_NAMESPACE
from actors.layout.placement import Placement
from actors.start import start_shards
from actors.store.sharded_store import ShardedStore
from common.config import load
from common.errors import Conflict, InvalidInput, NotReady, StoreCorrupt
from stores.memory.memory import to_json
from stores.writes.batch import MemoryBatch
from tests.support.stores import DIM, NOW, axis, memory, unit

SHARDS = 2


@pytest.fixture(scope="module")
def config(cluster, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("store"))
    return load(env={}, overrides={"store.dir": folder, "store.shards": SHARDS, "serve.deadline_s": 60})


@pytest.fixture(scope="module")
def store(config):
    """One store for all tests; each keeps to a namespace of its own."""
    start_shards(config, DIM)
    yield ShardedStore(config)
    for number in range(SHARDS):
        ray.kill(ray.get_actor(f"shard-{number}", namespace=RAY_NAMESPACE), no_restart=True)


@pytest.fixture
def space(request):
    return request.node.name


def pid(number):
    """The shard's process, waiting while it restarts."""
    while True:
        actor = ray.get_actor(f"shard-{number}", namespace=RAY_NAMESPACE)
        try:
            return ray.get(actor.about.remote(), timeout=60)["pid"]
        except ray.exceptions.RayActorError:
            time.sleep(0.05)


def crowd(space, count, **fields):
    return [(memory(f"m{i:03}", namespace=space, time=i, **fields), unit(i)) for i in range(count)]


async def memories(store, space):
    return (await store.counts())["namespaces"].get(space, 0)


def test_two_shards_answer_as_one(store, space):
    async def check():
        items = crowd(space, 60)
        answers = await store.memories.put(MemoryBatch.of(items), op_id=f"put-{space}", now=NOW)
        assert [answer["id"] for answer in answers] == [m.id for m, _ in items]
        assert {answer["shard"] for answer in answers} == {0, 1}
        assert {
            answer["status"]
            for answer in await store.memories.put(MemoryBatch.of(items), op_id=f"again-{space}", now=NOW)
        } == {"existing"}
        assert await store.memories.put(MemoryBatch.of([]), op_id=f"none-{space}", now=NOW) == []

        for m, _ in items[::7]:
            found = await store.memories.get(space, m.id)
            assert to_json(m).items() <= found.items()
        assert await store.memories.get(space, "absent") is None
        assert await store.memories.get("other", "m001") is None

        query = unit(1000)
        best = sorted(items, key=lambda item: -float(query @ item[1]))[:5]
        hits = await store.search.find(space, query, 5, retrieval="flat")
        assert [hit["memory"]["id"] for hit in hits] == [m.id for m, _ in best]
        early = {"field": "time", "op": "lt", "value": 2}
        hits = await store.search.find(space, query, 5, where=early)
        assert {hit["memory"]["id"] for hit in hits} == {"m000", "m001"}
        assert await store.search.find(space, query, 5, kinds=["spatial"]) == []

        listed, cursor = [], None
        while True:
            page = await store.memories.list(space, limit=7, after=cursor)
            listed += [m["id"] for m in page["memories"]]
            if (cursor := page["next"]) is None:
                break
        assert listed == [m.id for m, _ in items]
        assert (await store.memories.list(space, limit=60))["next"] is None
        with pytest.raises(InvalidInput):
            await store.memories.list(space, limit=0)

        ids = ["m001", "m002", "m003", "absent"]
        touched = await store.memories.touch(space, ids, op_id=f"touch-{space}", now=NOW)
        assert sorted(touched["touched"]) == ids[:3] and touched["unknown"] == ["absent"]
        scored = await store.memories.score(space, [(id, 2.0) for id in ids], op_id=f"score-{space}", now=NOW)
        assert scored == {"scored": dict.fromkeys(ids[:3], 2.0), "unknown": ["absent"]}
        tables = await store.memories.statistics(space)
        assert len(tables) == SHARDS and pa.concat_tables(tables).num_rows == 60
        assert sum(pa.concat_tables(tables)["usage"].to_pylist()) == 3

        receipt = await store.erasure.forget(space, ids=ids, op_id=f"forget-{space}", now=NOW)
        assert sorted(receipt["forgotten"]) == ids[:3] and receipt["log_records"] == 3
        assert await store.memories.get(space, "m001") is None
        counts = await store.counts()
        assert counts["namespaces"][space] == 57 and counts["memories"] >= 57
        assert counts["gate_attempts"] == counts["gate_accepts"] >= 60
        assert await store.chain.verify() == [None] * SHARDS
        receipt = await store.erasure.forget(space, everything=True, op_id=f"all-{space}", now=NOW)
        assert len(receipt["forgotten"]) == 57 and await memories(store, space) == 0

    asyncio.run(check())


def test_one_clash_refuses_the_call_on_every_shard(store, space):
    async def check():
        await store.memories.put(MemoryBatch.of(crowd(space, 20)), op_id=f"put-{space}", now=NOW)
        clash = (memory("m003", namespace=space, text="something else"), unit(3))
        fresh = [(memory(f"fresh-{i}", namespace=space), unit(i)) for i in range(20)]
        with pytest.raises(Conflict, match="'m003'") as caught:
            await store.memories.put(MemoryBatch.of([*fresh, clash]), op_id=f"clash-{space}", now=NOW)
        assert caught.value.param == "id" and type(caught.value) is Conflict
        assert await memories(store, space) == 20
        answers = await store.memories.put(
            MemoryBatch.of([*fresh, clash]), op_id=f"partial-{space}", now=NOW, partial=True
        )
        assert [answer["status"] for answer in answers] == ["new"] * 20 + ["refused"]
        assert "m003" in answers[-1]["gate"]["reason"] and not answers[-1]["stored"]
        assert await memories(store, space) == 40

    asyncio.run(check())


def test_novelty_looks_at_every_shard(store, space):
    """Forty copies of one vector: only the first is novel, wherever the others land."""

    async def check():
        same = [(memory(f"same-{i}", namespace=space), axis(0)) for i in range(40)]
        for batch in (same[:10], same[10:]):
            await store.memories.put(MemoryBatch.of(batch), op_id=f"{batch[0][0].id}-{space}", now=NOW)
        tables = await store.memories.statistics(space)
        assert sorted(pa.concat_tables(tables)["novelty"].to_pylist()) == [0.0] * 39 + [1.0]

    asyncio.run(check())


def test_errors_keep_their_type(store, space):
    async def check():
        with pytest.raises(InvalidInput) as caught:
            await store.search.find(space, unit(0), 3, where={"field": "mood", "op": "eq", "value": 1})
        assert caught.value.param == "filter"
        with pytest.raises(InvalidInput):
            await store.search.find(space, np.ones(DIM, np.float32), 3)

    asyncio.run(check())


def test_kill_9_while_a_client_writes_loses_nothing_acknowledged(store, space):
    """The client never sees the kills: its calls are sent again, and none counts twice."""
    stop = threading.Event()
    killed = []

    def kill():
        """A few times only: killed for ever as soon as it is back, a shard on a busy machine gets nothing done."""
        while len(killed) < 5 and not stop.wait(0.4):
            victim = pid(len(killed) % SHARDS)
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)

    async def write():
        acknowledged, number = [], 0
        while len(killed) < 3 or number < 40:
            number += 1
            batch = [(memory(f"{number}-{i}", namespace=space), unit(number)) for i in range(4)]
            answers = await store.memories.put(MemoryBatch.of(batch), op_id=f"put-{number}-{space}", now=NOW)
            assert all(answer["stored"] for answer in answers)
            acknowledged += [m.id for m, _ in batch]
            await store.memories.touch(space, ["1-0"], op_id=f"touch-{number}-{space}", now=NOW)
        return acknowledged, number

    async def check(acknowledged, number):
        page = await store.memories.list(space, limit=len(acknowledged) + 1)
        assert sorted(m["id"] for m in page["memories"]) == sorted(acknowledged)
        usage = (await store.memories.get(space, "1-0"))["statistics"]["usage"]
        assert usage == number, "an operation sent twice counts once"
        assert len(await store.search.find(space, unit(1), 10_000)) == len(acknowledged)
        assert await store.chain.verify() == [None] * SHARDS
        epochs = [counts["epoch"] for counts in (await store.counts())["shards"]]
        assert sum(epochs) >= SHARDS + len(killed)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        acknowledged, number = asyncio.run(write())
    finally:
        stop.set()
        killer.join(60)
    assert len(killed) >= 3
    asyncio.run(check(acknowledged, number))


def limit_files(process, size):
    """No file that the process writes may grow beyond `size` bytes: its disk is full."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.prlimit(process, resource.RLIMIT_FSIZE, (size, hard))


def test_a_shard_whose_disk_was_full_is_restarted_alone(store, config, space):
    async def check():
        other, full = pid(1), pid(0)
        mine = (f"m{i}" for i in range(1000))
        homes = Placement(shards=SHARDS, spread=SHARDS)
        names = [name for name in mine if homes.owner(space, name, "episodic") == 0][:40]
        rows = [
            (memory(name, namespace=space, text=name * 2000, time=i), unit(i)) for i, name in enumerate(names)
        ]
        await store.memories.put(MemoryBatch.of(rows[:20]), op_id="before", now=NOW)
        limit_files(full, os.stat(config.store_dir / "shards/0000/data.mdb").st_size)
        with pytest.raises(NotReady, match="sharpwave restart-shard 0") as caught:
            await store.memories.put(MemoryBatch.of(rows[20:]), op_id="refused", now=NOW)
        assert caught.value.code == "log_failed"
        limit_files(full, resource.RLIM_INFINITY)
        with pytest.raises(NotReady):  # a disk that is well again proves nothing of what it holds
            await store.memories.put(MemoryBatch.of(rows[20:21]), op_id="still refused", now=NOW)
        told = await store.restart(0)
        assert "stopped at record" in told["was"] and told["failure"] is None and pid(0) != full
        assert {m["id"] for m in (await store.memories.list(space, limit=99))["memories"]} >= {*names[:20]}
        await store.memories.put(MemoryBatch.of(rows[20:]), op_id="refused", now=NOW)
        assert await memories(store, space) == 40 and set(await store.chain.verify()) == {None}
        assert pid(1) == other, "nobody else was disturbed"
        with pytest.raises(InvalidInput, match="must be 0 to 1"):
            await store.restart(2)

    asyncio.run(check())


def test_starting_again_changes_nothing_and_other_settings_are_refused(store, config, space):
    before = [pid(number) for number in range(SHARDS)]
    start_shards(config, DIM)
    assert [pid(number) for number in range(SHARDS)] == before
    with pytest.raises(Conflict, match="dim"):
        start_shards(config, DIM + 1)
    more = load(env={}, overrides={"store.dir": config.store.dir, "store.shards": SHARDS + 1})
    with pytest.raises(Conflict, match="made with 2"):
        start_shards(more, DIM)


def test_a_shard_that_is_not_there_is_not_ready(store, config):
    more = load(env={}, overrides={"store.dir": config.store.dir, "store.shards": SHARDS + 1})
    with pytest.raises(NotReady, match=f"shard-{SHARDS} is not running"):
        asyncio.run(ShardedStore(more).counts())


def test_a_shard_that_hangs_is_given_up_at_the_deadline(store, config, space):
    hasty = ShardedStore(load(env={}, overrides={"store.dir": config.store.dir, "serve.deadline_s": 0.5}))
    victim = pid(0)
    os.kill(victim, signal.SIGSTOP)
    try:
        with pytest.raises(NotReady, match="shard-0"):
            asyncio.run(hasty.counts())
    finally:
        os.kill(victim, signal.SIGCONT)
    assert asyncio.run(store.counts())["shards"][0]["failure"] is None


def test_at_last_a_damaged_log_is_told_to_every_caller(store, config, space):
    asyncio.run(
        store.memories.put(
            MemoryBatch.of(crowd(space, 20, text="needle " * 500)), op_id=f"put-{space}", now=NOW
        )
    )
    for number in range(SHARDS):
        file = config.store_dir / "shards" / f"{number:04d}" / "data.mdb"
        file.write_bytes(file.read_bytes().replace(b"needle", b"noodle"))
        os.kill(pid(number), signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(StoreCorrupt, match="record "):
            asyncio.run(store.counts())
    with pytest.raises(StoreCorrupt):
        start_shards(config, DIM)
