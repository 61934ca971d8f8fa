"""Two nodes and a redis-server: a shard whose node is lost goes on at the other one."""

import asyncio
import os
import time

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from actors.layout.layout import RAY_NAMESPACE
from actors.layout.records import layout_record
from actors.reshard import reshard
from actors.shards.calls import Call
from actors.start import start_shards, stop_shards
from actors.store.sharded_store import ShardedStore
from stores.writes.batch import MemoryBatch
from tests.support.ray_stores import store_config
from tests.support.redis_server import RedisServer
from tests.support.stores import DIM, NOW, memory, unit

SHARDS = 2


@pytest.fixture(scope="module")
def cluster():
    """A head without room for shards, and two nodes for them."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # a local ray.init elsewhere may have set it to token
    memory_bytes = 80 << 20
    made = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1,
            "object_store_memory": memory_bytes,
            "include_dashboard": False,
            "_system_config": {"health_check_period_ms": 1000, "health_check_failure_threshold": 5},
        },
    )
    try:
        for _ in range(2):
            made.add_node(num_cpus=1, resources={"disk": 1}, object_store_memory=memory_bytes)
        ray.init(address=made.address, namespace=RAY_NAMESPACE, log_to_driver=False)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.fixture(scope="module")
def config(cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("redis")
    server = RedisServer(folder / "server")
    options = {"backend": "redis", "redis_url": server.url, "actor_resource": "disk"}
    found = store_config(folder / "store", SHARDS, **options)
    # Ray takes up to a minute to give a dead node's actor another one.
    found = found.model_copy(update={"serve": found.serve.model_copy(update={"deadline_s": 180.0})})
    try:
        start_shards(found, DIM)
        yield found
    finally:
        stop_shards()
        server.kill()


def where(number):
    """The shard's process and node, once it answers."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            actor = ray.get_actor(f"shard-{number}", namespace=RAY_NAMESPACE)
            about = ray.get(actor.about.remote(), timeout=60)
            return about["pid"], about["node"]
        except ray.exceptions.RayActorError:
            time.sleep(0.1)
    raise AssertionError(f"shard {number} did not come back")


@pytest.mark.slow
def test_a_lost_node_loses_nothing_and_an_old_owner_is_refused(cluster, config):
    store = ShardedStore(config)
    acknowledged = []

    async def write(first, count):
        for number in range(first, first + count):
            items = [(memory(f"m{number}-{i}", namespace="acme"), unit(10 * number + i)) for i in range(3)]
            answers = await store.memories.put(MemoryBatch.of(items), op_id=f"put-{number}", now=NOW)
            assert all(answer["stored"] for answer in answers)
            acknowledged.extend(m.id for m, _ in items)

    asyncio.run(write(0, 10))
    processes = {number: where(number) for number in range(SHARDS)}
    assert len({node for _, node in processes.values()}) == 2, "spread over both nodes"
    pid, lost = processes[0]
    node = next(node for node in cluster.worker_nodes if node.node_id == lost)
    actor = ray.get_actor("shard-0", namespace=RAY_NAMESPACE)
    old = psutil.Process(pid)
    raylet = old.parent()
    old.suspend()
    ghosts = [memory(f"ghost-{i}", namespace="acme") for i in range(5)]
    late = [
        actor.write.remote(
            Call(1, time.time() + 300),
            "memories.put",
            MemoryBatch.of([(ghost, unit(i))]),
            op_id=f"ghost-{i}",
            now=NOW,
        )
        for i, ghost in enumerate(ghosts)
    ]
    time.sleep(1)  # they are on their way to a process that does not look
    raylet.suspend()  # the node as a machine that is cut off for a while: it stops, and then wakes up
    try:
        asyncio.run(write(10, 10))  # the client only sees that it takes longer
        assert where(0)[1] != lost and where(0)[0] != pid
        assert old.status() == psutil.STATUS_STOPPED
        old.resume()
        gone, _ = psutil.wait_procs([old], timeout=60)
        assert gone, "refused by the log, the old owner ends"
    finally:
        cluster.remove_node(node, allow_graceful=False)
    for call in late:
        with pytest.raises((ray.exceptions.RayActorError, ray.exceptions.RayTaskError)):
            ray.get(call, timeout=60)
    asyncio.run(write(20, 5))

    async def check():
        listed = (await store.memories.list("acme", limit=1000))["memories"]
        assert sorted(m["id"] for m in listed) == sorted(acknowledged)
        assert await store.chain.verify() == [None] * SHARDS
        counts = await store.counts()
        assert [shard["failure"] for shard in counts["shards"]] == [None] * SHARDS
        assert counts["shards"][0]["epoch"] == 2

    asyncio.run(check())
    moved = reshard(config, 3)
    assert moved["memories"] == len(acknowledged) and layout_record(config).read().shards == 3
    assert asyncio.run(store.counts())["memories"] == len(acknowledged)
