"""A snapshot and the log behind it say what the log says; what is damaged is passed over, and says so."""

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from common.errors import NotFound, StoreCorrupt
from stores.shard.shard import Shard
from stores.snapshots import files, manager
from stores.snapshots.files import MEMORIES, PARTS, VECTORS
from stores.snapshots.manager import Snapshots
from stores.snapshots.manifest import MANIFEST, read_manifest, write_manifest
from stores.writes.batch import MemoryBatch
from tests.support.snapshots import IDS, NAMESPACES, bytes_in, experiences, made, replayed, said
from tests.support.stores import DIM, NOW, memory, open_shard, unit

steps = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(NAMESPACES), st.sampled_from(IDS), experiences),
    st.tuples(st.just("touch"), st.sampled_from(NAMESPACES), st.lists(st.sampled_from(IDS), max_size=3)),
    st.tuples(st.just("score"), st.sampled_from(NAMESPACES), st.sampled_from(IDS), st.floats(-3, 3)),
    st.tuples(st.just("forget"), st.sampled_from(NAMESPACES), st.sampled_from(IDS)),
    st.tuples(st.just("take"), st.sampled_from(NAMESPACES), st.sampled_from(IDS), experiences),
    st.tuples(st.just("supersede"), st.sampled_from(NAMESPACES), st.sampled_from(IDS), experiences),
    st.just(("snapshot",)),
    st.just(("reopen",)),
)


