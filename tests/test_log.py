import json
import os
import random
import resource
import subprocess
import sys
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import lmdb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_helpers import failing_fsync

from common.errors import Conflict, InvalidInput, NotReady, StoreCorrupt
from stores import record as records
from stores.logs import Operation, base
from stores.logs.lmdb import LmdbLog
from stores.record import PLAIN, Op, Record

ROOT = Path(__file__).parent.parent
GENESIS = PLAIN.genesis


def open_log(path, **options):
    return LmdbLog(path, map_size_bytes=64 << 20, identity={"shard": 0}, **options)


@pytest.fixture
def log(tmp_path):
    log = open_log(tmp_path / "log")
    yield log
    log.close()


def append(log, number, *, body="x", vector=b"", erase=(), op=Op.PUT):
    """One operation of one record; its result is its number."""
    op_id = f"op-{number}"
    staged = log.stage(op_id, [(op, {"number": number, "body": body}, vector)], now=float(number))
    log.commit([Operation(op_id=op_id, request=op.name, records=staged, result=number, erase=erase)])
    return staged[0]


def run(code, *args, **env):
    """Run Python code against the log in its own process."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


# Records

encodable = st.builds(
    records.make,
    st.sampled_from(Op),
    seq=st.integers(1, 2**63),
    epoch=st.integers(1, 2**63),
    time=st.floats(allow_nan=False),
    op_id=st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    previous=st.binary(min_size=8, max_size=8),
    body=st.binary(max_size=300),
    vector=st.binary(max_size=64),
)


@given(encodable)
def test_a_record_survives_its_encoding(record):
    assert records.decode(records.encode(record), record.seq) == record
    assert records.intact(record)


def test_a_large_record_survives_its_encoding():
    record = records.make(
        Op.PUT,
        seq=1,
        epoch=1,
        time=0.0,
        op_id="o",
        previous=GENESIS,
        body=b"x" * 10_000_000,
        vector=b"v" * 8192,
    )
    assert records.decode(records.encode(record), 1) == record


@given(encodable, st.data())
def test_every_flipped_bit_is_found(record, data):
    raw = bytearray(records.encode(record))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(StoreCorrupt) as caught:
        records.decode(bytes(raw), record.seq)
    assert str(record.seq) in caught.value.message


@given(encodable, st.integers(0, 60))
def test_a_torn_record_is_found(record, kept):
    with pytest.raises(StoreCorrupt):
        records.decode(records.encode(record)[:kept], record.seq)


def test_a_record_under_another_number_is_found():
    record = records.make(Op.PUT, seq=1, epoch=1, time=0, op_id="", previous=GENESIS, body=b"", vector=b"")
    with pytest.raises(StoreCorrupt, match="record 2 holds record 1"):
        records.decode(records.encode(record), 2)


@given(encodable)
def test_an_erased_record_keeps_its_place_in_the_chain_and_nothing_else(record):
    erased = records.decode(records.encode(records.erase(record)), record.seq)
    assert erased.erased and records.intact(erased)
    assert (erased.digest, erased.anchor) == (record.digest, record.anchor)
    assert not erased.body and not erased.vector and erased.salt != record.salt
    assert not records.intact(replace(erased, body=b"back again"))


# The log


def test_what_was_written_is_read_after_reopening(tmp_path):
    log = open_log(tmp_path / "log")
    written = [append(log, i, body="é" * i, vector=bytes(i)) for i in range(1, 30)]
    log.close()
    log = open_log(tmp_path / "log")
    assert list(log.records()) == written
    assert (log.seq, log.anchor, log.verify()) == (29, written[-1].anchor, None)
    assert [record.content()["number"] for record in written] == list(range(1, 30))
    log.close()


def test_an_empty_log_is_whole(log):
    assert list(log.records()) == [] and log.verify() is None
    assert (log.seq, log.anchor) == (0, GENESIS)


def test_anchors_are_the_chain_of_the_design(log):
    anchor = bytes(8)
    for i in range(1, 6):
        record = append(log, i)
        anchor = blake2b(anchor + record.digest, digest_size=8).digest()
        assert record.anchor == anchor


def test_equal_contents_have_unequal_digests(log):
    """Without a salt, whoever sees the digest of an erased memory could test guesses against it."""
    assert append(log, 1, body="Ada").digest != append(log, 2, body="Ada").digest


def test_an_operation_sent_again_returns_its_first_result(tmp_path):
    log = open_log(tmp_path / "log")
    assert log.seen("op-1", "PUT") is None
    append(log, 1)
    assert log.seen("op-1", "PUT") == 1
    with pytest.raises(Conflict):
        log.seen("op-1", "FORGET")
    log.close()
    log = open_log(tmp_path / "log")
    assert log.seen("op-1", "PUT") == 1
    log.close()


def test_results_are_kept_for_the_last_operations_only(log, monkeypatch):
    monkeypatch.setattr(base, "RESULTS_KEPT", 5)
    for i in range(1, 21):
        append(log, i)
    assert [i for i in range(1, 21) if log.seen(f"op-{i}", "PUT")] == [16, 17, 18, 19, 20]


def test_a_batch_is_one_commit_of_several_operations(tmp_path):
    log = open_log(tmp_path / "log")
    append(log, 1, body="secret")
    operations, last = [], None
    for number, (count, erase) in enumerate([(2, []), (0, []), (3, [1])], start=2):
        drafts = [(Op.PUT, {"number": number, "part": part}, b"") for part in range(count)]
        staged = log.stage(f"op-{number}", drafts, now=0.0, after=last)
        last = staged[-1] if staged else last
        operations.append(
            Operation(
                op_id=f"op-{number}",
                request="PUT",
                records=staged,
                result=[number],
                erase=erase,
                counts={"gate_attempts": count, "more": 1},
            )
        )
    assert log.seq == 1 and log.seen("op-2", "PUT") is None, "staging writes nothing"
    log.commit(operations)
    assert log.scrub_due and log.scrub()
    for _ in range(2):
        assert [log.seen(f"op-{n}", "PUT") for n in (2, 3, 4)] == [[2], [3], [4]]
        assert [record.seq for record in log.records()] == [1, 2, 3, 4, 5, 6]
        assert [record.content()["part"] for record in log.records(after=1)] == [0, 1, 0, 1, 2]
        assert [record.seq for record in log.records(after=5)] == [6] and not [*log.records(after=6)]
        assert log.state() == {
            **{"seq": 6, "epoch": log.epoch, "anchor": last.anchor.hex()},
            **{"gate_attempts": 5, "gate_accepts": 0, "duplicates": 0, "more": 3},
        }
        assert log.verify() is None and log.examine() is None
        log.close()
        log = open_log(tmp_path / "log")
    log.close()


@pytest.mark.parametrize("op_id", ["", "x" * 129, "é" * 65])
def test_an_op_id_of_the_wrong_length_is_refused(log, op_id):
    with pytest.raises(InvalidInput):
        log.seen(op_id, "PUT")


def test_every_owner_has_a_higher_epoch(tmp_path):
    for epoch in range(1, 4):
        log = open_log(tmp_path / "log")
        assert log.epoch == epoch and append(log, epoch).epoch == epoch
        log.close()


def test_a_folder_has_one_owner(log):
    for _ in range(2):
        with pytest.raises(NotReady, match=f"process {os.getpid()}"):
            open_log(log.path)
    code = "import sys; from pathlib import Path; from stores.logs.lmdb import LmdbLog; LmdbLog(Path(sys.argv[1]), "
    other = run(code + "map_size_bytes=64 << 20, identity={'shard': 0}, wait_s=0.2)", log.path)
    assert "NotReady" in other.stderr and "owned by process" in other.stderr
    append(log, 1)


def test_another_shards_folder_is_refused(log):
    log.close()
    with pytest.raises(Conflict, match="shard"):
        LmdbLog(log.path, map_size_bytes=64 << 20, identity={"shard": 1})
    open_log(log.path).close()


def test_writes_of_an_older_epoch_are_refused(log):
    """Should the file lock ever fail us, say on a network disk, the epoch still tells."""
    code = """
