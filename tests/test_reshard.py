"""Another number of shards while clients write: nothing lost, nothing twice."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest
import ray
from ray_helpers import local_ray, store_config
from store_helpers import DIM, NOW, memory, unit

from actors.layout import BY_ID_ALONE, Layout, layout_record
from actors.reshard import reshard
from actors.shards import ShardedStore, start_shards, stop_shards
from common.errors import Conflict, InvalidInput
from common.files import write_json

ROOT = Path(__file__).parent.parent


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
            answers = await store.put(items, op_id=f"put-{op_id}", now=NOW)
            assert all(answer["stored"] for answer in answers)
            ids = [m.id for m, _ in items]
            held.update(dict.fromkeys(ids, 0))
            touched = await store.touch(space, ids[:2], op_id=f"touch-{op_id}", now=NOW)
            assert touched == {"touched": ids[:2], "unknown": []}
            for id in ids[:2]:
                held[id] += 1
            await store.score(space, [(ids[0], 2.0)], op_id=f"score-{op_id}", now=NOW)
            if number % 4 == 0:
                receipt = await store.forget(space, ids=ids[1:], op_id=f"forget-{op_id}", now=NOW)
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
        listed = (await store.list(space, limit=len(held) + 1))["memories"]
        assert sorted(m["id"] for m in listed) == sorted(held)
        assert {m["id"]: m["statistics"]["usage"] for m in listed} == held
        assert [(m["time"], m["id"]) for m in listed] == sorted((m["time"], m["id"]) for m in listed)
        tables = await store.statistics(space)
        assert pa.concat_tables(tables).num_rows == len(held)
        for m in listed[::17]:
            assert (await store.get(space, m["id"]))["id"] == m["id"]
            assert m["statistics"]["salience"] in (0.0, 2.0)
        for id in [*writers.gone[space]][::7]:
            assert await store.get(space, id) is None
    assert set(await store.verify()) == {None}
    counts = await store.counts()
    assert counts["memories"] == sum(map(len, writers.held.values()))
    return counts


def test_two_to_five_and_back_under_writes(started):
    config = started(2)
    with Writers(config) as writers:
        time.sleep(1)
        grown = reshard(config, 5)
        at_five = writers.operations
        time.sleep(1)
        shrunk = reshard(config, 2)
        time.sleep(1)
    assert (grown["shards"], grown["generation"], shrunk["shards"], shrunk["generation"]) == (5, 2, 2, 3)
    assert 0 < grown["memories"] < shrunk["memories"] and 0 < at_five < writers.operations
    counts = asyncio.run(check_ledger(config, writers))
    assert len(counts["shards"]) == 2
    assert counts["gate_accepts"] == counts["memories"] + sum(map(len, writers.gone.values()))
    shards = config.store_dir / "shards"
    assert sorted(path.name for path in shards.iterdir() if path.is_dir()) == ["g3"]
    print(f"{writers.operations} operations, held {grown['held_s']:.2f} and {shrunk['held_s']:.2f} s")
