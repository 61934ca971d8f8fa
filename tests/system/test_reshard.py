"""Another number of shards while clients write: nothing lost, nothing twice."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray

from actors.layout.layout import BY_ID_ALONE, ShardLayout
from actors.layout.records import layout_record
from actors.reshard import reshard
from actors.start import start_shards, stop_shards
from actors.store.sharded_store import ShardedStore
from common.errors import Conflict, InvalidInput
from common.files import write_json
from stores.shard.shard import Shard
from stores.writes.batch import MemoryBatch
from tests.support.ray_stores import local_ray, store_config
from tests.support.redis_server import RedisServer
from tests.support.stores import DIM, NOW, memory, unit

ROOT = Path(__file__).resolve().parents[2]
SECONDS = float(os.environ.get("RESHARD_SECONDS", "300"))


@pytest.fixture(scope="module")
def cluster():
    with local_ray():
        yield


@pytest.fixture
def started(cluster, tmp_path):
    """Starts a store; its actors are gone when the test ends."""

    def start(shards, **settings):
        config = store_config(tmp_path / "store", shards, **settings)
        start_shards(config, DIM)
        return config

    yield start
    stop_shards()


class Writers:
    """Clients that put, touch, score and forget until they are told to stop, with a ledger of what was
    acknowledged. Each has a namespace of its own, so that the ledger needs no lock."""

    def __init__(self, config, count=4):
        self.stores = {f"tenant-{i}": ShardedStore(config) for i in range(count)}
        self.held = {space: {} for space in self.stores}  # id -> times used
        self.gone = {space: set() for space in self.stores}
        self.operations = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.error = None

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(120)
        if self.error:
            raise self.error

    async def _run(self):
        try:
            await asyncio.gather(*(self._client(space) for space in self.stores for _ in range(2)))
        except BaseException as error:
            self.error = error

    async def _client(self, space):
        store, held, number, name = self.stores[space], self.held[space], 0, os.urandom(4).hex()
        while not self._stop.is_set():
            number += 1
            op_id = f"{name}-{number}"
            kinds = ["episodic", "episodic", "relational"]
            items = [_item(space, f"{op_id}-{i}", number + i, kinds[i]) for i in range(3)]
            answers = await store.memories.put(MemoryBatch.of(items), op_id=f"put-{op_id}", now=NOW)
            assert all(answer["stored"] for answer in answers)
            ids = [m.id for m, _ in items]
            held.update(dict.fromkeys(ids, 0))
            touched = await store.memories.touch(space, ids[:2], op_id=f"touch-{op_id}", now=NOW)
            assert touched == {"touched": ids[:2], "unknown": []}
            for id in ids[:2]:
                held[id] += 1
            await store.memories.score(space, [(ids[0], 2.0)], op_id=f"score-{op_id}", now=NOW)
            if number % 4 == 0:
                receipt = await store.erasure.forget(space, ids=ids[1:], op_id=f"forget-{op_id}", now=NOW)
                assert sorted(receipt["forgotten"]) == sorted(ids[1:]) and receipt["scrubbed"]
                for id in ids[1:]:
                    del held[id]
                self.gone[space].update(ids[1:])
            self.operations += 4


def _item(space, id, seed, kind):
    fields = {"subject": id, "relation": "is", "object": "here"} if kind == "relational" else {}
    return memory(id, namespace=space, kind=kind, time=seed, **fields), unit(hash(id) % (1 << 31))


async def check_ledger(config, writers):
    """Exactly what was acknowledged is there, each use once, in order; the chains verify."""
    store = ShardedStore(config)
    for space, held in writers.held.items():
        listed = (await store.memories.list(space, limit=len(held) + 1))["memories"]
        assert sorted(m["id"] for m in listed) == sorted(held)
        assert {m["id"]: m["statistics"]["usage"] for m in listed} == held
        assert [(m["time"], m["id"]) for m in listed] == sorted((m["time"], m["id"]) for m in listed)
        tables = await store.memories.statistics(space)
        assert pa.concat_tables(tables).num_rows == len(held)
        for m in listed[::17]:
            assert (await store.memories.get(space, m["id"]))["id"] == m["id"]
            assert m["statistics"]["salience"] in (0.0, 2.0)
        for id in [*writers.gone[space]][::7]:
            assert await store.memories.get(space, id) is None
    assert set(await store.chain.verify()) == {None}
    counts = await store.counts()
    assert counts["memories"] == sum(map(len, writers.held.values()))
    return counts


async def sent_again(config, generation=None):
    """The same operations, whatever the layout, count once."""
    store, ids = ShardedStore(config), [f"again-{i}" for i in range(8)]
    items = [_item("again", id, i, "relational" if i < 2 else "episodic") for i, id in enumerate(ids)]
    if generation is None:  # of the version that is superseded below
        answers = await store.memories.put(MemoryBatch.of(items), op_id="put-again", now=NOW)
        assert {answer["status"] for answer in answers} == {"new"}
    touched = await store.memories.touch("again", [*ids, "absent"], op_id="touch-again", now=NOW)
    assert touched == {"touched": ids, "unknown": ["absent"]}
    scored = await store.memories.score("again", [(id, 3.0) for id in ids], op_id="score-again", now=NOW)
    assert scored == {"scored": dict.fromkeys(ids, 3.0), "unknown": []}
    turns = [{"role": "user", "text": f"turn {i}"} for i in range(5)]
    pushed = await store.conversations.push("again", "talk", turns, op_id="push-again", now=NOW)
    assert pushed == {"pushed": 5, "length": 5, "dropped": 0}
    assert (await store.conversations.rewind("again", "talk", 2, op_id="rewind-again", now=NOW))[
        "removed"
    ] == 2
    assert [turn["text"] for turn in await store.conversations.peek("again", "talk", 10)] == [
        "turn 0",
        "turn 1",
        "turn 2",
    ]
    line = await store.keyed.put("again", "key", "value", unit(99), op_id="line-again", now=NOW)
    assert (await store.keyed.get("again", "key"))["generation"] >= 1 and line["stored"]
    for id in ids:
        found = (await store.memories.get("again", id))["statistics"]
        assert (found["usage"], found["salience"]) == (1, 3.0)
    if generation is None:
        generation = (await store.memories.get("again", ids[3]))["statistics"]["generation"]
    new = memory(ids[3], namespace="again", text="revised", time=3)
    told = await store.memories.supersede(
        new, unit(3), generation=generation, op_id="supersede-again", now=NOW
    )
    assert told["status"] == "superseded" and len(await store.memories.history("again", ids[3])) == 2
    return generation


async def forget_all(config, space):
    receipt = await ShardedStore(config).erasure.forget(
        space, everything=True, op_id=f"forget-{space}", now=NOW
    )
    assert len(receipt["forgotten"]) == receipt["index_rows"] == 9 <= receipt["log_records"]


def test_two_to_five_and_back_under_writes(started):
    config = started(2)
    with Writers(config) as writers:
        generation = asyncio.run(sent_again(config))
        grown = reshard(config, 5)
        at_five = writers.operations
        asyncio.run(sent_again(config, generation))
        shrunk = reshard(config, 2)
        asyncio.run(sent_again(config, generation))
    asyncio.run(forget_all(config, "again"))
    assert (grown["shards"], grown["generation"], shrunk["shards"], shrunk["generation"]) == (5, 2, 2, 3)
    assert 0 < grown["memories"] < shrunk["memories"] and 0 < at_five < writers.operations
    counts = asyncio.run(check_ledger(config, writers))
    assert len(counts["shards"]) == 2
    assert counts["gate_accepts"] == counts["memories"] + sum(map(len, writers.gone.values())) + 8
    shards = config.store_dir / "shards"
    assert sorted(path.name for path in shards.iterdir() if path.is_dir()) == ["g3"]
    print(f"{writers.operations} operations, held {grown['held_s']:.2f} and {shrunk['held_s']:.2f} s")


@pytest.mark.slow
@pytest.mark.parametrize("sign", ["copied", "switching"])
def test_a_reshard_that_is_killed_leaves_one_layout_whole(started, sign):
    config = started(2, reshard_lease_s=4)
    with Writers(config) as writers:
        kill_reshard(config, 3, sign, random.uniform(0.0, 0.3))
        found = layout_record(config).read()
        assert found.generation in (1, 2) and found.shards == found.generation + 1
        before = writers.operations
        deadline = time.monotonic() + 60
        while writers.operations < before + 40 and not writers.error:
            assert time.monotonic() < deadline, "writes go on when the leases have run out"
            time.sleep(0.1)
    asyncio.run(check_ledger(config, writers))
    start_shards(config, DIM)
    left = layout_record(config).read()
    assert left.moving is None and left.generation == found.generation
    folders = {path.name for path in (config.store_dir / "shards").iterdir() if path.is_dir()}
    assert folders == ({"0000", "0001"} if left.generation == 1 else {"g2"})
    asyncio.run(check_ledger(config, writers))


@pytest.mark.slow
def test_reshards_killed_at_random_points(started):
    config = started(2, reshard_lease_s=4)
    with Writers(config) as writers:
        for _ in range(int(os.environ.get("RESHARD_KILLS", "12"))):
            to = layout_record(config).read().shards % 4 + 1
            sign = random.choice(["starting", "copied", "holding", "switching", "serve"])
            kill_reshard(config, to, sign, random.uniform(0.0, 0.5))
            start_shards(config, DIM)
    asyncio.run(check_ledger(config, writers))
    reshard(config, 3)
    asyncio.run(check_ledger(config, writers))


def kill_reshard(config, to, sign, after_s):
    """Start a reshard in a process of its own, and kill it a moment after it has said `sign`."""
    settings = config.store_dir / "settings.yaml"
    write_json(settings, config.model_dump(mode="json"))  # which is YAML too
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.commands.reshard", str(settings), str(to)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        },
    )
    for line in process.stdout:
        if sign in line:
            time.sleep(after_s)
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_a_seal_is_of_the_logs_that_it_was_made_of(started):
    """After a reshard there are others: that is said, and neither passed over nor called damage."""
    config = started(1)

    async def sealed(layout):
        store = ShardedStore(config)
        await store.memories.put(
            MemoryBatch.of([(memory(f"m{layout}"), unit(layout))]), op_id=f"put-{layout}", now=NOW
        )
        before = await store.chain.sealed()
        await store.chain.seal(now=NOW)
        after = await store.chain.sealed()
        assert set(await store.chain.verify(after["shards"])) == {None}
        return before, after

    before, after = asyncio.run(sealed(1))
    assert before == {"sealed": None, "shards": [], "notice": None} and after["sealed"] == NOW
    reshard(config, 2)
    before, after = asyncio.run(sealed(2))
    assert before["sealed"] is None and before["shards"] == [] and "sharpwave seal" in before["notice"]
    assert (after["sealed"], after["notice"], len(after["shards"])) == (NOW, None, 2)


def test_only_one_reshard_at_a_time_and_only_to_a_number_that_is_one(started):
    config = started(1)
    with pytest.raises(InvalidInput, match="shards = 0"):
        reshard(config, 0)
    with layout_record(config).exclusive(), pytest.raises(Conflict, match="being resharded"):
        reshard(config, 2)


def test_shards_in_redis_leave_nothing_on_the_disk_either(started, tmp_path):
    """Their snapshots lie beside the log, on the node's own disk."""
    server = RedisServer(tmp_path / "server")
    try:
        config = started(1, backend="redis", redis_url=server.url)
        store = ShardedStore(config)

        async def write():
            await store.memories.put(
                MemoryBatch.of([_item("acme", f"m{i}", i, "episodic") for i in range(5)]),
                op_id="put",
                now=NOW,
            )
            return await store.snapshot()

        [old] = asyncio.run(write())
        assert old.is_dir() and old.is_relative_to(config.store_dir)
        assert reshard(config, 2)["memories"] == 5
        deadline = time.monotonic() + 60
        while (gone := old.parent.parent).exists() and time.monotonic() < deadline:
            time.sleep(0.1)  # the old shard removes itself
        assert not gone.exists()
        assert len(asyncio.run(store.memories.list("acme"))["memories"]) == 5
        stop_shards()
    finally:
        server.kill()


