"""Writers of many threads that share batches, against the same writes one by one."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import Conflict, NotReady, SharpwaveError
from stores.writes.batch import MemoryBatch
from stores.writes.group_commit import Pending, Sought, Ticket, id_key, space_key
from stores.writes.versions import Candidate
from tests.support.stores import NOW, axis, failing_fsync, memory, open_shard, unit

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def shard(tmp_path):
    shard = open_shard(tmp_path / "shard")
    yield shard
    shard.close()


def put(shard, *names, op_id=None, vector=None, **fields):
    items = [(memory(name, **fields), unit(len(name)) if vector is None else vector) for name in names]
    return lambda: shard.memories.put(MemoryBatch.of(items), op_id=op_id or f"put-{names}", now=NOW)


def together(shard, *calls):
    """Outcomes of calls that wait in this order while the log is held, so that they meet in a batch, and
    the batches they were committed in."""
    outcomes, batches = [None] * len(calls), []
    commit = shard.core.log.commit

    def counted(operations):
        batches.append([operation.op_id for operation in operations])
        commit(operations)

    def run(place):
        try:
            outcomes[place] = calls[place]()
        except Exception as error:
            outcomes[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(calls))]
    shard.core.log.commit = counted
    with shard.core.commits.lock:
        for count, thread in enumerate(threads, start=1):
            thread.start()
            while len(shard.core.commits._queue) < count:
                time.sleep(0.001)
    for thread in threads:
        thread.join(30)
    del shard.core.log.commit
    return outcomes, batches


def test_writers_that_wait_share_one_fsync(shard):
    outcomes, batches = together(shard, *(put(shard, f"m{i}") for i in range(20)))
    assert [len(batch) for batch in batches] == [20]
    assert [page[0]["seq"] for page in outcomes] == list(range(1, 21)), "in the order they came"
    assert shard.chain.verify() is None and shard.counts()["memories"] == 20


def test_writers_that_wait_share_one_look_up(shard):
    """What they find is what each finds alone: twins and novelty, of what is there and of the batch."""
    put(shard, "m0", text="Ada moved to Oslo.", vector=axis(0))()
    alike = [put(shard, f"m{i}", text=f"Ada moved to Oslo{'.' * (i % 2)}", vector=axis(0)) for i in (1, 2)]
    other = [put(shard, f"n{i}", text=f"Bo works in {i}", vector=axis(1)) for i in (1, 2)]
    elsewhere = put(shard, "m0", op_id="o", namespace="other", text="Ada moved to Oslo.", vector=axis(0))
    sizes, search = [], shard.core.view.closest
    shard.core.view.closest = lambda *asked: sizes.append(len(asked[1])) or search(*asked)
    outcomes, batches = together(shard, *alike, *other, elsewhere)
    assert sorted(sizes) == [1, 4] and len(batches) == 1
    first, second, new, again, apart = (outcome[0] for outcome in outcomes)
    assert first["status"] == second["status"] == "duplicate" and first["id"] == second["id"] == "m0"
    assert new["status"] == again["status"] == apart["status"] == "new"
    assert [shard.memories.get("acme", f"n{i}")["statistics"]["novelty"] for i in (1, 2)] == [1.0, 0.0]
    assert shard.memories.get("other", "m0")["statistics"]["novelty"] == 1.0


def test_the_look_up_ends_before_whoever_may_have_to_wait():
    """It would be done again in the next batch."""

    def waits(op_id, *, keys=(), seeks=True):
        sought = Sought(["acme"], axis(0)[None]) if seeks else None
        shared = [space_key("acme")]
        return Ticket(op_id, "r", lambda pending: None, now=NOW, keys=keys, shared=shared, seeks=sought)

    free = [waits("a"), waits("b", keys=[id_key("acme", "m1")])]
    for last in (
        waits("c", seeks=False),
        waits("c", keys=[id_key("acme", "m1")]),
        waits("a"),
        waits("c", keys=[space_key("acme")]),
    ):
        pending = Pending(lambda last=last: [*free, last, waits("d")])
        pending.add(waits("before"), SimpleNamespace(records=[]))
        assert pending.sought() == [ticket.seeks for ticket in free]


def test_a_batch_of_one_is_one_fsync_a_write(tmp_path):
    shard = open_shard(tmp_path / "shard", batch_operations=1)
    _, batches = together(shard, *(put(shard, f"m{i}") for i in range(5)))
    assert [len(batch) for batch in batches] == [1] * 5
    shard.close()


def test_a_batch_leaves_what_single_writes_leave(tmp_path):
    """Novelty, near-identical memories, clashes and counts, seen by later writes of the same batch."""
    close = np.array([0.9, np.sqrt(1 - 0.81), 0, 0, 0, 0, 0, 0], np.float32)

    def calls(shard):
        return [
            put(shard, "a", vector=axis(0)),
            put(shard, "b", vector=close),
            put(shard, "twin", text="This is a", vector=axis(0)),
            put(shard, "a", text="other", vector=axis(3), op_id="clash"),
            lambda: shard.memories.touch("acme", ["a", "b", "none"], op_id="t1", now=NOW),
            lambda: shard.memories.touch("acme", ["a"], op_id="t2", now=NOW),
            lambda: shard.memories.score("acme", [("a", 2.0)], op_id="s1", now=NOW),
            lambda: shard.memories.score("acme", [("a", 4.0)], op_id="s2", now=NOW),
            put(shard, "far", namespace="other", vector=axis(0)),
            lambda: shard.erasure.forget("acme", ids=["b"], op_id="f", now=NOW),
            put(shard, "c", vector=close),
            lambda: shard.memories.touch("acme", ["b", "c"], op_id="t3", now=NOW),
        ]

    alone, batched = open_shard(tmp_path / "alone"), open_shard(tmp_path / "batched")
    expected = []
    for call in calls(alone):
        try:
            expected.append(call())
        except Conflict as error:
            expected.append(error)
    outcomes, batches = together(batched, *calls(batched))
    assert len(batches) < len(outcomes) - 2
    assert [without_anchors(outcome) for outcome in outcomes] == [without_anchors(e) for e in expected]
    assert isinstance(outcomes[3], Conflict) and outcomes[2][0]["status"] == "duplicate"
    assert state(batched) == state(alone)
    for shard in (alone, batched):
        shard.close()


names = st.sampled_from(["a", "b", "c", "d"])
spaces = st.sampled_from(["acme", "acme", "other"])
batched_writes = st.one_of(  # those that seldom keep each other out of a batch
    st.tuples(st.just("put"), spaces, st.lists(st.tuples(names, st.integers(0, 1)), min_size=1, max_size=2)),
    st.tuples(st.just("touch"), spaces, st.lists(names, min_size=1, max_size=2)),
)
all_writes = st.one_of(
    batched_writes,
    st.tuples(st.just("score"), spaces, names),
    st.tuples(st.just("supersede"), spaces, names, st.integers(1, 6)),
    st.tuples(st.just("race"), spaces, names, st.integers(0, 3)),
    st.tuples(st.just("forget"), spaces, st.one_of(st.none(), names)),
)


def call(shard, write, place):
    op, space, what, *more = write
    options = {"op_id": f"{op}-{place % 12}", "now": NOW}  # some ids come twice
    if op == "put":  # texts of two ids are the same words, and all vectors are close
        items = [
            (memory(name, namespace=space, text=f"{'xy'[name in 'ab']} {version}"), axis(version))
            for name, version in what
        ]
        return lambda: shard.memories.put(MemoryBatch.of(items), **options)
    if op == "touch":
        return lambda: shard.memories.touch(space, what, **options)
    if op == "score":
        return lambda: shard.memories.score(space, [(what, float(place))], **options)
    if op == "supersede":
        new = memory(what, namespace=space, text=f"new {place}")
        return lambda: shard.memories.supersede(new, axis(2), generation=more[0], **options)
    if op == "race":
        candidates = [
            Candidate(memory=memory(f"c{i}", namespace=space, text=f"raced {i}"), vector=axis(i))
            for i in range(2)
        ]
        return lambda: shard.memories.race(
            space,
            what,
            candidates,
            generation=more[0],
            weigh=lambda runners, now: [1.0, place % 3],
            **options,
        )
    how = {"everything": True} if what is None else {"ids": [what]}
    return lambda: shard.erasure.forget(space, **how, **options)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(batched_writes, min_size=2, max_size=6), st.lists(all_writes, max_size=12))
def test_any_writes_in_batches_leave_what_they_leave_one_by_one(first, then):
    chosen = first + then
    with tempfile.TemporaryDirectory() as folder:
        alone, batched = open_shard(Path(folder) / "alone"), open_shard(Path(folder) / "batched")
        expected = []
        for place, write in enumerate(chosen):
            try:
                expected.append(call(alone, write, place)())
            except SharpwaveError as error:
                expected.append(error)
        outcomes, batches = together(batched, *(call(batched, w, i) for i, w in enumerate(chosen)))
        assert [without_anchors(outcome) for outcome in outcomes] == [without_anchors(e) for e in expected]
        assert sum(map(len, batches)) <= len(chosen)
        for _ in range(2):
            assert state(batched) == state(alone) and batched.chain.verify() is None
            alone.close(), batched.close()
            alone, batched = open_shard(Path(folder) / "alone"), open_shard(Path(folder) / "batched")
        alone.close(), batched.close()


def state(shard):
    """All that readers see, but for the anchors, which are salted."""
    memories = [
        {
            **m,
            "anchor": None,
            "origin": m["origin"] and {**m["origin"], "anchor": None},
            "versions": [version["seq"] for version in m["versions"]],
        }
        for namespace in ("acme", "other")
        for m in shard.memories.list(namespace)
    ]
    return memories, {**shard.counts(), "anchor": None}


def without_anchors(outcome):
    if isinstance(outcome, Exception):
        return str(outcome)
    pages = outcome if isinstance(outcome, list) else [outcome]
    # `heads`: where the log stood when the batch was planned.
    return [{k: v for k, v in page.items() if k not in ("anchor", "heads")} for page in pages]


def test_a_retry_beside_its_original_counts_once(shard):
    again = put(shard, "m1", op_id="same")
    outcomes, _ = together(shard, again, again, again)
    assert outcomes[0] == outcomes[1] == outcomes[2] and shard.counts()["seq"] == 1
    put(shard, "m2")()
    touch = lambda: shard.memories.touch("acme", ["m1"], op_id="touch", now=NOW)  # noqa: E731
    together(shard, touch, touch)
    assert shard.memories.get("acme", "m1")["statistics"]["usage"] == 1


def test_an_op_id_of_two_requests_fails_one_of_them(shard):
    outcomes, _ = together(shard, put(shard, "m1", op_id="o"), put(shard, "m2", op_id="o"), put(shard, "m3"))
    assert isinstance(outcomes[1], Conflict) and shard.counts()["memories"] == 2


def test_a_failed_commit_fails_every_ticket_of_its_batch(tmp_path):
    """A real limit: the batch does not fit the map. Each thread gets an error of its own, nothing is
    written or shown, and the log goes on."""
    shard = open_shard(tmp_path / "shard", map_size_bytes=10 << 20, max_text_bytes=1 << 20)
    put(shard, "before")()
    before = shard.counts()
    large = {"conversation": None, "context": {"notes": ["x" * 8_000]}}
    calls = [
        lambda i=i: shard.memories.put(
            MemoryBatch.of([(memory(f"{i}-{j}", **large), unit(j)) for j in range(200)]),
            op_id=f"large-{i}",
            now=NOW,
        )
        for i in range(8)
    ]
    outcomes, batches = together(shard, *calls)
    assert [len(batch) for batch in batches] == [8]
    assert {outcome.code for outcome in outcomes} == {"store_full"}
    assert len({id(outcome) for outcome in outcomes}) == 8
    assert shard.counts() == before and shard.chain.verify() is None
    assert put(shard, "after")()[0]["status"] == "new"
    shard.close()


def test_a_write_that_cannot_be_shown_stops_the_shard(tmp_path):
    """On disk but not in the view: writes are refused, the state says why, reopening tells the truth."""
    shard = open_shard(tmp_path / "shard")
    put(shard, "m1")()

    def fault(records):
        raise MemoryError

    shard.core.view.replay = fault
    with pytest.raises(NotReady, match="may be on disk"):
        put(shard, "m2")()
    with pytest.raises(NotReady, match="restart the shard"):
        put(shard, "m3")()
    assert "m2" in shard.counts()["failure"]
    shard.close()
    shard = open_shard(tmp_path / "shard")
    assert [m["id"] for m in shard.memories.list("acme")] == ["m1", "m2"] and shard.counts()[
        "failure"
    ] is None
    shard.close()


def test_a_waiting_caller_that_leaves_does_not_stop_the_others(shard):
    """A Ctrl-C while it waits: its ticket leaves the queue, and somebody else leads."""
    with shard.core.commits.lock:
        leader = threading.Thread(target=put(shard, "m1"))
        leader.start()
        while not shard.core.commits._queue:
            time.sleep(0.001)
        leaving = SimpleNamespace(
            op_id="gone", request="r", keys=set(), shared=set(), seeks=None, done=False, leads=False
        )
        leaving.wait = lambda: (_ for _ in ()).throw(KeyboardInterrupt)
        with contextlib.suppress(KeyboardInterrupt):
            shard.core.commits.do(leaving)
    leader.join(10)
    assert put(shard, "m2")()[0]["seq"] == 2 and not shard.core.commits._queue


def test_many_threads_lose_nothing_and_batches_form(shard):
    def write(thread):
        for i in range(20):
            op_id = f"{thread}-{i}"
            shard.memories.put(
                MemoryBatch.of([(memory(op_id), unit(thread * 100 + i))]), op_id=op_id, now=NOW
            )
            shard.memories.touch("acme", ["0-0", op_id], op_id=f"touch-{op_id}", now=NOW)

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(16)]
    write(0)
    for thread in threads[1:]:
        thread.start()
    for thread in threads[1:]:
        thread.join(60)
    assert shard.counts()["memories"] == 320 and shard.chain.verify() is None
    assert shard.memories.get("acme", "0-0")["statistics"]["usage"] == 321
    seqs = [record.seq for record in shard.core.log.records()]
    assert seqs == list(range(1, 641))


FAILING_WRITERS = """
import json, resource, signal, sys, threading, time
from pathlib import Path
sys.path.insert(0, ".")
from common.errors import NotReady
from stores.writes.batch import MemoryBatch
from tests.support.stores import NOW, memory, open_shard, unit

