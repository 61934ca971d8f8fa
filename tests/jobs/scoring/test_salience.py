"""Divergences written into salience on a real store: the same measurement counts once."""

import asyncio
import hashlib
from dataclasses import replace

import numpy as np
import pytest

from actors.start import start_shards, stop_shards
from actors.store.sharded_store import ShardedStore
from jobs.scoring.conversations import Conversation, question
from jobs.scoring.matrix import Matrix
from jobs.scoring.salience import operations, update_salience
from serve.pages import all_memories
from stores.memory.memory import parse_memory
from stores.writes.batch import MemoryBatch
from tests.support.ray_stores import store_config

DIM = 8
N = 8  # more than one block of rows
TALKS = [Conversation(question("Where does Ada live?", "Lisbon"), "m0")]


@pytest.fixture(scope="module")
def store(cluster, tmp_path_factory):
    config = store_config(tmp_path_factory.mktemp("store"), 2)
    start_shards(config, DIM)
    yield ShardedStore(config)
    stop_shards()


def fill(store, namespace):
    memories = [
        parse_memory(
            {"id": f"m{i}", "text": f"Fact {i}."}, namespace=namespace, now=1.0 + i, max_text_bytes=1000
        )
        for i in range(N)
    ]
    vectors = np.eye(DIM, dtype=np.float32)
    op_id = hashlib.blake2b(namespace.encode(), digest_size=16).hexdigest()
    asyncio.run(store.memories.put(MemoryBatch(memories, vectors[:N]), op_id=op_id, now=1.0))
    return read(store, namespace)


def read(store, namespace):
    return asyncio.run(all_memories(store, namespace))


def salience(store, namespace):
    return {memory["id"]: memory["statistics"]["salience"] for memory in read(store, namespace)}


def matrix(memories, scale=1.0, failed=()):
    divergence = scale * np.arange(1.0, len(memories) + 1)[:, None]
    divergence[[*failed]] = np.nan
    return Matrix(
        memory_ids=[memory["id"] for memory in memories],
        texts=[memory["text"] for memory in memories],
        responses=[{"conversation": 0, "entry_index": 2, "tokens": 1, "question": "?"}],
        divergence=divergence,
        null=np.zeros(1),
        truth=[0],
        context="text",
        fingerprint="digest:base:float32",
        seconds=1.0,
        errors=[],
    )


def apply(store, namespace, found, memories):
    asyncio.run(update_salience(store, namespace, found, memories, TALKS))
    return salience(store, namespace)


def test_the_same_measurement_counts_once_and_another_one_again(store):
    memories = fill(store, "once")
    earlier = apply(store, "once", matrix(memories, scale=4.0), memories)
    once = apply(store, "once", matrix(memories), memories)
    assert all(
        0 < once[id] < earlier[id] for id in once
    )  # an average of both: a repetition would lower it further
    again = read(store, "once")  # as a job that is run again does
    assert apply(store, "once", matrix(again), again) == once
    other = apply(store, "once", matrix(again, scale=0.5), again)
    assert all(other[id] < once[id] for id in once)


def test_a_job_resumed_after_a_failed_block_adds_that_block_only(store):
    memories = fill(store, "resumed")
    apply(store, "resumed", matrix(memories, scale=4.0), memories)
    partly = apply(store, "resumed", matrix(memories, failed=(6, 7)), memories)
    whole = apply(store, "resumed", matrix(memories), memories)
    assert {id for id in whole if whole[id] != partly[id]} == {"m6", "m7"}


def test_operation_ids_depend_on_everything_that_was_scored():
    memories = [{"id": f"m{i}", "text": "", "statistics": {"generation": i}} for i in range(N)]

    def ids(namespace="n", found=matrix(memories), given=memories, talks=TALKS):  # noqa: B008
        return {op_id for _, op_id in operations(namespace, found, given, talks)}

    same = ids()
    assert ids() == same and len(same) == 2
    rewritten = [{**memories[0], "statistics": {"generation": 99}}, *memories[1:]]
    for other in (
        ids(namespace="other"),
        ids(found=matrix(memories, scale=2.0)),
        ids(found=replace(matrix(memories), fingerprint="digest:adapter:float32")),
        ids(given=rewritten),
        ids(talks=[Conversation(question("Where does Ada work?", "Oslo"))]),
    ):
        assert not other & same
