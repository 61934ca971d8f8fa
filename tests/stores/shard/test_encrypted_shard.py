import os
import shutil

import pytest

from common.config import StoreConfig
from common.errors import NotFound
from stores.crypto.master_key import new_master
from stores.erasure.disk_probe import Canaries, probe_folder
from stores.shard.shard import Shard
from stores.writes.batch import MemoryBatch
from tests.support.stores import DIM, NOW, axis, memory, open_shard, unit

CANARY = "the canary sings in Lisbon"


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Opens the same encrypted shard again and again."""
    monkeypatch.setenv("TEST_MASTER", new_master().text)
    shards = []

    def opened():
        for shard in shards:
            shard.close()
        shards.append(open_shard(tmp_path / "shard", master_key="env:TEST_MASTER"))
        return shards[-1]

    yield opened
    shards[-1].close()


def fill(shard, namespace):
    def op():
        return {"op_id": os.urandom(8).hex(), "now": NOW}

    items = [
        (memory(f"{namespace}-{i}", namespace=namespace, text=f"{CANARY} {i}"), unit(i)) for i in range(5)
    ]
    shard.memories.put(MemoryBatch.of(items), **op())
    shard.memories.touch(namespace, [f"{namespace}-1"], **op())
    shard.memories.score(namespace, [(f"{namespace}-1", 2.0)], **op())
    shard.keyed.put(namespace, "bird", CANARY, axis(0), **op())
    shard.keyed.put(namespace, "bird", f"{CANARY} again", axis(1), **op())
    shard.conversations.push(namespace, "talk", [{"role": "user", "text": CANARY}] * 3, **op())
    shard.conversations.pop(namespace, "talk", **op())


def state(shard, namespace):
    memories = shard.memories.list(namespace)
    vector = unit(1)
    return (
        [(m["id"], m["text"], m["statistics"], len(m["versions"])) for m in memories],
        [(f["memory"]["id"], f["score"]) for f in shard.search.find(namespace, vector, 3, now=NOW)],
        shard.keyed.get(namespace, "bird"),
        shard.conversations.peek(namespace, "talk", 9),
    )


def test_an_encrypted_shard_is_a_shard_and_its_disk_says_nothing(opened, tmp_path):
    shard = opened()
    fill(shard, "acme")
    fill(shard, "other")
    before = state(shard, "acme")
    assert len(before[0]) == 6 and len(before[3]) == 2
    shard = opened()
    assert state(shard, "acme") == before and shard.chain.verify() is None
    disk = b"".join(file.read_bytes() for file in (tmp_path / "shard").rglob("*") if file.is_file())
    for secret in ("canary", "Lisbon", "acme", "other", "bird", "talk"):
        assert secret.encode() not in disk
    assert axis(1).tobytes() not in disk and unit(1).tobytes() not in disk


def test_a_forgotten_namespace_is_unreadable_in_every_copy(opened, tmp_path):
    shard = opened()
    fill(shard, "acme")
    fill(shard, "other")
    kept = state(shard, "other")
    shard.close()
    shutil.copytree(tmp_path / "shard", tmp_path / "backup", ignore=shutil.ignore_patterns("keys"))
    shard = opened()
    sealed_before = shard.core.log.keyring.encrypt_bytes("acme", b"a snapshot made before")
    receipt = shard.erasure.forget("acme", everything=True, op_id="f", now=NOW)
    assert receipt["keys_destroyed"] and receipt["scrubbed"] and receipt["turns"] == 2
    assert shard.erasure.forget("acme", everything=True, op_id="f", now=NOW) == receipt
    with pytest.raises(NotFound) as caught:
        shard.core.log.keyring.decrypt_bytes("acme", sealed_before)
    assert caught.value.code == "key_destroyed"
    shard.close()
    shutil.copytree(tmp_path / "backup", tmp_path / "shard", dirs_exist_ok=True)  # the data as it was
    shard = opened()
    assert state(shard, "acme") == ([], [], None, []) and state(shard, "other") == kept
    assert shard.chain.verify() is None
    fill(shard, "acme")
    assert len(opened().memories.list("acme")) == 6


def test_what_a_namespace_says_after_it_was_forgotten_has_a_key_of_its_own(opened):
    """Even where the new writes come before the old keys are gone."""
    shard = opened()
    fill(shard, "acme")
    keyring = shard.core.log.keyring
    before = keyring.encrypt_bytes("acme", b"before")
    clean_up = shard.erasure.clean_up

    def late(*args):
        fill(shard, "acme")
        return clean_up(*args)

    shard.erasure.clean_up = late
    receipt = shard.erasure.forget("acme", everything=True, op_id="f", now=NOW)
    assert receipt["keys_destroyed"] is False and keyring.is_destroyed(before)
    assert len(shard.memories.list("acme")) == 6 and state(shard, "acme") == state(opened(), "acme")


def test_a_crash_between_erasure_and_key_is_made_good(opened):
    shard = opened()
    fill(shard, "acme")
    before = shard.core.log.keyring.encrypt_bytes("acme", b"before")
    shard.erasure.clean_up = lambda *args: {}
    shard.erasure.forget("acme", everything=True, op_id="f", now=NOW)
    assert not shard.core.log.keyring.is_destroyed(before)
    assert opened().core.log.keyring.is_destroyed(before)


def test_forgetting_the_last_memory_destroys_the_key(opened):
    shard = opened()
    shard.memories.put(
        MemoryBatch.of([(memory("m", text=CANARY), axis(0)), (memory("n"), axis(1))]), op_id="put", now=NOW
    )
    assert shard.erasure.forget("acme", ids=["m"], op_id="1", now=NOW)["keys_destroyed"] is False
    assert shard.erasure.forget("acme", ids=["n"], op_id="2", now=NOW)["keys_destroyed"] is True
    assert opened().memories.list("acme") == []


def test_keys_rotate_under_a_shard(opened):
    shard = opened()
    fill(shard, "acme")
    fill(shard, "other")
    before, old = state(shard, "acme"), shard.core.log.keyring.encrypt_bytes("acme", b"old")
    assert shard.erasure.rotate_key("acme") and shard.core.log.keyring.is_destroyed(old)
    fill(shard, "third")
    for _ in range(2):
        assert state(shard, "acme") == before and shard.chain.verify() is None
        shard = opened()


@pytest.mark.parametrize("backend", ["jsonl"])
def test_other_backends_are_encrypted_too(backend, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_MASTER", new_master().text)
    config = StoreConfig(backend=backend, master_key="env:TEST_MASTER")
    for round in range(2):
        shard = Shard(tmp_path / "shard", number=0, dim=DIM, config=config)
        if not round:
            fill(shard, "acme")
        assert len(shard.memories.list("acme")) == 6
        shard.close()
    assert b"canary" not in (tmp_path / "shard" / "log.jsonl").read_bytes()


def test_snapshots_are_sealed_hold_the_turns_and_go_with_an_erasure(opened, tmp_path):
    shard = opened()
    fill(shard, "acme")
    fill(shard, "other")
    before, folder = state(shard, "acme"), shard.snapshot()
    shard.conversations.push(
        "acme", "talk", [{"role": "user", "text": "behind the snapshot"}], op_id="tail", now=NOW
    )
    canaries = Canaries(texts=["the canary sings"], vectors=[axis(1)])

    def opens(piece):
        return shard.core.log.keyring.decrypt_any(piece, b"file")

    sealed = probe_folder(folder, canaries, decrypt=opens)
    assert {row["place"] for row in sealed if row["found"]} == {"sealed files"}
    shutil.copytree(folder, tmp_path / "copy")
    shard = opened()
    assert shard.counts()["snapshot"]["seq"] > 0 and state(shard, "acme")[:3] == before[:3]
    assert [turn["text"] for turn in shard.conversations.peek("acme", "talk", 9)][-1] == "behind the snapshot"
    assert shard.conversations.pop("acme", "talk", op_id="tail 2", now=NOW)["length"] == 2

    receipt = shard.erasure.forget("acme", everything=True, op_id="f", now=NOW)
    assert receipt["snapshots"] == 1 and not folder.exists()
    copied = probe_folder(tmp_path / "copy", canaries, decrypt=opens)
    [row] = [row for row in copied if row["place"] == "sealed files"]
    assert row["found"] and all("other" not in str(found) for found in row["found"])
    shard.erasure.forget("other", everything=True, op_id="g", now=NOW)
    copied = probe_folder(tmp_path / "copy", canaries, decrypt=opens)
    assert not any(row["found"] or row["unchecked"] for row in copied)
    shutil.copytree(tmp_path / "copy", folder)
    assert opened().memories.list("other") == [] and opened().memories.list("acme") == []


def test_turns_that_were_forgotten_are_in_no_snapshot(opened):
    shard = opened()
    fill(shard, "acme")
    folder = shard.snapshot()
    shard.erasure.forget_turns("acme", texts=[CANARY], op_id="f", now=NOW)
    assert not folder.exists() and shard.conversations.peek("acme", "talk", 9) == []


def test_rotation_takes_snapshots_of_the_old_key_along(opened):
    shard = opened()
    fill(shard, "acme")
    shard.snapshot()
    before = state(shard, "acme")
    shard.erasure.rotate_key("acme")
    shard.snapshot()
    assert state(opened(), "acme") == before


def test_a_rotation_cut_off_before_its_snapshots_go_loses_nothing(opened, monkeypatch):
    """The snapshot is then of a key that is gone: neither it nor what it lacks may be believed."""
    shard = opened()
    fill(shard, "acme")
    fill(shard, "other")
    folder = shard.snapshot()
    before = state(shard, "acme")[:3], state(shard, "other")[:3]
    shard.core.log.rotate_key("acme")
    shard = opened()
    assert (state(shard, "acme")[:3], state(shard, "other")[:3]) == before
    assert shard.counts()["snapshot"]["passed_over"] == {"key": 1}

    folder = shard.snapshot() or folder
    monkeypatch.setattr(shard.core.snapshots, "purge", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        shard.erasure.rotate_key("acme")
    assert (state(opened(), "acme")[:3], state(opened(), "other")[:3]) == before
    assert not folder.exists()
