"""What clients may rely on: tenants never meet, too much is refused, a slow shard is alone."""

import asyncio
import os
import signal
import uuid

import pytest
import ray
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.layout.layout import RAY_NAMESPACE
from actors.layout.records import layout_record
from actors.start import start_shards, stop_shards
from actors.store.erasure import merged
from actors.store.sharded_store import ShardedStore
from common.errors import Conflict, InvalidInput, NotFound, NotReady, Overloaded
from stores.view.view import cursor_of
from stores.writes.batch import MemoryBatch
from tests.support.ray_stores import store_config
from tests.support.stores import DIM, NOW, memory, unit

SHARDS = 3


@pytest.fixture(scope="module")
def config(cluster, tmp_path_factory):
    found = store_config(tmp_path_factory.mktemp("store"), SHARDS, spread=2)
    start_shards(found, DIM)
    yield found
    stop_shards()


@pytest.fixture(scope="module")
def placement(config):
    return layout_record(config).read().placement


def pid(number):
    actor = ray.get_actor(f"shard-{number}", namespace=RAY_NAMESPACE)
    return ray.get(actor.about.remote(), timeout=60)["pid"]


def test_a_namespace_uses_its_own_shards_only_and_facts_its_home(config, placement):
    async def check():
        store = ShardedStore(config)
        for space in ("alpha", "beta", "gamma"):
            facts = [
                (
                    memory(
                        f"f{i}",
                        namespace=space,
                        kind="relational",
                        subject=f"s{i}",
                        relation="is",
                        object="x",
                    ),
                    unit(i),
                )
                for i in range(5)
            ]
            items = [(memory(f"e{i}", namespace=space), unit(50 + i)) for i in range(20)] + facts
            answers = await store.memories.put(MemoryBatch.of(items), op_id=f"put-{space}", now=NOW)
            assert {answer["shard"] for answer in answers} == {*placement.places(space)}
            assert {answer["shard"] for answer in answers[20:]} == {placement.home(space)}
            for m, _ in items:
                assert (await store.memories.get(space, m.id))["id"] == m.id
            used = {c["seq"] > 0 and space in c["namespaces"] for c in (await store.counts())["shards"]}
            assert used == {True, False}
            ids = [m.id for m, _ in items]
            touched = await store.memories.touch(space, [*ids, "absent"], op_id=f"touch-{space}", now=NOW)
            assert touched == {"touched": ids, "unknown": ["absent"]}
            assert (await store.memories.history(space, "f1"))[0]["content"]["id"] == "f1"
            assert await store.memories.history(space, "absent") is None

    asyncio.run(check())


def test_an_id_stands_for_one_memory_whatever_its_kind(config):
    async def check():
        store, space = ShardedStore(config), "kinds"
        fact = {"kind": "relational", "subject": "a", "relation": "is", "object": "b"}
        for i in range(6):
            await store.memories.put(
                MemoryBatch.of([(memory(f"m{i}", namespace=space), unit(i))]), op_id=f"k{i}", now=NOW
            )
            with pytest.raises(Conflict, match=f"m{i}"):
                again = memory(f"m{i}", namespace=space, **fact)
                await store.memories.put(MemoryBatch.of([(again, unit(9))]), op_id=f"again{i}", now=NOW)

    asyncio.run(check())


def test_memories_leave_and_come_back_with_all_that_is_known(config):
    async def check():
        store = ShardedStore(config)
        items = [(memory(f"m{i:02}", namespace="out", time=i), unit(i)) for i in range(30)]
        await store.memories.put(MemoryBatch.of(items), op_id="put-out", now=NOW)
        await store.memories.touch("out", ["m03"], op_id="touch-out", now=NOW)
        rows = [row async for row in store.memories.export_rows("out")]
        assert [row["memory"]["id"] for row in rows] == [m.id for m, _ in items]
        await store.erasure.forget("out", everything=True, op_id="forget-out", now=NOW)
        taken = await store.memories.import_rows(rows, op_id="take-out", now=NOW)
        assert [(answer["id"], answer["status"]) for answer in taken] == [(m.id, "new") for m, _ in items]
        assert (await store.memories.get("out", "m03"))["statistics"]["usage"] == 1

    asyncio.run(check())


def test_what_says_the_same_is_stored_once_whichever_shard_its_id_picks(config):
    async def check():
        store = ShardedStore(config)
        same = [(memory(f"t{i}", namespace="twins", text="the very same words"), unit(3)) for i in range(12)]
        first = await store.memories.put(MemoryBatch.of(same[:1]), op_id="twins-0", now=NOW)
        for _ in range(2):  # sent again it counts once
            rest = await store.memories.put(MemoryBatch.of(same[1:]), op_id="twins-1", now=NOW)
            assert {(a["id"], a["status"], a["shard"]) for a in rest} == {
                ("t0", "duplicate", first[0]["shard"])
            }
            assert (await store.memories.get("twins", "t0"))["statistics"]["count"] == 12
        assert (await store.memories.put(MemoryBatch.of(same[:1]), op_id="twins-2", now=NOW))[0][
            "status"
        ] == "existing"
        assert len((await store.memories.list("twins", limit=50))["memories"]) == 1

    asyncio.run(check())


