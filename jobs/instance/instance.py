"""A local instance: a Ray head of its own, the shards, and the HTTP application.

    up(config)      start it, and return when it answers
    update(config)  switch it to another configuration without an interruption
    read(store)     its record, or None
    down(store)     stop exactly what `up` started

The record in `<store>/instance.json` is enough to find and stop it. The system picks free ports and every socket is
on the loopback interface, so instances on one machine do not collide. Ray runs any code it is sent, so its ports
require the token in `<store>/ray_token`.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from common.config import ENV_PREFIX, Config, load
from common.errors import Conflict, InvalidInput, NotReady
from common.files import read_json, write_bytes, write_json
from jobs.instance import processes
from jobs.instance.ports import free_port, is_free, url_of
from jobs.instance.source import ROOT, python_path
from jobs.instance.waiting import Told, agents_were_late, start_failure
from jobs.instance.waiting import run as run_told
from serve.access import check_bind

DEADLINE_S = 300.0  # of `up` and `update`; on an idle machine a small model takes half a minute
# Shards, replicas, a scorer and a training worker each reserve a part of a CPU with Ray. On fewer cores they can share
# time; with fewer logical CPUs they would wait for each other's reservation forever.
MIN_LOGICAL_CPUS = 4
LONGEST_TEMP = 24  # Ray's sockets lie 60 characters deeper, and a Unix socket's path ends at 107
DASHBOARD = ("RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS")  # as `ray job` and as `serve status` read it
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instance:
    """The record of an instance. `head` is its Ray head, or None if it runs on an existing cluster."""

    store: str
    config_hash: str
    model: str
    url: str = ""
    ray_address: str = ""
    dashboard: str = ""
    temp_dir: str = ""
    head: processes.Identity | None = None
    started: tuple[processes.Identity, ...] = ()
    ready: bool = False

    @property
    def config_path(self) -> Path:
        """The resolved configuration it runs with."""
        return Path(self.store) / "config.yaml"

    @property
    def token_path(self) -> Path:
        return Path(self.store) / "ray_token"

    def alive(self) -> bool:
        """Whether its Ray head runs; on an existing cluster, whether it answers."""
        return answers(self.url) if self.head is None else processes.find(self.head) is not None

    def ray_environment(self) -> dict[str, str]:
        """Environment variables with which a process reaches this instance's Ray."""
        found = {"RAY_ADDRESS": self.ray_address} | dict.fromkeys(DASHBOARD, self.dashboard)
        if self.head is not None:
            found |= _local_ray(self.token_path)
        return {name: value for name, value in found.items() if value}


def read(store: Path) -> Instance | None:
    path = store / "instance.json"
    if not path.is_file():
        return None
    values = read_json(path)
    head = values.pop("head")
    recorded = tuple((pid, started) for pid, started in values.pop("started"))
    return Instance(head=None if head is None else tuple(head), started=recorded, **values)


def up(config: Config, *, say: Say = lambda message: None, deadline_s: float = DEADLINE_S) -> Instance:
    """Start an instance and return when `/ready` says so.

    Raises `InvalidInput` or `NotFound` before anything is started, `Conflict` (code `already_running`) if the store
    has a running instance, and `NotReady` with the end of the log, and nothing left running, if it fails to start.
    """
    config = _resolved(config)
    store = config.store_dir
    _make(store)
    with locked(store):
        found = read(store)
        if found is not None and found.alive():
            where = found.url or "starting"
            raise Conflict(f"store {str(store)!r} has a running instance ({where})", code="already_running")
        if found is not None:
            say("clearing what a crashed instance left")
            _stop(found)
        instance = Instance(store=str(store), config_hash=config.hash, model=config.model.name)
        deadline = time.monotonic() + deadline_s
        try:
            try:
                return _start(instance, config, say, deadline)
            except NotReady:
                if not _ray_was_late(store):
                    raise
                say("Ray's agents took longer than its 15 s, and it ended; starting it once more")
                _clear(store)
                return _start(instance, config, say, deadline)
        except BaseException:
            _clear(store)
            raise


def _make(store: Path) -> None:
    """Raises `InvalidInput` if the folder cannot be made, or not be written to."""
    try:
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=store):
            pass
    except OSError as error:
        raise InvalidInput(
            f"store.dir = {str(store)!r}: cannot be written to ({error.strerror}); choose another folder, as in "
            "--store ~/memory, or change its permissions",
            param="store.dir",
        ) from error


def _ray_was_late(store: Path) -> bool:
    """Whether the head that was being started ended because its agents took too long."""
    started = read(store)
    if started is None or started.head is None:
        return False
    return agents_were_late(Path(started.temp_dir))


def _clear(store: Path) -> None:
    if (started := read(store)) is not None:
        _stop(started)