import json, lmdb, sys
from stores import record
with lmdb.open(sys.argv[1], max_dbs=4, map_size=64 << 20, lib_version=0).begin(write=True) as txn:
    meta = json.loads(record.unseal(txn.get(b"meta"), "meta"))
    txn.put(b"meta", record.seal(json.dumps({**meta, "epoch": 9}).encode()))
"""
    append(log, 1)
    assert run(code, log.path).returncode == 0
    with pytest.raises(Conflict, match="newer owner"):
        append(log, 2)
    with pytest.raises(NotReady):
        append(log, 3)
    assert [record.seq for record in log.records()] == [1]


# Damage


def damage(log, needle, change):
    """Change the bytes of the file that hold `needle`, with the log closed."""
    log.close()
    file = log.path / "data.mdb"
    data = file.read_bytes()
    assert needle in data
    file.write_bytes(data.replace(needle, change))


def test_a_flipped_bit_on_disk_is_found_and_named(tmp_path):
    for broken in (1, 4, 7):
        log = open_log(tmp_path / f"{broken}")
        for i in range(1, 8):
            append(log, i, body=f"needle-{i} " + "x" * 3000)
        damage(log, f"needle-{broken} ".encode(), f"needle+{broken} ".encode())
        log = open_log(log.path)
        with pytest.raises(StoreCorrupt, match=f"record {broken} "):
            list(log.records())
        assert log.verify() == broken
        log.close()


def rewrite(log, change):
    """Let `change(txn, log database)` edit the log behind its back."""
    log.close()
    with lmdb.open(str(log.path), max_dbs=4, map_size=64 << 20, lib_version=0) as env:
        database = env.open_db(b"log")
        with env.begin(write=True) as txn:
            change(txn, database)
    return open_log(log.path)


@pytest.mark.parametrize("gone", [1, 3, 5])
def test_a_missing_record_is_found(log, gone):
    for i in range(1, 6):
        append(log, i)
    log = rewrite(log, lambda txn, db: txn.delete(gone.to_bytes(8, "big"), db=db))
    with pytest.raises(StoreCorrupt, match=f"record {gone} is missing"):
        list(log.records())
    assert log.verify() == gone
    log.close()


def test_a_forged_record_breaks_the_chain(log):
    """Its checksum and digest are right: only the chain gives it away."""
    forged = [append(log, i) for i in range(1, 6)][2]
    forged = records.make(
        Op.PUT, seq=3, epoch=1, time=3.0, op_id="op-3", previous=GENESIS, body=b'{"number":99}', vector=b""
    )
    log = rewrite(log, lambda txn, db: txn.put((3).to_bytes(8, "big"), records.encode(forged), db=db))
    assert log.verify() == 3
    log.close()


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "data.mdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreCorrupt):
        open_log(tmp_path / "log")


# Erasure


@pytest.mark.parametrize("seed", range(3))
def test_erased_content_is_gone_from_the_disk_and_the_chain_still_verifies(tmp_path, seed):
    """Records of all sizes: several in a page, one in a page, one over pages. LMDB reuses page buffers
    uncleared, so the unused ends of living pages used to carry pieces of erased ones."""
    rng = random.Random(seed)
    log = open_log(tmp_path / "log")
    secret = [i for i in range(1, 61) if rng.random() < 0.5]
    for i in range(1, 61):
        word = "secret" if i in secret else "public"
        append(log, i, body=(word * 2000)[: rng.randint(10, 9000)], vector=word.encode())
    append(log, 61, erase=secret, op=Op.FORGET)
    assert log.scrub_due and log.scrub() and not log.scrub_due
    for _ in range(2):
        disk = b"".join(file.read_bytes() for file in log.path.rglob("*") if file.is_file())
        assert disk.count(b"secret") == 0 and disk.count(b"public") > 60
        assert log.verify() is None
        assert [record.seq for record in log.records() if record.erased] == secret
        append(log, log.seq + 1)
        log.close()
        log = open_log(log.path)
    log.close()


def test_a_crash_before_the_scrub_is_made_good_on_open(log):
    append(log, 1, body="secret")
    append(log, 2, erase=[1], op=Op.FORGET)
    (log.path / "scrub").mkdir()
    (log.path / "scrub" / "data.mdb").write_bytes(b"half a copy")
    log.close()
    log = open_log(log.path)
    assert not log.scrub_due and not (log.path / "scrub").exists()
    assert b"secret" not in (log.path / "data.mdb").read_bytes()
    assert log.verify() is None
    log.close()


def test_a_scrub_without_room_stays_due(log):
    append(log, 1)
    append(log, 2, erase=[1], op=Op.FORGET)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        assert not log.scrub()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert log.scrub_due and log.verify() is None
    assert log.scrub() and not log.scrub_due


# Disks that fail


def test_a_full_map_refuses_the_write_and_the_log_goes_on(tmp_path):
    log = LmdbLog(tmp_path / "log", map_size_bytes=256 << 10, identity={})
    append(log, 1)
    with pytest.raises(NotReady, match="map_size_bytes") as caught:
        append(log, 2, body="x" * 1_000_000)
    assert caught.value.code == "store_full" and log.failure is None
    append(log, 2)
    assert log.seq == 2 and log.verify() is None
    log.close()


FAILING_WRITER = """
import json, os, resource, signal, sys
from pathlib import Path
from common.errors import NotReady
from stores.logs import Operation
from stores.logs.lmdb import LmdbLog
from stores.record import Op

