"""The log in a redis-server: what it asks of the server, and answers that are lost on the way."""

import os
import signal
import threading
import time
import traceback

import pytest
import redis

from common import config
from common.errors import InvalidInput, NotReady
from stores.log.record import Op
from tests.support.log_backends import Backend, append, numbers
from tests.support.redis_server import RedisServer


@pytest.fixture
def start(tmp_path):
    """Starts servers of this test's own."""
    servers = []

    def start(**settings):
        servers.append(RedisServer(tmp_path / f"server-{len(servers)}", **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture
def backend(redis_server, tmp_path):
    return Backend("redis", tmp_path / tmp_path.name, redis_server)


def on(server, tmp_path):
    return Backend("redis", tmp_path / "store", server)


# What the server promises


@pytest.mark.parametrize(
    "setting, value, durability",
    [
        ("appendonly", "no", "always"),
        ("appendonly", "no", "everysec"),
        ("appendfsync", "everysec", "always"),
        ("appendfsync", "no", "everysec"),
        ("no-appendfsync-on-rewrite", "yes", "always"),
        ("maxmemory-policy", "allkeys-lru", "always"),
    ],
)
def test_a_server_that_keeps_less_is_refused(start, tmp_path, setting, value, durability):
    backend = on(start(**{setting: value}), tmp_path)
    with pytest.raises(NotReady, match=f"{setting} {value}.*set {setting} ") as caught:
        backend.open(redis_durability=durability)
    assert caught.value.code == "log_weak"


def test_a_weaker_durability_may_be_asked_for(start, tmp_path):
    log = on(start(appendfsync="everysec"), tmp_path).open(redis_durability="everysec")
    append(log, 1)
    log.close()


def test_a_server_that_came_back_weaker_is_found(start, tmp_path):
    server = start()
    log = on(server, tmp_path).open()
    append(log, 1)
    server.kill()
    server.settings["appendonly"] = "no"
    server.start()
    with pytest.raises(NotReady, match="appendonly no"):
        append(log, 2)
    assert log.failure
    log.close()


def test_a_server_that_lost_its_data_is_found(start, tmp_path):
    server = start()
    log = on(server, tmp_path).open()
    append(log, 1)
    with server.client() as client:
        client.flushall()
    with pytest.raises(NotReady, match="another state"):
        append(log, 2)
    log.close()


SECRET = "pass#wort-4711"


def test_the_password_is_shown_to_nobody_and_config_get_must_be_allowed(start, tmp_path, monkeypatch, capfd):
    server = start(requirepass=f'"{SECRET}"', user=f"worker on >{SECRET} ~* +@all -config")
    backend = on(server, tmp_path)
    told = []
    monkeypatch.setenv("REDIS_SECRET", SECRET)
    monkeypatch.setenv("WRONG_SECRET", SECRET + "x")
    for settings, message in (
        ({}, "set store.redis_password"),
        ({"redis_password": "env:WRONG_SECRET"}, "set store.redis_password"),
        (
            {"redis_password": "env:REDIS_SECRET", "redis_url": server.url.replace("//", "//worker@")},
            "CONFIG",
        ),
    ):
        with pytest.raises(NotReady, match=message) as caught:
            backend.open(**settings)
        told += [*traceback.format_exception(caught.value)]
        assert caught.value.code == "log_forbidden"
    log = backend.open(redis_password="env:REDIS_SECRET")
    append(log, 1)
    told.append(backend.config(redis_password="env:REDIS_SECRET").model_dump_json())
    server.kill()
    with pytest.raises(NotReady) as caught:
        append(log, 2)
    told += [*traceback.format_exception(caught.value), *capfd.readouterr()]
    log.close()
    assert SECRET not in "".join(told)


@pytest.mark.parametrize(
    "url", [f"redis://:{SECRET}@host:1/0", f"redis://host/0?password={SECRET}", "http://h"]
)
def test_a_url_holds_no_password(url):
    with pytest.raises(InvalidInput, match=r"redis_url.*set store\.redis_password") as caught:
        config.load(env={}, overrides={"store.redis_url": url})
    assert SECRET not in caught.value.message


def test_nobody_there(tmp_path):
    with pytest.raises(NotReady, match=r"127\.0\.0\.1:1 did not answer") as caught:
        Backend("redis", tmp_path).open(redis_url="redis://127.0.0.1:1", redis_deadline_s=0.1)
    assert caught.value.code == "log_unreachable"


# Answers that are lost


def silence(server, seconds):
    """The server does not run for a while; what is sent to it meanwhile, it does later."""
    os.kill(server.process.pid, signal.SIGSTOP)
    timer = threading.Timer(seconds, os.kill, (server.process.pid, signal.SIGCONT))
    timer.start()
    return timer


def test_a_batch_whose_answer_is_lost_is_sent_again_and_done_once(backend, redis_server):
    log = backend.open()
    append(log, 1)
    timer = silence(redis_server, 0.8)  # the socket waits for 0.5 s
    append(log, 2)
    timer.join()
    append(log, 3)
    assert numbers(log) == [1, 2, 3] and log.verify() is None
    assert [log.seen(f"op-{i}", "r") for i in (1, 2, 3)] == [1, 2, 3]
    with redis_server.client() as client:
        assert client.hlen(f"{backend.folder.name}:{{log}}:log") == 3
        assert client.hlen(f"{backend.folder.name}:{{log}}:order") == 3
    log.close()


def test_a_batch_of_unknown_fate_stops_the_log_and_is_whole_or_absent(backend, redis_server):
    log = backend.open(redis_deadline_s=0.3)
    append(log, 1)
    timer = silence(redis_server, 1.0)
    with pytest.raises(NotReady, match="did not answer"):
        append(log, 2)
    timer.join()
    with pytest.raises(NotReady, match="stopped at record 1"):
        append(log, 3)
    log.close()
    log = backend.open()
    done = log.seen("op-2", "r")
    assert numbers(log) == ([1, 2] if done else [1]) and log.verify() is None
    if done is None:
        append(log, 2)
    log.close()


def test_a_server_that_is_killed_and_comes_back_is_waited_for(start, tmp_path):
    server = start()
    log = on(server, tmp_path).open(redis_deadline_s=10)
    append(log, 1)
    server.kill()
    timer = threading.Timer(0.3, server.start)
    timer.start()
    append(log, 2)
    timer.join()
    assert numbers(log) == [1, 2] and log.verify() is None
    log.close()


def test_a_server_without_memory_refuses_and_the_log_goes_on(start, tmp_path):
    server = start()
    log = on(server, tmp_path).open()
    append(log, 1)
    with server.client() as client:
        client.config_set("maxmemory", "1")
        with pytest.raises(NotReady, match="maxmemory") as caught:
            append(log, 2, body="x" * 1000)
        assert caught.value.code == "store_full" and log.failure is None
        client.config_set("maxmemory", "0")
    append(log, 2)
    assert numbers(log) == [1, 2]
    log.close()


def test_two_logs_of_one_server_keep_apart(backend, redis_server):
    logs = [backend.open(f"shards/{i:04d}") for i in range(3)]
    for i, log in enumerate(logs):
        for number in range(i + 1):
            append(log, number)
    assert [log.seq for log in logs] == [1, 2, 3]
    with redis_server.client() as client:
        found = {key.decode() for key in client.scan_iter(match=f"{backend.folder.name}:*")}
    assert {key.rsplit(":", 1)[0] for key in found} == {
        f"{backend.folder.name}:{{shards/{i:04d}}}" for i in range(3)
    }
    for log in logs:
        log.close()


# Replicas


def test_replicas_confirm_every_write_and_forget_what_is_erased(start, tmp_path):
    first = start()
    backend = on(first, tmp_path)
    with pytest.raises(NotReady, match="0 of 1 replicas"):
        backend.open(redis_replicas=1, redis_deadline_s=1.5)
    second = start(replicaof=f"127.0.0.1 {first.port}", save='"3600 1"')
    log = backend.open(redis_replicas=1, redis_deadline_s=10)
    append(log, 1, body="a secret of mine")
    assert b"a secret of mine" in first.disk()
    while b"a secret of mine" not in second.disk():  # confirmed means received: WAIT asks for no more
        time.sleep(0.05)
    append(log, 2, op=Op.FORGET, erase=[1])
    assert log.scrub()
    assert b"a secret of mine" not in first.disk() + second.disk()
    second.kill()
    log.close()
    with pytest.raises(NotReady, match="0 of 1 replicas"):
        backend.open(redis_replicas=1, redis_deadline_s=1.5)


def test_a_promoted_replica_goes_on_where_the_server_stopped(start, tmp_path):
    first = start()
    second = start(replicaof=f"127.0.0.1 {first.port}")
    log = on(first, tmp_path).open(redis_replicas=1, redis_deadline_s=10)
    written = [append(log, i) for i in range(1, 20)]
    first.kill()
    log.close()
    with pytest.raises(NotReady, match="it is a replica"):
        on(second, tmp_path).open(redis_deadline_s=3)
    with second.client() as client:
        client.execute_command("REPLICAOF", "NO", "ONE")
    log = on(second, tmp_path).open()
    assert [*log.records()] == written and log.epoch == 2 and log.seen("op-19", "r") == 19
    log.close()


def test_a_scrub_that_the_server_cannot_do_stays_due(start, tmp_path):
    server = start()
    log = on(server, tmp_path).open()
    append(log, 1, body="secret")
    append(log, 2, op=Op.FORGET, erase=[1])
    with server.client() as client, pytest.raises(redis.ConnectionError):
        client.shutdown(nosave=True)
        client.ping()
    server.process.wait()
    assert not log.scrub() and log.scrub_due
    server.start()
    assert log.scrub() and not log.scrub_due and b"secret" not in server.disk()
    log.close()