def update(config: Config, *, say: Say = lambda message: None, deadline_s: float = DEADLINE_S) -> Instance:
    """Switch the store's running instance to `config`; returns when no replica of the old configuration answers.

    Requests continue: new replicas start before old ones finish their requests and end (`serve.surge_percent`). The
    address and the shards stay. Raises `NotReady` if no instance runs, or if the new replicas do not start: then the
    old ones continue.
    """
    store = config.store_dir
    with locked(store):
        found = read(store)
        if found is None or not found.ready or not found.alive():
            raise NotReady(f"store {str(store)!r} has no running instance; start one with: sharpwave up")
        running = load(found.config_path, env={}).serve
        serve = config.serve.model_copy(update={"host": running.host, "port": running.port})
        config = _resolved(config.model_copy(update={"serve": serve}), port_is_ours=True)
        return _rolled(found, config, say, time.monotonic() + deadline_s)


def _rolled(instance: Instance, config: Config, say: Say, deadline: float) -> Instance:
    former = instance.config_path.read_bytes()
    say(f"rolling over to {config.model.name}")
    _write_config(instance, config)
    try:
        _run_deploy(instance, config, Path(instance.store) / "logs" / "update.log", Told(say), deadline)
    except BaseException:
        write_bytes(instance.config_path, former)
        raise
    return record(instance, config_hash=config.hash, model=config.model.name)


def down(store: Path) -> bool:
    """Stop the instance of `store`; False if there was none. Safe to call again."""
    store = store.expanduser().resolve()
    if not (store / "instance.json").is_file():
        return False
    with locked(store):
        found = read(store)
        if found is None:
            return False
        _stop(found)
        return True


def wait(instance: Instance) -> None:
    """Return when the instance has ended, for any reason."""
    while instance.alive():
        time.sleep(0.5)


def answers(url: str) -> bool:
    return bool(url) and not_ready(url) is None


def not_ready(url: str) -> str | None:
    """What the instance says that it lacks, or why it does not answer; None: it is ready."""
    try:
        answer = httpx.get(f"{url}/ready", timeout=10)
    except httpx.HTTPError as error:
        return f"no answer ({type(error).__name__})"
    if answer.status_code == 200:
        return None
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {answer.status_code}"


def _resolved(config: Config, *, port_is_ours: bool = False) -> Config:
    """Check early what would fail later, and make paths and ports definite."""
    from transformers import AutoConfig  # with torch, seconds of import that the other commands need not wait

    from models.weights.load import check_architecture, dequantised, resolve

    check_bind(config.serve.host, config.serve.api_keys)
    name = resolve(config.model.name) if Path(config.model.name).expanduser().exists() else config.model.name
    source = resolve(name)
    if source.endswith(
        ".gguf"
    ):  # once, and minutes for a large one: not within the time a replica has to start
        source = str(dequantised(Path(source)))
    if Path(source).is_dir():
        check_architecture(AutoConfig.from_pretrained(source))
    port = config.serve.port or free_port(config.serve.host)
    if config.ray.address is None and not port_is_ours and not is_free(config.serve.host, port):
        raise InvalidInput(
            f"serve.port = {port}: another program listens there; choose another, or 0 for a free one",
            param="serve.port",
        )
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"name": name}),
            "store": config.store.model_copy(update={"dir": str(config.store_dir)}),
            "serve": config.serve.model_copy(update={"port": port}),
        }
    )


def _start(instance: Instance, config: Config, say: Say, deadline: float) -> Instance:
    _write_config(instance, config)
    logs = Path(instance.store) / "logs"
    logs.mkdir(exist_ok=True)
    told = Told(say)
    if config.ray.address is None:
        told.waiting("Ray")
        instance = _start_head(instance, config, logs / "ray.log", told, deadline)
    else:
        instance = record(instance, ray_address=config.ray.address)
    say(f"loading {instance.model}")
    deployed = _run_deploy(instance, config, logs / "deploy.log", told, deadline)
    url = url_of(config.serve.host, config.serve.port)
    while (missing := not_ready(url)) is not None:
        told.waiting(f"{url}/ready: {missing}")
        if time.monotonic() > deadline:
            raise start_failure(f"{url}/ready did not turn true in time: {missing}", logs / "deploy.log")
        time.sleep(0.2)
    head = None if instance.head is None else processes.find(instance.head)
    recorded = () if head is None else tuple(processes.identify(process) for process in processes.tree(head))
    return record(instance, url=url, dashboard=deployed["dashboard"], started=recorded, ready=True)


def _write_config(instance: Instance, config: Config) -> None:
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    write_bytes(instance.config_path, text.encode())