path, fault, flag = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
log = LmdbLog(path, map_size_bytes=64 << 20, identity={"shard": 0})
acknowledged, told = [], []
for number in range(1, 21):
    if number == 8 and fault == "fsync":
        flag.touch()
    if number == 8 and fault == "write":
        size = (path / "data.mdb").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    if number == 12:  # the disk is well again; the log must not trust it
        flag.unlink(missing_ok=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    op_id = f"op-{number}"
    try:
        staged = log.stage(op_id, [(Op.PUT, {"number": number, "body": "x" * 9000}, b"")], now=0.0)
        log.commit([Operation(op_id=op_id, request="PUT", records=staged, result=number)])
        acknowledged.append(number)
    except NotReady as error:
        told.append([number, error.code, error.message])
print(json.dumps({
    "acknowledged": acknowledged,
    "told": told,
    "failure": log.failure,
    "readable": [record.content()["number"] for record in log.records()],
}))
"""


@pytest.mark.parametrize("fault", ["fsync", "write"])
def test_a_failed_write_stops_the_log_and_loses_nothing_acknowledged(tmp_path, fault):
    env = failing_fsync(tmp_path) if fault == "fsync" else {}
    done = run(FAILING_WRITER, tmp_path / "log", fault, tmp_path / "flag", **env)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["acknowledged"] == list(range(1, 8)), "nothing is acknowledged after the first failure"
    assert {code for _, code, _ in report["told"]} == {"log_failed"}
    assert "stopped at record 7" in report["failure"]
    assert report["readable"] == report["acknowledged"], "reads go on"

    log = open_log(tmp_path / "log")
    found: list[Record] = list(log.records())
    assert [record.content()["number"] for record in found][:7] == report["acknowledged"]
    assert len(found) <= 8 and log.verify() is None
    append(log, 30)
    log.close()