def test_a_store_of_the_first_layout_is_brought_to_the_present_one(started, tmp_path):
    """There every kind went by its id, over all shards."""
    config = store_config(tmp_path / "store", 3)
    folder = config.store_dir / "shards"
    items = [_item("acme", f"m{i}", i, "relational" if i % 2 else "episodic") for i in range(30)]
    for number in range(3):
        shard = Shard(folder / f"{number:04d}", number=number, dim=DIM, config=config.store)
        mine = [item for item in items if number == max(range(3), key=lambda n: _first_hash(n, item[0]))]
        shard.memories.put(MemoryBatch.of(mine), op_id="put", now=NOW)
        shard.memories.touch("acme", [m.id for m, _ in mine], op_id="touch", now=NOW)
        shard.close()
    write_json(folder / "layout.json", {"shards": 3})
    record = layout_record(config)
    assert record.read() == ShardLayout(shards=3, spread=3, version=BY_ID_ALONE)

    started(3)
    assert record.read() == ShardLayout(shards=3, spread=3, generation=2)
    store, home = ShardedStore(config), record.read().placement.home("acme")

    async def check():
        listed = (await store.memories.list("acme", limit=100))["memories"]
        assert [m["id"] for m in listed] == [m.id for m, _ in items]
        assert {m["statistics"]["usage"] for m in listed} == {1}
        assert {m["shard"] for m in listed if m["kind"] == "relational"} == {home}
        assert {m["shard"] for m in listed if m["kind"] == "episodic"} == {0, 1, 2}
        assert (await store.memories.touch("acme", ["m1"], op_id="touch", now=NOW))["touched"] == ["m1"]
        assert (await store.memories.get("acme", "m1"))["statistics"]["usage"] == 1

    asyncio.run(check())


