"""Nothing acknowledged is lost: writers, and servers, killed at random points, again and again."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from log_backends import BACKENDS, ROOT, Backend
from redis_helpers import RedisServer

from stores.shard import Shard
from tests.crash.ledger import Findings, Ledger
from tests.crash.writer import DIM

THREADS = 4
LIVES = 10  # of one store; checking reads all of it


@pytest.fixture(scope="module")
def nursery():
    """Forks writers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.crash.writer"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.stdin.close()
    process.wait(timeout=30)


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
    os.kill(pid, signal.SIGKILL)
    while os.path.exists(f"/proc/{pid}"):
        time.sleep(0.002)


def live(nursery, backend, life, rng, ledger, longest_s):
    """One life of a writer and its end; a redis-server may be killed as well, before or with it."""
    pid = begin(nursery, backend, life)
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
    if os.path.exists(f"/proc/{pid}"):
        end(pid)


def kill(nursery, name, folder, cycles, seed, longest_s=0.4):
    """What is found after `cycles` lives, on a new store every few."""
    findings, rng = Findings(), random.Random(seed)
    server = RedisServer(folder / "server") if name == "redis" else None
    try:
        for life in range(cycles):
            if life % LIVES == 0:
                backend = Backend(name, folder / f"store-{life}", server)
                backend.folder.mkdir(parents=True)
                ledger = Ledger(folder / f"store-{life}.ledger")
            live(nursery, backend, f"life{life}", rng, ledger, longest_s)
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
    assert findings.memories > 10 * cycles, "it wrote next to nothing"


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKENDS)
def test_nothing_acknowledged_is_lost_in_three_hundred_kills(nursery, tmp_path, name):
    began = time.monotonic()
    findings = kill(nursery, name, tmp_path, 100, seed=int(time.time()), longest_s=1.0)
    seconds = round(time.monotonic() - began, 1)
    print(f"\n{name}: 100 kills, {seconds} s, {findings}")
    assert findings.clean, findings
