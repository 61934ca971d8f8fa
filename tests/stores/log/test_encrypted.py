import random
import shutil
import threading
import time
from base64 import b64encode
from hashlib import blake2b

import numpy as np
import pytest

from common.config import StoreConfig
from common.errors import Conflict, InvalidInput, NotReady, StoreCorrupt
from stores.crypto.master_key import MasterKey, new_master, rotate_master
from stores.log import record as records
from stores.log.base import Operation
from stores.log.open import keyring_folder, open_log
from stores.log.record import Op
from tests.support.redis_server import RedisServer
from tests.support.stores import axis

MASTER = MasterKey(bytes(range(32)))
SECRETS = ("acme", "other", "sé cret", "kept", "ada-1")


class Place:
    """Where one test keeps its log."""

    def __init__(self, backend, folder, server):
        self.backend, self.folder, self.server = backend, folder, server

    def open(self, wait_s=0.0, **config):
        given = {"backend": self.backend, "dir": str(self.folder), "master_key": "env:TEST_MASTER", **config}
        if self.server:
            given |= {"redis_url": self.server.url, "redis_prefix": self.folder.parent.name}
        return open_log(
            self.folder / "log", config=StoreConfig(**given), identity={"shard": 0}, wait_s=wait_s
        )

    def disk(self):
        files = b"".join(f.read_bytes() for f in self.folder.rglob("*") if f.is_file())
        return files + (self.server.disk() if self.server else b"")