class Store:
    """A shard that steps are done to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shard = self.open()
        self.done = 0

    def open(self) -> Shard:
        return open_shard(self.path, snapshot_every=0)

    def do(self, step: tuple[Any, ...]) -> None:
        self.done += 1
        getattr(self, f"_{step[0]}")(*step[1:], op_id=f"op-{self.done}", now=NOW + self.done)

    def _put(self, namespace: str, id: str, fields: dict[str, Any], **how: Any) -> None:
        if self.shard.memories.get(namespace, id) is None:
            self.shard.memories.put(MemoryBatch.of([(made(id, namespace, fields), unit(self.done))]), **how)

    def _take(self, namespace: str, id: str, fields: dict[str, Any], **how: Any) -> None:
        """A memory comes from a second shard, where it was used."""
        if self.shard.memories.get(namespace, id) is not None:
            return
        with tempfile.TemporaryDirectory() as folder:
            other = open_shard(Path(folder))
            other.memories.put(
                MemoryBatch.of([(made(id, namespace, fields), unit(self.done))]), op_id="put", now=NOW
            )
            other.memories.touch(namespace, [id], op_id="touch", now=NOW + 1)
            rows = [*other.memories.export_rows(namespace)]
            other.close()
        self.shard.memories.import_rows(rows, **how)

    def _supersede(self, namespace: str, id: str, fields: dict[str, Any], **how: Any) -> None:
        found = self.shard.memories.get(namespace, id)
        if found is not None and found["kind"] == fields["kind"]:
            generation = found["statistics"]["generation"]
            new = made(id, namespace, fields)
            self.shard.memories.supersede(new, unit(self.done), generation=generation, **how)

    def _touch(self, namespace: str, ids: list[str], **how: Any) -> None:
        self.shard.memories.touch(namespace, ids, **how)

    def _score(self, namespace: str, id: str, divergence: float, **how: Any) -> None:
        self.shard.memories.score(namespace, [(id, divergence)], **how)

    def _forget(self, namespace: str, id: str, **how: Any) -> None:
        self.shard.erasure.forget(namespace, ids=[id], **how)

    def _snapshot(self, **_: Any) -> None:
        self.shard.snapshot()

    def _reopen(self, **_: Any) -> None:
        self.shard.close()
        self.shard = self.open()


@settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(st.lists(steps, max_size=25))
def test_snapshot_and_tail_equal_the_whole_log(todo: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        for step in todo:
            store.do(step)
        before = said(store.shard.core.view)
        store.do(("reopen",))
        assert said(store.shard.core.view) == before == said(replayed(store.shard))
        assert not store.shard.counts()["snapshot"]["passed_over"]
        store.shard.close()


def fill(path: Path, count: int = 6, **config: Any) -> Shard:
    shard = open_shard(path, **{"snapshot_every": 0, **config})
    for number in range(count):
        shard.memories.put(
            MemoryBatch.of([(memory(f"m{number}"), unit(number))]), op_id=f"put-{number}", now=NOW
        )
    return shard


def test_a_snapshot_is_made_once_a_record(tmp_path: Path) -> None:
    shard = fill(tmp_path)
    made_at = shard.snapshot()
    assert made_at is not None and made_at.name == f"{6:020d}"
    assert shard.snapshot() is None
    manifest = read_manifest(made_at)
    assert (manifest["seq"], manifest["counts"]) == (6, {"memories": 6, "namespaces": 1})
    assert manifest["anchor"] == shard.counts()["anchor"]
    shard.close()


def test_the_newest_two_stay(tmp_path: Path) -> None:
    shard = fill(tmp_path, 2)
    for number in range(2, 6):
        shard.snapshot()
        shard.memories.put(
            MemoryBatch.of([(memory(f"m{number}"), unit(number))]), op_id=f"put-{number}", now=NOW
        )
    assert [int(path.name) for path in shard.core.snapshots.folders()] == [5, 4]
    shard.close()


def test_one_is_made_every_so_many_records_and_on_close(tmp_path: Path) -> None:
    shard = fill(tmp_path, 25, snapshot_every=10)
    shard.close()
    assert int(shard.core.snapshots.folders()[0].name) == 25
    reopened = open_shard(tmp_path, snapshot_every=10)
    assert reopened.counts()["snapshot"]["seq"] == 25
    assert said(reopened.core.view) == said(replayed(reopened))
    reopened.close()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def of_a_newer_schema(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_bytes())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "schema": 99}))


def of_another_log(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_bytes())
    write_manifest(folder, {k: v for k, v in manifest.items() if k != "digest"} | {"anchor": "00" * 8})


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "memories": ("digest", lambda folder: flip(folder / MEMORIES)),
    "vectors": ("digest", lambda folder: flip(folder / VECTORS)),
    "parts": ("digest", lambda folder: (folder / PARTS).write_bytes(b"x")),
    "manifest": ("manifest", lambda folder: (folder / MANIFEST).write_bytes(b"{")),
    "no manifest": ("manifest", lambda folder: (folder / MANIFEST).unlink()),
    "no file": ("digest", lambda folder: (folder / MEMORIES).unlink()),
    "newer schema": ("schema", of_a_newer_schema),
    "another log": ("log", of_another_log),
    "ahead of the log": ("log", lambda folder: None),
}


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize("older", [False, True])
def test_a_damaged_one_is_passed_over_with_its_reason(
    tmp_path: Path, what: str, older: bool, caplog: pytest.LogCaptureFixture
) -> None:
    shard = fill(tmp_path, 3)
    if older:
        shard.snapshot()
    shard.memories.put(MemoryBatch.of([(memory("m9"), unit(9))]), op_id="put-9", now=NOW)
    folder = shard.snapshot()
    assert folder is not None
    shard.close()
    reason, damage = DAMAGE[what]
    if what == "ahead of the log":
        shutil.rmtree(tmp_path / "other", ignore_errors=True)
        shutil.copytree(folder, tmp_path / "kept")
        for name in ("data.mdb", "lock.mdb"):
            (tmp_path / name).unlink()
        shutil.rmtree(tmp_path / "snapshots")
        fill(tmp_path, 3).close()
        shutil.copytree(tmp_path / "kept", folder)
    else:
        damage(folder)
    with caplog.at_level(logging.WARNING):
        reopened = open_shard(tmp_path, snapshot_every=0)
    assert reopened.counts()["snapshot"]["passed_over"] == {reason: 1}
    assert len(caplog.records) == 1 and "passed over" in caplog.text
    assert said(reopened.core.view) == said(replayed(reopened))
    used = reopened.counts()["snapshot"]["seq"]
    assert used == (3 if older and what != "ahead of the log" else 0)
    reopened.memories.put(MemoryBatch.of([(memory("m10"), unit(10))]), op_id="put-10", now=NOW)
    new = reopened.snapshot()
    assert new is not None
    left = [path for path in reopened.core.snapshots.folders() if path != new]
    assert left == ([folder.with_name(f"{3:020d}")] if used else [])
    reopened.close()


def test_a_damaged_log_is_not_hidden_by_a_snapshot(tmp_path: Path) -> None:
    shard = fill(tmp_path)
    shard.snapshot()
    with shard.core.log._env.begin(write=True, db=shard.core.log._log) as txn:  # type: ignore[attr-defined]
        txn.put((6).to_bytes(8, "big"), b"damaged")
    shard.close()
    with pytest.raises(StoreCorrupt):
        open_shard(tmp_path)


def test_erasure_takes_the_snapshots_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "QUIET_S", 0.0)
    shard = fill(tmp_path, snapshot_every=1000)
    folder = shard.snapshot()
    assert folder is not None
    kept = tmp_path.parent / f"{tmp_path.name}-kept"
    shutil.copytree(folder, kept)
    shard.erasure.forget("acme", ids=["m3"], op_id="forget", now=NOW)
    assert not folder.exists()
    shard.core.snapshots.join()
    [new] = shard.core.snapshots.folders()  # made anew, without it
    assert [row["id"] for row in files.load(new)[1][0].table.to_pylist()] == ["m0", "m1", "m2", "m4", "m5"]
    shard.close()

    shutil.rmtree(new)
    shutil.copytree(kept, folder)  # as if a crash had come before it was removed
    reopened = open_shard(tmp_path, snapshot_every=0)
    assert not folder.exists()
    assert reopened.memories.get("acme", "m3") is None
    reopened.close()
    shutil.rmtree(kept)


def test_a_purge_that_was_cut_off_goes_on_at_the_next_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: object, **__: object) -> None:
        raise OSError("cut off")

    shard = fill(tmp_path)
    folder = shard.snapshot()
    assert folder is not None
    monkeypatch.setattr(Snapshots, "purge", cut_off)
    with pytest.raises(OSError, match="cut off"):
        shard.erasure.forget("acme", ids=["m3"], op_id="forget", now=NOW)
    shard.close()
    monkeypatch.undo()
    assert folder.exists()
    reopened = open_shard(tmp_path, snapshot_every=0)
    assert not [*(tmp_path / "snapshots").iterdir()]
    assert reopened.memories.get("acme", "m3") is None
    reopened.close()


def test_an_erasure_stops_a_snapshot_that_is_being_written(tmp_path: Path) -> None:
    shard = fill(tmp_path)
    erased = threading.Thread(
        target=lambda: shard.erasure.forget("acme", ids=["m3"], op_id="forget", now=NOW), daemon=True
    )

    def take() -> files.Capture:
        captured = shard.core.capture()
        erased.start()
        while not shard.core.snapshots._erasures:
            time.sleep(0.001)
        return captured

    assert shard.core.snapshots.make(take) is None
    erased.join()
    assert not [*(tmp_path / "snapshots").iterdir()]
    folder = shard.snapshot()
    assert folder is not None
    assert "m3" not in files.load(folder)[1][0].table["id"].to_pylist()
    shard.close()


def test_a_snapshot_that_fails_harms_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    shard = fill(tmp_path, 3, snapshot_every=5)
    monkeypatch.setattr(os, "fsync", full)
    shard.core.snapshots._try(shard.core.capture)
    monkeypatch.undo()
    assert shard.counts()["snapshot"] == {"seq": 0, "passed_over": {"failed": 1}}
    assert not [*(tmp_path / "snapshots").iterdir()]
    shard.memories.put(MemoryBatch.of([(memory("m7"), unit(7))]), op_id="put-7", now=NOW)
    assert shard.snapshot() is not None
    shard.close()


class Ring:
    """AES-GCM under a key a namespace."""

    def __init__(self) -> None:
        self.keys: dict[str, bytes] = {}

    def encrypt_bytes(self, namespace: str, data: bytes) -> bytes:
        key = self.keys.setdefault(namespace, AESGCM.generate_key(256))
        nonce = os.urandom(12)
        return nonce + AESGCM(key).encrypt(nonce, data, None)

    def decrypt_any(self, sealed: bytes, context: bytes = b"") -> bytes:
        for key in self.keys.values():
            try:
                return AESGCM(key).decrypt(sealed[:12], sealed[12:], None)
            except InvalidTag:
                continue
        raise NotFound("destroyed", code="key_destroyed")


def test_sealed_snapshots_hold_nothing_in_clear(tmp_path: Path) -> None:
    shard = fill(tmp_path, 3)
    shard.memories.put(
        MemoryBatch.of([(memory("g1", namespace="globex"), unit(50))]), op_id="globex", now=NOW
    )
    plain = shard.core.snapshots.make(shard.core.capture)
    assert plain is not None
    vector = unit(1).tobytes()
    assert bytes_in(plain, vector)
    shutil.rmtree(plain)
    keyring = Ring()
    sealed = Snapshots(tmp_path / "snapshots", every=0, keep=2, encryptor=keyring)
    sealed.make(shard.core.capture)
    for secret in (b"this is m1", b"acme", b"globex", vector):
        assert not bytes_in(tmp_path / "snapshots", secret)
    view, seq = sealed.open(shard.core.log, DIM)
    assert (said(view), seq) == (said(shard.core.view), 4)

    _, without = Snapshots(tmp_path / "snapshots", every=0, keep=2).open(shard.core.log, DIM)
    assert without == 0
    del keyring.keys["globex"]  # the key of a namespace is destroyed
    assert [space.namespace for space in files.load(sealed.folders()[0], encryptor=keyring)[1]] == ["acme"]
    _, seq = sealed.open(shard.core.log, DIM)
    assert seq == 0 and sealed.passed_over == {"key": 1}  # only the log says what is erased
    shard.close()


def test_writers_go_on_while_a_snapshot_is_written(tmp_path: Path) -> None:
    shard = fill(tmp_path, 3)
    written = []

    def take() -> files.Capture:
        captured = shard.core.capture()
        shard.memories.put(
            MemoryBatch.of([(memory("late"), unit(99))]), op_id="late", now=NOW
        )  # before a byte is on disk
        written.append("late")
        return captured

    folder = shard.core.snapshots.make(take)
    assert written and folder is not None and int(folder.name) == 3
    assert shard.memories.get("acme", "late") is not None
    shard.close()


WRITER = """
import sys
from pathlib import Path
import numpy as np
from stores.writes.batch import MemoryBatch
from tests.support.stores import NOW, memory, open_shard, unit
path, start = Path(sys.argv[1]), int(sys.argv[2])
shard = open_shard(path, snapshot_every=0)
print("open", flush=True)
for number in range(start, start + 100_000):
    shard.memories.put(MemoryBatch.of([(memory(f"m{number}-{i}"), unit(number * 40 + i)) for i in range(40)]),
              op_id=f"put-{number}", now=NOW)
    shard.snapshot()
    print(number, flush=True)