def _first_hash(number, memory):
    return blake2b(f"{number}/{memory.namespace}/{memory.id}".encode(), digest_size=8).digest()


@pytest.mark.slow
def test_as_many_memories_as_five_minutes_take(started):
    """Two shards to five and back with everything in place and more coming in."""
    config = started(2, write_threads=64)
    loaded, per_call = 0, 250

    async def load(seconds):
        nonlocal loaded
        store, stop, rng = ShardedStore(config), time.monotonic() + seconds, np.random.default_rng(7)

        async def client(name):
            nonlocal loaded
            number = 0
            while time.monotonic() < stop:
                vectors = rng.normal(size=(per_call, DIM)).astype(np.float32)
                vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
                ids = [f"{name}-{number}-{i}" for i in range(per_call)]
                items = [
                    (memory(id, namespace=f"bulk-{number % 8}"), v)
                    for id, v in zip(ids, vectors, strict=True)
                ]
                await store.memories.put(MemoryBatch.of(items), op_id=f"bulk-{name}-{number}", now=NOW)
                loaded, number = loaded + per_call, number + 1

        await asyncio.gather(*(client(name) for name in "abcd"))

    asyncio.run(load(SECONDS / 2))
    with Writers(config) as writers:
        grown = reshard(config, 5, say=print)
        shrunk = reshard(config, 2, say=print)
    counts = asyncio.run(ShardedStore(config).counts())
    small = sum(map(len, writers.held.values()))
    assert counts["memories"] == loaded + small
    print(f"{loaded} loaded, {writers.operations} operations meanwhile; {grown}; {shrunk}")
