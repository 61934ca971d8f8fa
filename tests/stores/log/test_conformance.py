"""What every log must do, whoever keeps it; each test runs on all of them."""

import json
import os
import random
import resource
import threading
from hashlib import blake2b

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import Conflict, InvalidInput, NotReady, StoreCorrupt
from stores.log import base
from stores.log import record as records
from stores.log.base import Operation
from stores.log.record import PLAIN, Op
from tests.support.log_backends import BACKENDS, Backend, append, draft, numbers, operation, run
from tests.support.redis_server import RedisServer
from tests.support.stores import failing_fsync


@pytest.fixture(params=BACKENDS)
def backend(request, tmp_path):
    server = request.getfixturevalue("redis_server") if request.param == "redis" else None
    return Backend(request.param, tmp_path / f"store-{tmp_path.name}", server)


@pytest.fixture
def log(backend):
    log = backend.open()
    yield log
    log.close()


# Round trips


def test_what_was_written_is_read_after_reopening(backend):
    log = backend.open()
    written = [append(log, i, body="é\n\u2028\x00" * i, vector=bytes(i)) for i in range(1, 300)]
    log.close()
    log = backend.open()
    assert list(log.records()) == written
    assert (log.seq, log.anchor, log.verify()) == (299, written[-1].anchor, None)
    for after in (0, 1, 127, 128, 298, 299):
        assert list(log.records(after)) == written[after:]
    with pytest.raises(StoreCorrupt, match="record 401 is missing"):  # a snapshot knows more than the log
        list(log.records(400))
    log.close()


def test_an_empty_log_is_whole(backend):
    for epoch in (1, 2):
        log = backend.open()
        assert list(log.records()) == [] and log.verify() is None
        assert (log.seq, log.anchor, log.epoch) == (0, PLAIN.genesis, epoch)
        log.close()


def test_empty_and_huge_records(backend):
    log = backend.open()
    bodies = ["", "x" * 5_000_000, "", '{"crc":"00000000"}\n{"state":']
    written = [append(log, i, body=body, vector=b"v" * len(body)) for i, body in enumerate(bodies, start=1)]
    log.commit([operation(5, [])])  # one that changes nothing still has a result
    log.close()
    log = backend.open()
    assert list(log.records()) == written and log.seen("op-5", "r") == 5
    log.close()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=200), vector=st.binary(max_size=64), time=st.floats(allow_nan=False))
def test_any_bytes_survive(backend, body, vector, time):
    """Encrypted bodies are no JSON; what looks like our own lines is content all the same."""
    log = backend.open(body.hex()[:8] + vector.hex()[:8])
    for content in (body, b'{"base64":"' + body.hex().encode() + b'"}', b'{"a" : 1}', b'"text"', b"null"):
        previous = log.anchor
        record = records.make(
            Op.PUT,
            seq=log.seq + 1,
            epoch=log.epoch,
            time=time,
            op_id=vector.hex(),
            previous=previous,
            body=content,
            vector=vector,
        )
        log.commit([operation(log.seq + 1, [record])])
        assert [*log.records(log.seq - 1)] == [record]
    assert log.verify() is None
    log.close()