"""


@pytest.mark.parametrize("kills", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_at_any_point_leaves_whole_snapshots_only(tmp_path: Path, kills: int) -> None:
    chance = random.Random(kills)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    start = 0
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(start)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert process.stdout is not None
        process.stdout.readline()  # open
        for _ in range(chance.randrange(3)):
            process.stdout.readline()
        time.sleep(chance.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()

        for folder in sorted((tmp_path / "snapshots").glob("[0-9]*")):
            _, spaces = files.load(folder)
            for space in spaces:
                assert space.vectors().shape == (space.table.num_rows, DIM)
                assert np.allclose(np.linalg.norm(space.vectors(), axis=1), 1.0, atol=1e-3)
        shard = open_shard(tmp_path, snapshot_every=0)
        assert shard.counts()["snapshot"]["passed_over"] == {}
        assert said(shard.core.view) == said(replayed(shard))
        assert not [*(tmp_path / "snapshots").glob(".tmp-*")]
        start = 1_000 * (1 + start // 1_000)
        shard.close()


def test_an_erasure_whose_snapshots_could_not_be_removed_is_finished_when_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = fill(tmp_path, 3)
    folder = shard.snapshot()
    assert folder is not None

    def refuses(*_: object, **__: object) -> None:
        raise OSError("the disk says no")

    with monkeypatch.context() as broken:
        broken.setattr("stores.snapshots.manager.shutil.rmtree", refuses)
        with pytest.raises(OSError, match="says no"):
            shard.erasure.forget("acme", ids=["m1"], op_id="forget", now=NOW)
    assert folder.exists()
    assert shard.erasure.forget("acme", ids=["m1"], op_id="forget", now=NOW)["forgotten"] == ["m1"]
    assert not folder.exists() and shard.counts()["failure"] is None
    shard.close()