TENANTS = ("Zebra", "Quokka")
IDS = [f"id{i}" for i in range(4)]
steps = st.lists(
    st.tuples(
        st.sampled_from(TENANTS),
        st.sampled_from(
            "put touch score forget forget_where get list search history push pop peek supersede line".split()
        ),
        st.sampled_from(IDS),
        st.integers(0, 5),  # op_ids are few, so that each meets the other tenant's
    ),
    min_size=5,
    max_size=30,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_nothing_of_one_tenant_ever_appears_for_another(config, steps):
    asyncio.run(_cross(ShardedStore(config), steps, uuid.uuid4().hex[:8]))


async def _cross(store, steps, run):
    model = {tenant: {} for tenant in TENANTS}
    talks = {tenant: [] for tenant in TENANTS}
    for tenant, action, id, number in steps:
        space, other = f"{tenant}-{run}", TENANTS[tenant == TENANTS[0]]
        options = {"op_id": f"{action}-{number}-{run}", "now": NOW}
        try:
            answer = await _act(store, space, tenant, other, action, id, run, options)
        except (Conflict, NotFound, InvalidInput):
            continue  # an op_id of the other tenant, or of another request; a foreign cursor or filter
        assert other not in repr(answer), "answers name nothing of the other tenant"
        held = model[tenant]
        if action == "put":
            held.setdefault(id, f"{tenant} {id}")
        elif action == "supersede":
            held[id] = f"{tenant} {id} revised"
        elif action == "forget":
            held.pop(id, None) if answer["forgotten"] == [id] else None
        elif action in ("push", "pop"):
            talks[tenant] = [turn["text"] for turn in await store.conversations.peek(space, "talk", 100)]
    for tenant in TENANTS:
        listed = (await store.memories.list(f"{tenant}-{run}", limit=100))["memories"]
        texts = {m["id"]: m["text"] for m in listed if not m["id"].startswith("line-")}
        assert all(text.startswith(tenant) for text in texts.values())
        assert {id for id in texts} <= {*IDS}
        assert all(text.startswith(tenant) for text in talks[tenant])


async def _act(store, space, tenant, other, action, id, run, options):
    text = f"{tenant} {id}"
    foreign = {"field": "namespace", "op": "eq", "value": f"{other}-{run}"}
    if action == "put":
        return await store.memories.put(
            MemoryBatch.of([(memory(id, namespace=space, text=text), unit(len(id)))]), **options
        )
    if action == "touch":
        return await store.memories.touch(space, IDS, **options)
    if action == "score":
        return await store.memories.score(space, [(id, 1.0)], **options)
    if action == "forget":
        return await store.erasure.forget(space, ids=[id], **options)
    if action == "forget_where":
        receipt = await store.erasure.forget(space, where=foreign, **options)
        assert receipt["forgotten"] == []
        return receipt["forgotten"]
    if action == "get":
        return await store.memories.get(space, id)
    if action == "list":
        theirs = (await store.memories.list(f"{other}-{run}", limit=1))["memories"]
        return await store.memories.list(space, after=cursor_of(theirs[0]) if theirs else None, limit=100)
    if action == "search":
        hits = await store.search.find(space, unit(3), 100)
        assert await store.search.find(space, unit(3), 100, where={"not": foreign}) is not None
        return hits
    if action == "history":
        return await store.memories.history(space, id)
    if action == "push":
        return await store.conversations.push(space, "talk", [{"role": "user", "text": text}], **options)
    if action == "pop":
        return await store.conversations.pop(space, "talk", **options)
    if action == "peek":
        return await store.conversations.peek(space, "talk", 100)
    if action == "line":
        await store.keyed.put(space, id, text, unit(5), **options)
        return [await store.keyed.get(space, id), await store.keyed.query(space, unit(5), 10, now=NOW)]
    found = await store.memories.get(space, id)
    generation = found["statistics"]["generation"] if found else 1
    new = memory(id, namespace=space, text=f"{text} revised")
    return await store.memories.supersede(new, unit(7), generation=generation, **options)


def test_a_slow_shard_keeps_nobody_else_waiting(config, placement):
    """Its own namespaces hear of it at the deadline."""
    hasty = config.model_copy(update={"serve": config.serve.model_copy(update={"deadline_s": 3.0})})
    names = [f"space-{i}" for i in range(50)]
    slow = 0
    inside = next(name for name in names if placement.home(name) == slow)
    outside = next(name for name in names if slow not in placement.places(name))

    async def check():
        store = ShardedStore(hasty)
        stuck = asyncio.ensure_future(
            store.memories.put(MemoryBatch.of([(memory("a", namespace=inside), unit(0))]), op_id="a", now=NOW)
        )
        for i in range(20):
            items = [(memory(f"m{i}", namespace=outside), unit(i))]
            assert (await store.memories.put(MemoryBatch.of(items), op_id=f"free-{i}", now=NOW))[0]["stored"]
            assert len(await store.search.find(outside, unit(1), 100)) == i + 1
            assert not stuck.done() or i > 0
        with pytest.raises(NotReady, match="shard-0"):
            await stuck

    victim = pid(slow)
    os.kill(victim, signal.SIGSTOP)
    try:
        asyncio.run(check())
    finally:
        os.kill(victim, signal.SIGCONT)
    items = [(memory("a", namespace=inside), unit(0))]
    assert asyncio.run(ShardedStore(config).memories.put(MemoryBatch.of(items), op_id="a", now=NOW))[0][
        "stored"
    ]


def test_sixty_four_callers_at_once_lose_nothing(config):
    async def check():
        store, space = ShardedStore(config), "many"
        await store.memories.put(
            MemoryBatch.of([(memory("m", namespace=space), unit(0))]), op_id="first-many", now=NOW
        )
        calls = [store.memories.touch(space, ["m"], op_id=f"many-{i}", now=NOW) for i in range(64)]
        assert all(answer["touched"] == ["m"] for answer in await asyncio.gather(*calls))
        assert (await store.memories.get(space, "m"))["statistics"]["usage"] == 64

    asyncio.run(check())


def test_too_many_at_once_are_told_when_to_come_back(config):
    """One thread and no room to wait: what is refused was not done, what was answered is there."""
    stop_shards()
    narrow = store_config(config.store_dir, SHARDS, spread=2, write_threads=1, max_waiting=1)
    start_shards(narrow, DIM)

    async def check():
        store, space = ShardedStore(narrow), "narrow"
        await store.memories.put(
            MemoryBatch.of([(memory("m", namespace=space), unit(0))]), op_id="first", now=NOW
        )
        calls = [store.memories.touch(space, ["m"], op_id=f"touch-{i}", now=NOW) for i in range(60)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, Overloaded)]
        done = [answer for answer in answers if isinstance(answer, dict)]
        assert refused and done and len(refused) + len(done) == 60
        assert all(error.retry_after_s >= 1 and "max_waiting" in error.message for error in refused)
        assert (await store.memories.get(space, "m"))["statistics"]["usage"] == len(done)
        assert (await store.memories.touch(space, ["m"], op_id="later", now=NOW))["touched"] == ["m"]

    asyncio.run(check())


