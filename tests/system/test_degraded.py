"""What an instance does while a part of it is slow or dead."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

QUESTION = [{"role": "user", "content": "Where does Ada Quill live?"}]


@pytest.fixture
def taught(http):
    """A namespace with memories on both shards."""
    memories = [{"id": f"m{i}", "text": f"Note {i}: Ada Quill lives in Lisbon."} for i in range(6)]
    http.post("/v1/memories", json={"namespace": "degraded", "memories": memories}).raise_for_status()
    return http


def shards(instance):
    """The processes of its shards."""
    head = psutil.Process(instance.head[0])
    return [one for one in head.children(recursive=True) if "StoreShard" in " ".join(one.cmdline())]


def chat(http):
    body = {
        "messages": QUESTION,
        "max_tokens": 4,
        "memory": {"namespace": "degraded", "mode": "text", "k": 1},
    }
    return http.post("/v1/chat/completions", json=body)


def until(what, deadline_s=60.0):
    end = time.monotonic() + deadline_s
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
def test_a_slow_shard_means_answers_without_memory_that_say_so(instance, taught):
    assert chat(taught).json()["memory"]["injected"]
    stopped = shards(instance)
    assert len(stopped) == 2
    for process in stopped:
        process.send_signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(4) as pool:
            ready = pool.submit(taught.get, "/ready")
            replies = [reply.json() for reply in pool.map(lambda _: chat(taught), range(3))]
        for reply in replies:
            assert reply["memory"]["fallback"].startswith("off: ") and not reply["memory"]["injected"]
            assert reply["choices"][0]["message"]["content"]
        assert ready.result().status_code == 503
        assert ready.result().json()["error"]["type"] == "not_ready_error"
        assert taught.get("/health").status_code == 200
    finally:
        for process in stopped:
            process.send_signal(signal.SIGCONT)
    until(lambda: taught.get("/ready").status_code == 200)
    assert chat(taught).json()["memory"]["fallback"] is None


def test_a_killed_shard_comes_back_by_itself(instance, taught):
    for process in shards(instance):
        os.kill(process.pid, signal.SIGKILL)
    answer = chat(taught)  # with memories, if a shard was quick enough
    assert answer.status_code == 200
    memory = answer.json()["memory"]
    assert bool(memory["injected"]) != (memory["fallback"] or "").startswith("off: ")
    until(lambda: taught.get("/ready").status_code == 200)
    assert chat(taught).json()["memory"]["injected"]
