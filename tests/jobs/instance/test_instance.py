"""Instances start side by side, stop exactly what they started, and fail without a trace."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from common.config import Config, load
from common.errors import Conflict, InvalidInput, NotFound, NotReady
from common.files import write_json
from jobs.instance import instance as instances
from jobs.instance import processes
from jobs.instance.instance import Instance
from jobs.instance.submit import submit

# A parent with a polite child and one that ignores SIGTERM and left the tree (its own parent ends at once).
FAMILY = """
import os, signal, subprocess, sys, time
child = "import signal, time; {} print(1, flush=True); time.sleep(600)"
polite = subprocess.Popen([sys.executable, "-c", child.format("")], stdout=subprocess.PIPE)
stubborn = child.format("signal.signal(signal.SIGTERM, signal.SIG_IGN);")
orphan = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=subprocess.PIPE);"
orphan += "p.stdout.readline(); print(p.pid, flush=True)"
left = subprocess.run([sys.executable, "-c", orphan, stubborn], stdout=subprocess.PIPE, text=True).stdout
polite.stdout.readline()
print(polite.pid, left.strip(), flush=True)
time.sleep(600)
"""


def overrides(store: Path, **values: Any) -> Config:
    dotted = {name.replace("__", "."): value for name, value in values.items()}
    return load(env={}, overrides={"store.dir": str(store), "serve.port": 0, **dotted})


@pytest.fixture
def family() -> Iterator[tuple[int, int, int]]:
    """Pids of a session leader, its child, and an orphan of its session."""
    leader = subprocess.Popen(
        [sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert leader.stdout is not None
    polite, stubborn = map(int, leader.stdout.readline().split())
    yield leader.pid, polite, stubborn
    for pid in (leader.pid, polite, stubborn):
        if _alive(pid):
            os.kill(pid, signal.SIGKILL)
    leader.wait()
    leader.stdout.close()


def _alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_stop_ends_the_whole_session_and_nobody_else(family: tuple[int, int, int]) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        assert processes.stop(processes.identify(psutil.Process(family[0])), grace_s=5) == 3
        assert not any(_alive(pid) for pid in family)
        assert _alive(bystander.pid)
    finally:
        bystander.kill()
        bystander.wait()


def test_stop_ends_what_a_killed_head_left(family: tuple[int, int, int]) -> None:
    head, *others = [processes.identify(psutil.Process(pid)) for pid in family]
    os.kill(family[0], signal.SIGKILL)
    assert processes.stop(head, others, grace_s=1) >= 2
    assert not any(_alive(pid) for pid in family)


def test_a_pid_that_now_names_another_process_is_left_alone(tmp_path: Path) -> None:
    reused = (os.getpid(), psutil.Process().create_time() - 3600)
    assert processes.find(reused) is None
    _recorded(tmp_path, head=reused, started=[reused])
    assert instances.read(tmp_path).alive() is False  # type: ignore[union-attr]
    assert instances.down(tmp_path) is True  # only the record goes; this very process goes on
    assert instances.down(tmp_path) is False


def _recorded(store: Path, **values: Any) -> None:
    fields = {"store": str(store), "config_hash": "", "model": "", "temp_dir": str(store / "ray")}
    write_json(store / "instance.json", fields | values)


def test_the_record_round_trips(tmp_path: Path) -> None:
    made = Instance(
        store=str(tmp_path), config_hash="c", model="m", head=(1, 2.5), started=((3, 4.0),), ready=True
    )
    assert instances.record(made) == instances.read(tmp_path)
    assert instances.read(tmp_path / "absent") is None


def test_what_must_fail_fails_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances.subprocess, "Popen", None)  # starting anything would be a TypeError
    with pytest.raises(InvalidInput, match=r"open to other machines"):
        instances.up(overrides(tmp_path, serve__host="0.0.0.0"))
    with pytest.raises(NotFound, match=r"'no-such-model'.*smollm2-135m"):
        instances.up(overrides(tmp_path, model__name="no-such-model"))
    with pytest.raises(NotFound, match=r"no such \.gguf file"):
        instances.up(overrides(tmp_path, model__name=str(tmp_path / "absent.gguf")))
    (tmp_path / "gpt2").mkdir()
    write_json(tmp_path / "gpt2" / "config.json", {"model_type": "gpt2"})
    with pytest.raises(InvalidInput, match=r"'gpt2' is not supported.*llama"):
        instances.up(overrides(tmp_path / "store", model__name=str(tmp_path / "gpt2")))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidInput, match=f"serve.port = {port}"):
            instances.up(overrides(tmp_path, serve__port=port))
    assert not (tmp_path / "store").exists() and not (tmp_path / "instance.json").exists()


def test_a_second_up_at_the_same_time_is_refused(tmp_path: Path) -> None:
    with instances.locked(tmp_path), pytest.raises(Conflict, match="at work"):
        instances.up(overrides(tmp_path))


def test_the_head_gets_this_instances_identity_and_not_the_callers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARPWAVE_STORE__DIR", "/somewhere/else")
    monkeypatch.setenv("SHARPWAVE_TRAIN__LR", "7")
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    config = overrides(tmp_path, store__shards=3)
    environment = instances.head_environment(config, tmp_path / "token")
    assert "RAY_ADDRESS" not in environment and "SHARPWAVE_TRAIN__LR" not in environment
    seen = load(env=environment)
    assert (seen.store.dir, seen.store.shards) == (str(tmp_path), 3)


DASHBOARD = "import ray; print('http://' + ray.init(logging_level=40).dashboard_url)"


@pytest.mark.slow
def test_two_instances_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray heads without the application: start two, run a job on one, lose one to a failed start, stop the other."""
    monkeypatch.setattr(instances, "not_ready", lambda url: None)

    def only_ray(instance: Instance, config: Config, *_: object) -> dict[str, Any]:
        environment = {**os.environ, **instance.ray_environment()}
        command = [sys.executable, "-c", DASHBOARD]
        out = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=True
        )
        return {"dashboard": out.stdout.split()[-1]}

    monkeypatch.setattr(instances, "_run_deploy", only_ray)
    first = instances.up(overrides(tmp_path / "first"))
    pids = [pid for pid, _ in first.started]
    try:
        assert len(pids) > 5 and all(_alive(pid) for pid in pids)
        assert all(_loopback(pid) for pid in pids)
        with pytest.raises(Conflict, match="running instance") as caught:
            instances.up(overrides(tmp_path / "first"))
        assert caught.value.code == "already_running"

        said: list[str] = []
        assert submit(first, "reference", ["--help"], say=said.append) == 0
        assert submit(first, "no_such_job", [], say=said.append) == 1
        assert any("No module named jobs.no_such_job" in line for line in said)

        second_head: list[Instance] = []

        def failing(instance: Instance, *rest: Any) -> dict[str, Any]:
            assert only_ray(instance, *rest)["dashboard"] != first.dashboard
            second_head.append(instance)
            raise NotReady("as if the model did not load")

        monkeypatch.setattr(instances, "_run_deploy", failing)
        with pytest.raises(NotReady, match="did not load"):
            instances.up(overrides(tmp_path / "second"))
        assert processes.find(second_head[0].head) is None  # type: ignore[arg-type]
        assert not Path(second_head[0].temp_dir).exists()
        assert instances.read(tmp_path / "second") is None
        assert all(_alive(pid) for pid in pids)
    finally:
        assert instances.down(tmp_path / "first") is True
    assert not any(_alive(pid) for pid in pids)
    assert not Path(first.temp_dir).exists()
    assert not first.token_path.exists()
    assert instances.down(tmp_path / "first") is False