path, fault, flag = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
shard = open_shard(path)
acknowledged, told, begun = [], [], []

def write(thread):
    for i in range(30):
        id = f"{thread}-{i}"
        begun.append(id)
        try:
            item = memory(id, text="x" * 3000 + id), unit(thread * 100 + i)
            shard.memories.put(MemoryBatch.of([item]), op_id=id, now=NOW)
            acknowledged.append(id)
        except NotReady as error:
            told.append([error.code, error.message])
            return

threads = [threading.Thread(target=write, args=(thread,)) for thread in range(8)]
for thread in threads:
    thread.start()
while len(acknowledged) < 40:
    time.sleep(0.001)
if fault == "fsync":
    flag.touch()
else:
    size = (path / "data.mdb").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
for thread in threads:
    thread.join()
flag.unlink(missing_ok=True)  # the disk is well again; the shard must not trust it
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
try:
    shard.memories.touch("acme", ["0-0"], op_id="late", now=NOW)
except NotReady as error:
    told.append([error.code, error.message])
print(json.dumps({
    "acknowledged": acknowledged, "told": told, "begun": begun, "failure": shard.counts()["failure"],
    "readable": [m["id"] for m in shard.memories.list("acme", limit=1000)],
}))
"""


@pytest.mark.parametrize("fault", ["fsync", "full disk"])
def test_a_disk_that_fails_under_many_writers_loses_nothing_acknowledged(tmp_path, fault):
    env = failing_fsync(tmp_path) if fault == "fsync" else {}
    arguments = [str(tmp_path / "shard"), fault, str(tmp_path / "flag")]
    done = subprocess.run(
        [sys.executable, "-c", FAILING_WRITERS, *arguments],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report["told"]) == 9, "every writer is told, and whoever comes later"
    assert {code for code, _ in report["told"]} == {"log_failed"}
    assert "stopped at record" in report["failure"]
    assert sorted(report["readable"]) == sorted(report["acknowledged"]), "reads go on, of what is durable"

    shard = open_shard(tmp_path / "shard")
    found = {m["id"] for m in shard.memories.list("acme", limit=1000)}
    assert set(report["acknowledged"]) <= found <= set(report["begun"]) and shard.chain.verify() is None
    assert put(shard, "after")()[0]["status"] == "new" and shard.counts()["failure"] is None
    shard.close()