@pytest.fixture(params=["lmdb", "jsonl", "redis"])
def place(request, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_MASTER", MASTER.text)
    # Of its own: in one that tests share, a key of "test_another_..." already holds one of the words sought.
    server = RedisServer(tmp_path / "redis") if request.param == "redis" else None
    yield Place(request.param, tmp_path / "store", server)
    if server:
        server.kill()


def put(log, number, *, namespace="acme", word="sé cret", erase=(), op=Op.PUT):
    body = {"memory": {"namespace": namespace, "id": f"ada-{number}", "text": f"{word} {number}"}}
    staged = log.stage(f"op-{number}", [(op, body, axis(number % 8).tobytes())], now=float(number))
    operation = Operation(
        op_id=f"op-{number}", request="r", records=staged, result={"id": f"ada-{number}"}, erase=erase
    )
    log.commit([operation])
    return staged[0]


def test_callers_see_plain_records_and_the_disk_holds_none(place):
    log = place.open()
    written = [put(log, i, namespace=("acme", "other")[i % 2]) for i in range(1, 40)]
    for _ in range(2):
        assert [*log.records()] == written and [*log.records(30)] == written[30:]
        assert [r.content()["memory"]["text"] for r in written] == [f"sé cret {i}" for i in range(1, 40)]
        assert all(np.array_equal(np.frombuffer(r.vector, "<f4"), axis(r.seq % 8)) for r in written)
        assert log.seen("op-7", "r") == {"id": "ada-7"} and log.seen("op-99", "r") is None
        assert log.verify() is None and log.seq == 39
        with pytest.raises(Conflict):
            log.seen("op-7", "another request")
        log.close()
        disk = place.disk()
        for secret in SECRETS:
            assert secret.encode() not in disk and b64encode(secret.encode())[:-2] not in disk
        assert all(record.vector not in disk for record in written)
        log = place.open()
    log.close()


def test_the_chain_verifies_without_any_key(place):
    log = place.open()
    written = [put(log, i) for i in range(1, 10)]
    put(log, 10, op=Op.FORGET, erase=[3])
    anchor = bytes(8)
    for record in log.inner.records():
        assert records.intact(record)
        anchor = blake2b(anchor + record.digest, digest_size=8).digest()
        assert record.anchor == anchor
    assert anchor == log.anchor and written[-1].anchor != anchor
    log.close()


def test_a_batch_that_was_staged_twice_commits_what_was_staged_last(place):
    log = place.open()
    log.stage("op-1", [(Op.PUT, {"namespace": "acme", "text": "given up"}, b"")], now=1.0)
    first = log.stage("op-1", [(Op.PUT, {"namespace": "acme", "n": 1}, b"")], now=1.0)
    second = log.stage("op-2", [(Op.PUT, {"namespace": "other", "n": 2}, b"")], now=1.0, after=first[-1])
    log.commit(
        [
            Operation(op_id="op-1", request="r", records=first, result=1),
            Operation(op_id="op-2", request="r", records=second, result=2),
        ]
    )
    assert [*log.records()] == first + second and log.verify() is None
    log.close()


def test_erased_content_stays_erased(place):
    log = place.open()
    for i in range(1, 10):
        put(log, i)
    sealed = [record.body for record in log.inner.records()]
    put(log, 10, op=Op.FORGET, erase=[2, 5])
    assert log.scrub_due and log.scrub()
    assert [record.seq for record in log.records() if record.erased] == [2, 5] and log.verify() is None
    for seq in (2, 5):
        disk = place.disk()
        assert sealed[seq - 1] not in disk and b64encode(sealed[seq - 1])[:-4] not in disk
    log.close()


def test_a_destroyed_key_leaves_backups_of_the_log_unreadable(place):
    log = place.open()
    for i in range(1, 20):
        put(log, i, namespace=("acme", "other")[i % 2], word="kept" if i % 2 else "sé cret")
    log.close()
    backup = place.folder.parent / "backup"
    shutil.copytree(place.folder, backup, ignore=shutil.ignore_patterns("keys"))
    log = place.open()
    assert log.keyring.destroy("acme") == 1
    for _ in range(2):
        found = [*log.records()]
        assert [record.seq for record in found if record.erased] == [*range(2, 20, 2)]
        assert {record.content()["memory"]["text"][:4] for record in found if not record.erased} == {"kept"}
        assert log.verify() is None
        log.close()
        log = place.open()
    put(log, 20, word="a new life")
    assert next(log.records(19)).content()["memory"]["text"] == "a new life 20"
    log.close()
    if not place.server:  # bring the files of the backup back, beside the keyring as it is now
        shutil.copytree(backup, place.folder, dirs_exist_ok=True)
        log = place.open()
        found = [*log.records()]
        assert [record.seq for record in found if record.erased] == [*range(2, 20, 2)] and len(found) == 19
        log.close()


def test_a_wrong_master_key_is_a_clear_error(place, monkeypatch):
    log = place.open()
    put(log, 1)
    log.close()
    monkeypatch.setenv("TEST_MASTER", new_master().text)
    with pytest.raises(InvalidInput, match=MASTER.id):
        place.open()
    monkeypatch.setenv("TEST_MASTER", "short")
    with pytest.raises(InvalidInput, match="TEST_MASTER") as caught:
        place.open()
    assert "short" not in caught.value.message
    monkeypatch.setenv("TEST_MASTER", MASTER.text)
    with pytest.raises(Conflict, match="aes-256-gcm"):
        place.open(master_key=None)
    log = place.open()
    assert log.seq == 1
    log.close()


def test_a_plain_log_does_not_become_an_encrypted_one_by_a_setting(place):
    log = place.open(master_key=None)
    log.close()
    assert log.keyring is None
    with pytest.raises(InvalidInput, match="not encrypted"):
        log.rotate_key("acme")
    with pytest.raises(Conflict, match="aes-256-gcm"):
        place.open()


def test_a_ring_that_was_lost_is_told_apart(place):
    log = place.open()
    put(log, 1)
    log.close()
    shutil.rmtree(place.folder / "log" / "keys")
    log = place.open()
    with pytest.raises(NotReady, match="keyring") as caught:
        [*log.records()]
    assert caught.value.code == "key_missing" and log.verify() is None
    log.close()


def test_content_moved_to_another_place_is_found(place):
    """With checksum, digest and chain made right again: only the seal gives it away."""
    log = place.open()
    first, second = put(log, 1), put(log, 2)
    sealed = [*log.inner.records()]
    swapped = records.make(
        Op.PUT, seq=2, epoch=1, time=2.0, op_id="op-2", previous=first.anchor, body=sealed[0].body, vector=b""
    )
    log.inner.records = lambda after=0: iter([sealed[0], swapped])
    assert second.digest != swapped.digest and log.verify() is None
    with pytest.raises(StoreCorrupt, match="moved"):
        [*log.records()]
    log.close()


def test_data_keys_rotate_and_the_chain_stays(place):
    rng = random.Random(0)
    log = place.open()
    written = [put(log, i, namespace=rng.choice(["acme", "other"])) for i in range(1, 300)]
    put(log, 300, op=Op.FORGET, erase=[7])
    before, anchor = {r.seq: r.body for r in log.inner.records()}, log.anchor
    assert log.rotate_key("acme")
    for _ in range(2):
        found = [*log.records()]
        assert [r for r in found if r.seq not in (7, 300)] == [r for r in written if r.seq != 7]
        assert log.verify() is None and log.anchor == anchor
        assert log.seen("op-5", "r") == {"id": "ada-5"}
        for record in log.inner.records():
            acme = (
                record.seq not in (7, 300)
                and written[record.seq - 1].content()["memory"]["namespace"] == "acme"
            )
            assert (record.body[:77] != before[record.seq][:77]) == (acme or record.seq == 300)
            assert record.body[77:] == before[record.seq][77:]
            assert record.erased or log.keyring.renew(record.body) == record.body
        log.close()
        log = place.open()
    log.close()


def test_a_new_owner_sees_the_keys_as_the_former_one_left_them(place):
    """It waits for the log, and keys change meanwhile: sealing under one that is gone would lose writes."""
    if place.server:
        pytest.skip("a redis log is taken over, not waited for")
    log, after = place.open(), []
    put(log, 1)
    waiting = threading.Thread(target=lambda: after.append(place.open(wait_s=30)))
    waiting.start()
    time.sleep(0.3)
    assert log.rotate_key("acme")
    log.close()
    waiting.join()
    put(after[0], 2)
    after[0].close()
    log = place.open()
    assert len([record for record in log.records() if not record.erased]) == 2
    log.close()


def test_the_master_key_rotates(place, monkeypatch):
    log = place.open()
    written = put(log, 1)
    folder = log.keyring.folder
    log.close()
    fresh = new_master()
    assert rotate_master(folder, MASTER, fresh) == 2  # the namespace's and the shard's own
    with pytest.raises(InvalidInput):
        place.open()
    monkeypatch.setenv("TEST_MASTER", fresh.text)
    log = place.open()
    assert [*log.records()] == [written]
    log.close()


def test_the_ring_can_be_kept_apart(tmp_path):
    config = StoreConfig(dir=str(tmp_path / "store"), keys_dir=str(tmp_path / "keys"))
    assert keyring_folder(tmp_path / "store" / "shards" / "3", config) == tmp_path / "keys" / "shards" / "3"
    assert keyring_folder(tmp_path / "elsewhere" / "3", config) == tmp_path / "keys" / "3"
    inside = StoreConfig(dir=str(tmp_path / "store"))
    assert keyring_folder(tmp_path / "store" / "3", inside) == tmp_path / "store" / "3" / "keys"


def test_a_rotation_without_room_leaves_both_keys_and_goes_on_later(place):
    log = place.open()
    written, scrub = put(log, 1), log.inner.scrub
    log.inner.scrub = lambda: False
    assert not log.rotate_key("acme") and log.inner.rewrite is None
    after = put(log, 2)
    assert [*log.records()] == [written, after]
    log.inner.scrub = scrub
    assert log.rotate_key("acme") and [*log.records()] == [written, after] and log.verify() is None
    assert len({record.body[1:17] for record in log.inner.records()}) == 1
    log.close()
