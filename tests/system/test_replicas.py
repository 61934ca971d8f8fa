"""Two replicas of the language model behind one address: routing, erasure, an update and a crash under load."""

import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

from common import config
from jobs.instance import instance as instances

pytestmark = pytest.mark.slow

NAMES = [f"Ada{i} Quill" for i in range(12)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    store = tmp_path_factory.mktemp("replicas") / "store"
    given = {"serve.port": 0, "serve.min_replicas": 2, "serve.max_replicas": 2, "ray.num_cpus": 8}
    return config.load(overrides={"store.dir": str(store), **given})


@pytest.fixture(scope="module")
def instance(settings):
    try:
        yield instances.up(settings, deadline_s=400)
    finally:
        instances.down(settings.store_dir)


@pytest.fixture
def taught(http):
    memories = [{"id": f"m{i}", "text": f"{name} lives in Lisbon."} for i, name in enumerate(NAMES)]
    http.post("/v1/memories", json={"namespace": "r", "memories": memories}).raise_for_status()
    until(lambda: not engine(http)["pending_blocks"])
    return http


def until(what, deadline_s=180.0):
    end = time.monotonic() + deadline_s
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)


def engine(http):
    answer = http.get("/ready")
    assert answer.status_code == 200, answer.text
    return answer.json()["engine"]


def ask(http, name, **more):
    body = {
        "messages": [{"role": "user", "content": f"Where does {name} live?"}],
        "max_tokens": 6,
        "memory": {"namespace": "r", "mode": "prefix", "k": 1},
        **more,
    }
    return http.post("/v1/chat/completions", json=body)


class Load:
    """Clients that ask, stream and write until it is left; what did not go well is in `failed`."""

    def __init__(self, url):
        self.failed, self.done = [], 0
        self._url, self._stop = url, threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(4)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number):
        with httpx.Client(base_url=self._url, timeout=180) as http:
            for i in range(number, 100_000):
                if self._stop.is_set():
                    return
                try:
                    self._one(http, i)
                except Exception as error:
                    self.failed.append(f"{type(error).__name__}: {error}")
                self.done += 1

    def _one(self, http, i):
        if i % 3 == 0:
            memory = {"id": f"w{i}", "text": f"Note {i} is here."}
            answer = http.post("/v1/memories", json={"namespace": f"w{i % 2}", "memories": [memory]})
        else:
            answer = ask(http, NAMES[i % len(NAMES)], stream=i % 3 == 2)
        if answer.status_code != 200 or '"error"' in answer.text:
            self.failed.append(f"{answer.status_code}: {answer.text[-300:]}")


def test_requests_for_the_same_memory_go_where_its_block_is(taught):
    def answered():
        return sorted(one["answered"] for one in engine(taught)["replicas"])

    before = answered()
    for _ in range(5):
        assert ask(taught, NAMES[0]).json()["memory"]["fallback"] is None
    after = answered()
    assert sum(after) == sum(before) + 5 and len({*before, *after}) <= 3  # one of the two did all
    for name in NAMES:
        ask(taught, name)
    assert min(answered()) > 0  # and all memories spread over both


def test_an_erasure_reaches_both(taught, settings):
    blocks = Path(settings.store_dir) / "blocks"
    for name in NAMES:
        ask(taught, name)
    files = len([*blocks.rglob("*.safetensors")])
    receipt = taught.delete("/v1/memories/m3", params={"namespace": "r"}).json()
    assert receipt["kv_blocks"] == 1 and len([*blocks.rglob("*.safetensors")]) == files - 1
    for _ in range(4):
        assert "m3" not in ask(taught, NAMES[3]).json()["memory"]["injected"]
    assert len([*blocks.rglob("*.safetensors")]) == files - 1


def test_an_update_rolls_and_no_request_fails(taught, instance, settings):
    serve = settings.serve.model_copy(update={"max_batch": 4, "max_new_tokens": 5})
    with Load(instance.url) as load:
        until(lambda: load.done > 20)
        rolled = instances.update(settings.model_copy(update={"serve": serve}), deadline_s=500)
        after = load.done
        until(lambda: load.done > after + 20)
    assert not load.failed, load.failed[:5]
    assert rolled.url == instance.url and rolled.config_hash != instance.config_hash
    reply = ask(taught, NAMES[0], max_tokens=None, temperature=2.0, seed=1).json()
    assert reply["usage"]["completion_tokens"] <= 5
    assert len(engine(taught)["replicas"]) == 2


def test_a_killed_replica_fails_its_own_requests_only(taught, instance):
    head = psutil.Process(instance.head[0])
    replicas = [p for p in head.children(recursive=True) if "EngineReplica" in " ".join(p.cmdline())]
    assert len(replicas) == 2
    with Load(instance.url) as load:
        until(lambda: load.done > 10)
        replicas[0].kill()
        after = load.done
        until(lambda: load.done > after + 20)
    assert len(load.failed) <= 4, load.failed  # as many as there are clients
    until(lambda: len(engine(taught)["replicas"]) == 2)


def test_replicas_come_with_the_load(taught, instance, settings):
    scaled = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 1.0}
    serve = settings.serve.model_copy(update=scaled)
    instances.update(settings.model_copy(update={"serve": serve}), deadline_s=500)
    until(lambda: len(engine(taught)["replicas"]) == 1)
    with Load(instance.url) as load:
        until(lambda: len(engine(taught)["replicas"]) == 2, deadline_s=400.0)
    assert not load.failed, load.failed[:5]
