"""The block store's tiers, against a dictionary."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.kv.blocks import BlockStore
from models.kv.prefix import KVBlock
from models.kv.quantised import Int8States
from models.kv.tiers import Tier

SPACES, IDS, MARKS = ("acme", "other"), ("a", "b", "c"), ("f1", "f2")
SLOTS = 3


def block(memory_id="a", mark="f1", value=0.0, *, front="", behind=(), slots=SLOTS):
    states = torch.full((2, 2, 1, slots, 4), float(value))
    return KVBlock(
        memory_id=memory_id,
        fingerprint=mark,
        ids=tuple(range(slots)),
        text=f"{memory_id} {value}",
        states=states,
        width=slots,
        front=front,
        behind=behind,
    )


SIZE = block().size_bytes


def get(store, space, memory_id="a", mark="f1", front="", slots=SLOTS):
    return store.get(space, memory_id, mark, range(slots), front)


# A namespace is in nearly every operation, so that the two meet often.
names = st.tuples(st.sampled_from(SPACES), st.sampled_from(IDS), st.sampled_from(MARKS))
operations = st.lists(
    st.one_of(
        st.tuples(st.just("put"), names),
        st.tuples(st.just("get"), names),
        st.tuples(st.just("forget"), names),
        st.tuples(st.just("purge"), names),
        st.tuples(st.just("reopen"), names),
    ),
    max_size=30,
)


@given(operations, st.sampled_from([0, 2 * SIZE, 1 << 20]))
@settings(max_examples=60, deadline=None)
def test_blocks_are_what_was_put_last_and_never_another_namespaces(steps, budget):
    with TemporaryDirectory() as folder:
        store, held = BlockStore(Path(folder), budget), {}
        for number, (what, (space, memory_id, mark)) in enumerate(steps):
            if what == "put":
                store.put(space, block(memory_id, mark, number))
                held[space, memory_id, mark] = number
            elif what == "forget":
                gone = [key for key in held if key[:2] == (space, memory_id)]
                assert store.forget(space, [memory_id]) == len(gone)
                held = {key: value for key, value in held.items() if key not in gone}
            elif what == "purge":
                gone = [key for key in held if key[2] == mark]
                assert store.purge(mark) == len(gone)
                held = {key: value for key, value in held.items() if key not in gone}
            elif what == "reopen":
                store = BlockStore(Path(folder), budget)
            for key in [(s, i, m) for s in SPACES for i in IDS for m in MARKS]:
                assert store.has(*key, range(SLOTS)) == (key in held)
                if what == "get":
                    found = get(store, *key)
                    assert (found is not None) == (key in held)
                    assert found is None or float(found.states.flatten()[0]) == held[key]
            assert store.held_bytes <= budget


def test_what_is_gone_from_disk_is_gone_from_memory_whoever_removed_it(tmp_path):
    mine, theirs = BlockStore(tmp_path, 1 << 20), BlockStore(tmp_path, 1 << 20)
    mine.put("acme", block())
    assert get(mine, "acme") and get(theirs, "acme")
    assert theirs.forget("acme", ["a"]) == 1
    assert get(mine, "acme") is None and mine.held_bytes == 0
    assert not mine.has("acme", "a", "f1", range(SLOTS))


def test_memory_keeps_what_was_used_last_and_disk_the_rest(tmp_path):
    store = BlockStore(tmp_path, 2 * SIZE)
    for memory_id in IDS[:2]:
        store.put("acme", block(memory_id))
    get(store, "acme", "a")
    store.put("acme", block("c"))
    assert [get(store, "acme", memory_id) is not None for memory_id in ("a", "c")] == [True, True]
    assert store.disk_hits == 0
    assert get(store, "acme", "b") is not None and store.disk_hits == 1
    store.put("acme", block("huge", slots=1000))  # does not push everything out to be pushed out itself
    assert store.held_bytes == 2 * SIZE
    assert get(store, "acme", "huge", slots=1000) is not None and store.disk_hits == 2


def test_disk_gives_up_what_was_used_longest_ago_and_says_so(tmp_path):
    store = BlockStore(tmp_path, 0)
    store.put("acme", block("0"))
    [file] = tmp_path.rglob("*.safetensors")
    size = file.stat().st_size
    store = BlockStore(tmp_path, 1 << 20, disk_bytes=5 * size)
    for number in range(1, 5):
        store.put("other", block(str(number)))
    for number, path in enumerate(
        sorted(tmp_path.rglob("*.safetensors"), key=lambda p: p.stat().st_mtime_ns)
    ):
        os.utime(path, ns=(number * 10**9, number * 10**9))
    assert get(store, "acme", "0") is not None  # used again, from memory or not
    store.put("acme", block("5"))
    assert store.evicted == 2  # down to nine tenths: two of six
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors")) <= 5 * size
    left = {memory_id for memory_id in "12345" if get(store, "other", memory_id)}
    assert left == {"3", "4"} and get(store, "acme", "0") and get(store, "acme", "5")
    assert store.misses == 3 and store.counts()["evicted"] == 2


def test_forgetting_a_memory_takes_what_was_encoded_behind_it(tmp_path):
    for reopen in (False, True):
        store = BlockStore(tmp_path, 1 << 20)
        store.put("acme", block("a", front="x"))
        store.put("acme", block("b", front="y", behind=("a",)))
        store.put("acme", block("c", front="z", behind=("a", "b")))
        store.put("acme", block("c", mark="f2"))
        store.put("other", block("c", front="z", behind=("a", "b")))
        if reopen:
            store = BlockStore(tmp_path, 1 << 20)
        assert get(store, "acme", "c", front="z") and not get(store, "acme", "c", front="y")
        assert store.forget("acme", ["b"]) == 2
        assert get(store, "acme", "a", front="x") and not get(store, "acme", "c", front="z")
        assert get(store, "acme", "c", mark="f2") and get(store, "other", "c", front="z")


def test_eight_bits_lose_at_most_half_a_scale_and_survive_the_disk(tmp_path):
    torch.manual_seed(1)
    states = torch.randn(3, 2, 2, 7, 8)
    states[:, 0, :, :, 3] *= 200  # a channel of the keys that is much larger than the rest
    states[:, 1, :, 4] = 0.0
    small = Int8States.of(states)
    error = (small.dense() - states).abs()
    assert (error[:, 0] <= 0.51 * small.key_scales.float()).all()
    assert (error[:, 1] <= 0.51 * small.value_scales.float()).all()
    assert error[:, 0, :, :, :3].max() < 0.02  # the large channel costs the others nothing
    at_rest = KVBlock(memory_id="a", fingerprint="f1", ids=(1,), text="", states=small, width=1)
    BlockStore(tmp_path, 0).put("acme", at_rest)
    found = BlockStore(tmp_path, 0).get("acme", "a", "f1", [1])
    assert torch.equal(found.dense(states), small.dense())
    assert found.size_bytes == at_rest.size_bytes < 0.4 * states.numel() * 4


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_tier_is_as_large_as_what_it_holds(size):
    tier = Tier(size * SIZE)
    for number in range(8):
        tier.hold(("n", str(number), "f"), block(), lambda tensor: tensor)
        assert tier.size_bytes == sum(held.size_bytes for held in tier.blocks.values()) <= tier.budget_bytes
    assert len(tier.blocks) == size
    for key in [*tier.blocks]:
        tier.drop(key)
    assert tier.size_bytes == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
def test_the_device_tier_serves_from_the_device(tmp_path):
    store = BlockStore(tmp_path, 4 * SIZE, device=torch.device("cuda"), device_bytes=SIZE)
    for memory_id in IDS:
        store.put("acme", block(memory_id, value=1))
    assert store.device_bytes == SIZE
    assert get(store, "acme", "c").states.is_cuda and store.device_hits == 1
    fetched = get(store, "acme", "a")
    assert fetched.states.is_pinned() and get(store, "acme", "a").states.is_cuda
    assert store.forget("acme", IDS) == 3 and store.device_bytes == store.held_bytes == 0