def _start_head(instance: Instance, config: Config, log: Path, told: Told, deadline: float) -> Instance:
    write_bytes(instance.token_path, secrets.token_hex(32).encode())
    root = tempfile.gettempdir()
    temp_dir = Path(tempfile.mkdtemp(prefix="sharpwave-", dir=root if len(root) <= LONGEST_TEMP else "/tmp"))
    address_file = temp_dir / "ray_current_cluster"
    command = [
        *(str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--disable-usage-stats"),
        *("--temp-dir", str(temp_dir), "--log-style", "record"),
        *("--num-cpus", str(max(config.ray.num_cpus or os.cpu_count() or 1, MIN_LOGICAL_CPUS))),
        *("--object-store-memory", str(config.ray.object_store_bytes)),
        # 0: the system picks. The client server alone insists on a number; nobody connects to it.
        *("--port", "0", "--dashboard-port", "0", "--dashboard-agent-listen-port", "0"),
        *("--ray-client-server-port", str(free_port("127.0.0.1"))),
        *("--include-dashboard", "true", "--dashboard-host", "127.0.0.1"),
    ]
    with log.open("wb") as output:
        head = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=ROOT,
            env=head_environment(config, instance.token_path),
        )
    instance = record(instance, temp_dir=str(temp_dir), head=processes.identify(psutil.Process(head.pid)))
    while not (address_file.is_file() and (address := address_file.read_text().strip())):
        if head.poll() is not None:
            raise start_failure(f"Ray ended with code {head.returncode} while starting", log)
        if time.monotonic() > deadline:
            raise start_failure("Ray did not start in time", log)
        told.waiting("Ray")
        time.sleep(0.1)
    return record(instance, ray_address=address)


def _run_deploy(instance: Instance, config: Config, log: Path, told: Told, deadline: float) -> dict[str, Any]:
    """Start shards and application from a short-lived driver: a Ray driver's process cannot serve another cluster."""
    result = Path(instance.store) / "deployed.json"
    environment = {**os.environ, **instance.ray_environment()}
    if instance.head is not None:
        environment |= head_environment(config, instance.token_path)
    command = [sys.executable, "-m", "jobs.instance.deploy", str(instance.config_path), str(result)]
    ray_logs = Path(instance.temp_dir) / "session_latest" / "logs" if instance.temp_dir else None
    try:
        run_told(
            command,
            log,
            told,
            deadline,
            partial(_head_runs, instance),
            cwd=ROOT,
            env=environment,
            ray_logs=ray_logs,
        )
        return dict(read_json(result))
    finally:
        result.unlink(missing_ok=True)


def _head_runs(instance: Instance) -> bool:
    return instance.head is None or processes.find(instance.head) is not None


def _stop(instance: Instance) -> None:
    if instance.head is not None:
        processes.stop(instance.head, instance.started)
        shutil.rmtree(instance.temp_dir, ignore_errors=True)
        instance.token_path.unlink(missing_ok=True)
    elif instance.ray_address:
        subprocess.run(
            [sys.executable, "-m", "jobs.instance.deploy", "--remove", str(instance.config_path)],
            cwd=ROOT,
            env={**os.environ, **instance.ray_environment()},
            capture_output=True,
            timeout=60,
            check=False,
        )
    (Path(instance.store) / "instance.json").unlink(missing_ok=True)


def record(instance: Instance, **changes: Any) -> Instance:
    """Change the record on disk. Called before each next step, so that `down` can stop an `up` killed halfway."""
    instance = dataclasses.replace(instance, **changes)
    write_json(Path(instance.store) / "instance.json", dataclasses.asdict(instance))
    return instance


def _local_ray(token_path: Path) -> dict[str, str]:
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        # Despite its name: at 0 Ray uses the loopback address for its node, as it does by default on macOS.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def head_environment(config: Config, token_path: Path) -> dict[str, str]:
    """The environment of the Ray head, and so of every actor and job of this instance.

    What must be the same everywhere (store, model, embedder) is set here, so that a job sees this instance's even
    with a configuration file of its own. Other `SHARPWAVE_` settings are in `config.yaml` already.
    """
    identity = {
        f"{ENV_PREFIX}{section}__{key}": json.dumps(value)
        for section, key, value in [
            ("STORE", "DIR", config.store.dir),
            ("STORE", "SHARDS", config.store.shards),
            ("MODEL", "NAME", config.model.name),
            ("MODEL", "DTYPE", config.model.dtype),
            ("EMBED", "MODEL", config.embed.model),
        ]
    }
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in ("RAY_ADDRESS", *DASHBOARD, "RAY_JOB_ID")
        and not (name.startswith(ENV_PREFIX) and "__" in name)
    }
    return {
        **inherited,
        **identity,
        **_local_ray(token_path),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": python_path(),
        # Several processes share the cores: torch threads that spin while they wait slow each other down fivefold.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        # Ray would wait for detached actors, which never end. What was acknowledged is on disk; nothing needs the wait.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "AUTOSCALER_METRIC_PORT": "0",
        "DASHBOARD_METRIC_PORT": "0",
        "RAY_SERVE_ENABLE_HA_PROXY": "0",  # its port and folder are the same for every instance of a machine
        # How often Serve's controller looks at its replicas: ten times a second cost a laptop 4% of a core, idle.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": os.environ.get("RAY_SERVE_CONTROL_LOOP_INTERVAL_S", "0.5"),
    }


@contextlib.contextmanager
def locked(store: Path) -> Iterator[None]:
    with (store / "instance.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(f"another `up` or `down` is at work on {str(store)!r}", code="busy") from error
        yield
