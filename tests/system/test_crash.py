"""Nothing acknowledged is lost: writers, and servers, killed at random points, again and again."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import pytest

from stores.shard.shard import Shard
from tests.support.crash import power
from tests.support.crash.ledger import Findings, Ledger
from tests.support.crash.writer import DIM
from tests.support.log_backends import BACKENDS, ROOT, Backend
from tests.support.redis_server import RedisServer

THREADS = 4
LIVES = 10  # of one store; checking reads all of it


@contextmanager
def forks_writers(**environment):
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.crash.writer"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.stdin.close()
    process.wait(timeout=30)


@pytest.fixture(scope="module")
def nursery():
    with forks_writers() as process:
        yield process


def begin(nursery, backend, life):
    job = {
        "path": str(backend.folder / "log"),
        "config": backend.config(redis_deadline_s=20.0).model_dump_json(),
        "ledger": str(backend.folder.parent / f"{backend.folder.name}.ledger"),
        "life": life,
        "threads": THREADS,
    }
    nursery.stdin.write(json.dumps(job) + "\n")
    nursery.stdin.flush()
    return int(nursery.stdout.readline())


def end(pid):
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    while os.path.exists(f"/proc/{pid}"):
        time.sleep(0.002)


def live(nursery, backend, life, rng, ledger, longest_s):
    """One life of a writer and its end; a redis-server may be killed as well, before it or with it."""
    pid = begin(nursery, backend, life)
    try:
        began = rng.random() < 0.8
        deadline = time.monotonic() + 30
        while began and life not in ledger.lives:  # else it is killed while it opens
            assert time.monotonic() < deadline, "the writer did not begin"
            time.sleep(0.005)
            ledger.read()
        time.sleep(rng.uniform(0.0, longest_s if began else 0.1))
        if backend.server and rng.random() < 0.5:
            backend.server.kill()
            if rng.random() < 0.5:
                end(pid)
            backend.server.start()
            time.sleep(rng.uniform(0.0, 0.2))
    finally:
        end(pid)
    return pid


def kill(nursery, name, folder, cycles, seed, longest_s=0.4, afterwards=None):
    """What is found after `cycles` lives, on a new store every few; `afterwards(pid, folder, rng)` may do
    more harm before it is opened again."""
    findings, rng = Findings(), random.Random(seed)
    server = RedisServer(folder / "server") if name == "redis" else None
    try:
        for life in range(cycles):
            if life % LIVES == 0:
                backend = Backend(name, folder / f"store-{life}", server)
                backend.folder.mkdir(parents=True)
                ledger = Ledger(folder / f"store-{life}.ledger")
            pid = live(nursery, backend, f"life{life}", rng, ledger, longest_s)
            if afterwards:
                afterwards(pid, backend.folder, rng)
            check(backend, ledger, findings)
            if life % LIVES == LIVES - 1 or life == cycles - 1:
                ledger.count(findings)
    finally:
        if server:
            server.kill()
    return findings


def check(backend, ledger, findings):
    config = backend.config(redis_deadline_s=20.0)
    shard = Shard(backend.folder / "log", number=0, dim=DIM, config=config, wait_s=10)
    try:
        ledger.read()
        ledger.check(shard, backend.disk(), findings)
        ledger.retry(shard, findings)
    finally:
        shard.close()


@pytest.mark.parametrize("name, cycles", [("lmdb", 7), ("jsonl", 7), ("redis", 6)])
def test_nothing_acknowledged_is_lost_when_writers_are_killed(nursery, tmp_path, name, cycles):
    findings = kill(nursery, name, tmp_path, cycles, seed=1337)
    assert findings.clean, findings
    assert findings.memories, "nothing was written"


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKENDS)
def test_nothing_acknowledged_is_lost_in_three_hundred_kills(nursery, tmp_path, name):
    began = time.monotonic()
    findings = kill(nursery, name, tmp_path, 100, seed=int(time.time()), longest_s=1.0)
    seconds = round(time.monotonic() - began, 1)
    print(f"\n{name}: 100 kills, {seconds} s, {findings}")
    assert findings.clean, findings


# Power failures: what was not synced may be missing


def without_power(name, folder, cycles, seed, longest_s=0.4):
    """What is found, and how many bytes were lost."""
    lost = []

    def fail(pid, store, rng):
        lost.append(power.fail(folder / f"journal.{pid}", store, rng))
        (folder / f"journal.{pid}").unlink(missing_ok=True)

    watched = folder / "stores"
    watched.mkdir()
    with forks_writers(**power.preload(folder, watched)) as nursery:
        findings = kill(nursery, name, watched, cycles, seed, longest_s, fail)
    return findings, sum(lost)


@pytest.mark.parametrize("name", ["lmdb", "jsonl"])
def test_nothing_acknowledged_is_lost_when_power_fails(tmp_path, name):
    findings, _ = without_power(name, tmp_path, 4, seed=1337)
    assert findings.clean, findings


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lmdb", "jsonl"])
def test_nothing_acknowledged_is_lost_in_many_power_failures(tmp_path, name):
    findings, lost = without_power(name, tmp_path, 50, seed=int(time.time()))
    print(f"\n{name}: 50 power failures, {lost} bytes lost, {findings}")
    assert findings.clean, findings
    assert lost, "there was nothing to lose"