@pytest.mark.parametrize("bits", [64, 256])
def test_anchors_are_the_chain_of_the_design(backend, bits, monkeypatch):
    monkeypatch.setenv("CHAIN_KEY", "k" * 32)
    for key in (b"", b"k" * 32):
        options = {"anchor_bits": bits, "chain_key": "env:CHAIN_KEY" if key else None}
        log = backend.open(f"log-{len(key)}", **options)
        anchor = bytes(bits // 8)
        for i in range(1, 6):
            record = append(log, i)
            anchor = blake2b(anchor + record.digest, digest_size=bits // 8, key=key).digest()
            assert record.anchor == anchor
        log.close()
        log = backend.open(f"log-{len(key)}", **options)
        assert log.anchor == anchor and log.verify() is None
        log.close()


# Operations and batches


def test_an_operation_sent_again_returns_its_first_result(backend):
    log = backend.open()
    assert log.seen("op-1", "r") is None
    append(log, 1)
    for _ in range(2):
        assert log.seen("op-1", "r") == 1
        with pytest.raises(Conflict):
            log.seen("op-1", "another request")
        log.close()
        log = backend.open()
    log.close()


def test_results_are_kept_for_the_last_operations_only(backend, monkeypatch):
    monkeypatch.setattr(base, "RESULTS_KEPT", 5)
    log = backend.open()
    for first in range(1, 21, 4):
        log.commit([operation(i, []) for i in range(first, first + 4)])
    for _ in range(2):
        assert [i for i in range(1, 21) if log.seen(f"op-{i}", "r")] == [16, 17, 18, 19, 20]
        log.close()
        log = backend.open()
    log.close()


@pytest.mark.parametrize("op_id", ["", "x" * 129, "é" * 65])
def test_an_op_id_of_the_wrong_length_is_refused(log, op_id):
    with pytest.raises(InvalidInput):
        log.seen(op_id, "r")


def test_a_batch_is_one_step(backend):
    """Operations of a batch follow one another, count together, and may erase what stands before them."""
    log = backend.open()
    append(log, 1, body="secret")
    staged, batch = None, []
    for i in range(2, 6):
        group = log.stage(f"op-{i}", [draft(i), draft(i)], now=0.0, after=staged)
        staged = group[-1]
        batch.append(
            operation(i, group, erase=[1, 2] if i == 5 else [], counts={"gate_attempts": i, "more": 1})
        )
    assert (log.seq, log.state()["gate_attempts"]) == (1, 0), "staging writes nothing"
    assert log.seen("op-2", "r") is None
    log.commit(batch)
    assert log.scrub_due
    for _ in range(2):
        assert log.state() == {
            **{"seq": 9, "epoch": log.epoch, "anchor": staged.anchor.hex()},
            **{"gate_attempts": 14, "gate_accepts": 0, "duplicates": 0, "more": 4},
        }
        assert_batch(log)
        log.close()
        log = backend.open()
    log.close()


def assert_batch(log):
    assert [log.seen(f"op-{i}", "r") for i in range(3, 6)] == [3, 4, 5]
    assert dict(log.results()) == {"op-1": None, "op-2": None, "op-3": 3, "op-4": 4, "op-5": 5}
    assert numbers(log) == [2, 3, 3, 4, 4, 5, 5] and log.verify() is None


def test_readers_go_on_while_a_writer_writes_and_rewrites(log):
    failures, stop = [], threading.Event()
    append(log, 1)

    def read():
        while not stop.is_set():
            try:
                found = [record.seq for record in log.records()]
                assert found == [*range(1, len(found) + 1)] and log.seen("op-1", "r") == 1
                assert log.verify() is None
            except Exception as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(2, 40):
        append(log, i, erase=[i - 1] if i % 8 == 0 else [])
        if log.scrub_due:
            assert log.scrub()
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures


# Owners


def test_every_owner_has_a_higher_epoch(backend):
    before = 0
    for number in range(1, 5):
        log = backend.open()
        assert log.epoch > before  # a redis that answered late was asked twice, and counted twice
        assert append(log, number).epoch == log.epoch
        before = log.epoch
        log.close()


def test_another_shards_log_is_refused(log, backend):
    log.close()
    for other in ({"identity": {"shard": 1}}, {"anchor_bits": 256}):
        with pytest.raises(Conflict, match="shard"):
            backend.open(**other)
    backend.open().close()


TAKE_OVER = """
import fcntl, sys
from pathlib import Path
from common.config import StoreConfig
from stores.log.open import open_log
fcntl.flock = lambda *_: None  # a network disk whose locks do nothing
config = StoreConfig.model_validate_json(sys.argv[2])
log = open_log(Path(sys.argv[1]), config=config, identity={"shard": 0})
print(log.epoch)
log.close()
"""


def test_an_old_owner_that_wakes_up_is_refused(log, backend):
    append(log, 1)
    taken = run(TAKE_OVER, log.path, backend.config().model_dump_json())
    assert taken.stdout.strip() == "2", taken.stderr
    with pytest.raises(Conflict, match="newer owner") as caught:
        append(log, 2)
    assert caught.value.code == "fenced" and "newer owner" in log.failure
    with pytest.raises(NotReady):
        append(log, 3)
    with pytest.raises((Conflict, NotReady), match="newer owner"):
        log.scrub()
    assert numbers(log) == [1]
    log.close()
    log = backend.open()
    assert (log.epoch, log.seen("op-2", "r"), numbers(log)) == (3, None, [1])
    log.close()


@pytest.mark.parametrize("name", ["lmdb", "jsonl"])
def test_a_folder_has_one_owner(name, tmp_path):
    backend = Backend(name, tmp_path / "store")
    log = backend.open()
    for _ in range(2):
        with pytest.raises(NotReady, match=f"owned by process {os.getpid()}") as caught:
            backend.open(wait_s=0.1)
        assert caught.value.code == "owned"
    other = run(TAKE_OVER.replace("fcntl.flock =", "_ ="), log.path, backend.config().model_dump_json())
    assert "NotReady" in other.stderr and f"owned by process {os.getpid()}" in other.stderr
    append(log, 1)
    log.close()


def test_a_closed_log_says_so(log):
    append(log, 1)
    log.close()
    log.close()
    with pytest.raises(NotReady):
        log.seen("op-1", "r")


# Erasure


@pytest.mark.parametrize("seed", range(2))
def test_erased_content_is_gone_from_the_disk_and_the_chain_still_verifies(backend, seed):
    """Records of all sizes: several in a page, one in a page, one over pages. LMDB reuses page buffers
    uncleared, so the unused ends of living pages used to carry pieces of erased ones."""
    rng, word = random.Random(seed), f"secret{random.random()}"
    log = backend.open()
    secret = [i for i in range(1, 41) if rng.random() < 0.5]
    for i in range(1, 41):
        text = word if i in secret else "public"
        append(log, i, body=(text * 500)[: rng.randint(30, 9000)], vector=text.encode())
    assert word.encode() in backend.disk()
    append(log, 41, erase=secret, op=Op.FORGET)
    assert log.scrub_due
    assert [record.seq for record in log.records() if record.erased] == secret, "at once, for readers"
    assert log.scrub() and not log.scrub_due
    for _ in range(2):
        assert word.encode() not in backend.disk() and b"public" in backend.disk()
        assert log.verify() is None
        assert [record.seq for record in log.records() if record.erased] == secret
        assert [i for i in range(1, 42) if i not in secret and log.seen(f"op-{i}", "r") != i] == []
        append(log, log.seq + 1)
        log.close()
        log = backend.open()
    log.close()


def test_a_crash_before_the_scrub_is_made_good_on_open(backend):
    word = f"secret{random.random()}"
    log = backend.open()
    append(log, 1, body=word)
    append(log, 2, erase=[1], op=Op.FORGET)
    log.close()
    if backend.name == "jsonl":
        (log.path / "log.jsonl.new").write_bytes(b"half a copy of " + word.encode())
    if backend.name == "lmdb":
        (log.path / "scrub").mkdir()
        (log.path / "scrub" / "data.mdb").write_bytes(b"half a copy of " + word.encode())
    log = backend.open()
    assert not (log.path / "log.jsonl.new").exists() and not (log.path / "scrub").exists()
    assert not log.scrub_due and word.encode() not in backend.disk() and log.verify() is None
    log.close()


def test_what_is_erased_takes_the_request_and_the_result_of_its_operation_along(backend):
    """Both are told from the content without a salt. The end of a fact tells nothing of it."""
    asked = [f"digest-{random.random()}" for _ in range(5)]
    log = backend.open()
    for number, op in enumerate([Op.PUT, Op.AGGREGATE, Op.CLOSE, Op.PUT, Op.PUT], start=1):
        staged = log.stage(f"op-{number}", [draft(number, op=op)], now=0.0)
        request, result = asked[number - 1], {"winner": f"of {asked[number - 1]}"}
        log.commit([Operation(op_id=f"op-{number}", request=request, records=staged, result=result)])
    assert all(request.encode() in backend.disk() for request in asked)
    log.commit([operation(9, [], erase=[1, 2, 3], drop=["op-4", "op-unknown"])])
    for scrubbed in (False, True):
        for number in (1, 2, 4):
            with pytest.raises(Conflict) as caught:
                log.seen(f"op-{number}", asked[number - 1])
            assert caught.value.code == "erased"
            assert log.seen(f"op-{number}", None) == {"request": None, "result": None}
        assert [log.seen(f"op-{n}", asked[n - 1])["winner"] for n in (3, 5)] == [
            f"of {asked[2]}",
            f"of {asked[4]}",
        ]
        assert log.seen("op-9", "r") == 9 and log.seen("op-unknown", "r") is None
        if not scrubbed:
            log.close()
            log = backend.open()  # which makes the scrub good
    assert [n for n in range(1, 6) if asked[n - 1].encode() in backend.disk()] == [3, 5]
    log.close()


def test_a_result_that_is_no_longer_kept_leaves_nothing_either(backend, monkeypatch):
    monkeypatch.setattr(base, "RESULTS_KEPT", 3)
    asked = f"digest-{random.random()}"
    log = backend.open()
    log.commit([Operation(op_id="op-0", request=asked, records=(), result=[])])
    for i in range(1, 6):
        append(log, i)
    append(log, 6, erase=[1])
    assert log.scrub() and asked.encode() not in backend.disk()
    log.close()


# Damage


def opened_and_read(backend, seq):
    """The error that a log damaged at record `seq` gives on opening or on reading."""
    with pytest.raises(StoreCorrupt) as caught:
        log = backend.open()
        try:
            broken = log.examine()
            assert broken["seq"] == log.verify() == seq
            list(log.records())
        finally:
            log.close()
    return caught.value


@pytest.mark.parametrize("broken", [1, 4, 7])
def test_a_flipped_bit_is_found_and_named(backend, broken):
    log = backend.open()
    written = [append(log, i, body=f"needle-{i} " + "x" * 3000) for i in range(1, 8)]
    backend.flip(log, written[broken - 1], f"needle-{broken} ".encode())
    error = opened_and_read(backend, broken)
    assert f"record {broken} " in error.message
    assert error.fault["seq"] == broken


@pytest.mark.parametrize("gone", [1, 3, 5])
def test_a_missing_record_is_found(backend, gone):
    log = backend.open()
    written = [append(log, i) for i in range(1, 6)]
    backend.drop(log, written[gone - 1])
    assert f"record {gone} is missing" in opened_and_read(backend, gone).message


def test_a_forged_record_breaks_the_chain(backend):
    """Its checksum and digest are right: only the chain gives it away."""
    log = backend.open()
    for i in range(1, 6):
        append(log, i)
    forged = records.make(
        Op.PUT, seq=3, epoch=1, time=3.0, op_id="op-3", previous=PLAIN.genesis, body=b'{"n":99}', vector=b""
    )
    backend.replace(log, forged)
    log = backend.open()
    assert log.verify() == 3 and log.examine()["op_id"] == "op-3"
    log.close()


# Disks that fail

FAILING_WRITER = """
import json, os, resource, sys
from pathlib import Path
from common.config import StoreConfig
from common.errors import NotReady
from stores.log.base import Operation
from stores.log.open import open_log
from stores.log.record import Op

path, config, fault, flag, disk, server = sys.argv[1:]
log = open_log(Path(path), config=StoreConfig.model_validate_json(config), identity={"shard": 0})
acknowledged, told = [], []

def limit(size):
    resource.prlimit(int(server), resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

for number in range(1, 15):
    if number == 8 and fault == "fsync":
        Path(flag).touch()
    if number == 8 and fault == "write":
        limit(os.stat(disk).st_size + 100)
    if number == 10:  # the disk is well again; the log must not trust it
        Path(flag).unlink(missing_ok=True)
        if os.path.exists(f"/proc/{server}"):
            limit(resource.RLIM_INFINITY)
    op_id = f"op-{number}"
    try:
        staged = log.stage(op_id, [(Op.PUT, {"number": number, "body": "x" * 9000}, b"")], now=0.0)
        log.commit([Operation(op_id=op_id, request="r", records=staged, result=number)])
        acknowledged.append(number)
    except NotReady as error:
        told.append([number, error.code, error.message])
found = [r.content()["number"] for r in log.records()] if server == "0" else acknowledged
print(json.dumps({"acknowledged": acknowledged, "told": told, "failure": log.failure, "readable": found}))
"""


@pytest.mark.parametrize("fault", ["fsync", "write"])
@pytest.mark.parametrize("name", BACKENDS)
def test_a_failed_write_stops_the_log_and_loses_nothing_acknowledged(name, fault, tmp_path):
    shim = failing_fsync(tmp_path) if fault == "fsync" else {}
    server = None
    if name == "redis":
        server = RedisServer(tmp_path / "server", environment=shim)
    try:
        backend = Backend(name, tmp_path / "store", server)
        backend.open().close()
        disk = {
            "lmdb": tmp_path / "store/log/data.mdb",
            "jsonl": tmp_path / "store/log/log.jsonl",
            "redis": max((tmp_path / "server").rglob("appendonly*.aof"), default=None),
        }[name]
        config = backend.config(redis_deadline_s=0.5).model_dump_json()
        arguments = (tmp_path / "store/log", config, fault, tmp_path / "flag", disk)
        done = run(
            FAILING_WRITER, *arguments, server.process.pid if server else 0, **({} if server else shim)
        )
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["acknowledged"] == [*range(1, 8)], "nothing is acknowledged after the first failure"
        assert {code for _, code, _ in report["told"]} == {"log_failed"}
        assert "stopped at record 7" in report["failure"] and "restart-shard 0" in report["failure"]
        assert report["readable"] == report["acknowledged"], "reads go on"

        if server:
            server.process.wait()  # a server that must sync each write ends when it cannot
            server.start()
        log = backend.open()
        found = numbers(log)
        assert found in ([*range(1, 8)], [*range(1, 9)]) and log.verify() is None
        assert [log.seen(f"op-{i}", "r") for i in found] == found
        append(log, 30)
        log.close()
    finally:
        if server:
            server.kill()


@pytest.mark.parametrize("name", ["lmdb", "jsonl"])
def test_a_scrub_without_room_stays_due(name, tmp_path):
    backend = Backend(name, tmp_path / "store")
    log = backend.open()
    append(log, 1, body="x" * 5000)
    append(log, 2, body="y" * 50_000, erase=[1], op=Op.FORGET)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        assert not log.scrub()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert log.scrub_due and log.verify() is None
    assert log.scrub() and not log.scrub_due
    log.close()