def _loopback(pid: int) -> bool:
    listening = [c.laddr.ip for c in psutil.Process(pid).net_connections() if c.status == psutil.CONN_LISTEN]
    return {ip.removeprefix("::ffff:") for ip in listening} <= {"127.0.0.1"}


def test_what_ray_says_while_it_fails_to_start_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "bin" / "ray"
    broken.parent.mkdir()
    broken.write_text(
        textwrap.dedent("""\
        #!/bin/sh
        echo "no space left for the object store"
        exit 3
        """)
    )
    broken.chmod(0o755)
    monkeypatch.setattr(instances.sys, "executable", str(broken.parent / "python"))
    with pytest.raises(NotReady, match=r"code 3 while starting[\s\S]*no space left"):
        instances.up(overrides(tmp_path / "store"))
    assert instances.read(tmp_path / "store") is None


def test_our_own_error_is_found_in_a_long_log(tmp_path: Path) -> None:
    log = tmp_path / "deploy.log"
    noise = "(ProxyActor pid=1) INFO proxy\n" * 50
    log.write_text(
        f"Traceback ...\n(Replica pid=7) common.errors.StoreCorrupt: shard 0: bad CRC at seq 9\n{noise}"
    )
    assert "did not start: shard 0: bad CRC at seq 9" in str(instances.start_failure("did not start", log))


def test_the_environment_for_ray_job_submit_names_the_token(tmp_path: Path) -> None:
    local = Instance(
        store=str(tmp_path), config_hash="", model="", head=(1, 0.0), dashboard="http://127.0.0.1:1"
    )
    told = local.ray_environment()
    assert told["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "ray_token")
    assert told["RAY_API_SERVER_ADDRESS"] == told["RAY_DASHBOARD_ADDRESS"] == "http://127.0.0.1:1"
    attached = Instance(store=str(tmp_path), config_hash="", model="", ray_address="auto")
    assert attached.ray_environment() == {"RAY_ADDRESS": "auto"}
    assert json.dumps(local.ray_environment())