@pytest.mark.parametrize("by", ["ids", "where", "everything"])
def test_what_a_memory_says_leaves_conversations_on_other_shards_too(config, placement, by):
    async def check():
        store, space = ShardedStore(config), f"said-{by}"

        def op():
            return {"op_id": uuid.uuid4().hex, "now": NOW}

        talks = [f"talk-{i}" for i in range(8)]
        assert len({placement.pick(space, talk) for talk in talks}) == 2
        item = memory("m", namespace=space, text="the secret", context={"topic": "x"})
        [put] = await store.memories.put(MemoryBatch.of([(item, unit(1))]), **op())
        for talk in talks:
            for text in ("the secret", "the weather"):
                await store.conversations.push(space, talk, [{"role": "user", "text": text}], **op())
        await store.conversations.push(
            f"{space}-other", "talk", [{"role": "user", "text": "the secret"}], **op()
        )
        chosen = {
            "ids": ["m"],
            "where": {"field": "context.topic", "op": "eq", "value": "x"},
            "everything": True,
        }[by]
        receipt = await store.erasure.forget(space, **{by: chosen}, **op())
        assert receipt["forgotten"] == ["m"] and receipt["turns"] == (16 if by == "everything" else 8)
        assert receipt["generation"] == store.generation and len(receipt["heads"]) == 2
        assert dict(receipt["heads"])[put["shard"]] >= put["seq"]
        [again] = await store.memories.put(MemoryBatch.of([(item, unit(1))]), **op())
        assert again["shard"] == put["shard"] and dict(receipt["heads"])[put["shard"]] < again["seq"]
        await store.erasure.forget(space, ids=["m"], **op())
        left = [turn["text"] for talk in talks for turn in await store.conversations.peek(space, talk, 9)]
        assert left == ([] if by == "everything" else ["the weather"] * 8)
        assert len(await store.conversations.peek(f"{space}-other", "talk", 9)) == 1

    asyncio.run(check())


def test_receipts_of_several_shards_are_one():
    one = {"namespace": "n", "forgotten": ["a"], "log_records": 1, "scrubbed": True, "keys_destroyed": None}
    other = {
        "namespace": "n",
        "forgotten": ["b"],
        "log_records": 2,
        "scrubbed": False,
        "keys_destroyed": True,
    }
    assert merged([one, other]) == {
        "namespace": "n",
        "forgotten": ["a", "b"],
        "log_records": 3,
        "scrubbed": False,
        "keys_destroyed": True,
    }
