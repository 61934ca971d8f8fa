"""Find and stop exactly the processes that one instance started.

A process is identified by `(pid, start time)`: the system reuses pids, so a pid alone may mean another process.
"""

import os
import time
from collections.abc import Iterable

import psutil

Identity = tuple[int, float]  # pid, start in seconds since the epoch
START_TOLERANCE_S = 2.0  # the start time is derived from the boot time, which clock corrections move a little


def identify(process: psutil.Process) -> Identity:
    return process.pid, process.create_time()


def find(identity: Identity) -> psutil.Process | None:
    """The process, or None if it ended, is a zombie, or its pid belongs to another process now."""
    pid, started = identity
    try:
        process = psutil.Process(pid)
        if abs(process.create_time() - started) > START_TOLERANCE_S:
            return None
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    except psutil.NoSuchProcess:
        return None


def tree(root: psutil.Process) -> list[psutil.Process]:
    """`root`, its descendants, and processes outside the tree in the session that `root` leads."""
    found = {root, *_below(root)}
    if os.getsid(root.pid) == root.pid:
        found |= {process for process in psutil.process_iter() if _session(process.pid) == root.pid}
    return list(found)


def stop(root: Identity, recorded: Iterable[Identity] = (), *, grace_s: float = 30.0) -> int:
    """End the tree under `root` and the `recorded` processes that still run; returns the number of processes.

    `root` gets SIGTERM and ends its own children; after `grace_s` the remaining ones get SIGTERM, then SIGKILL.
    """
    victims = {process for identity in recorded if (process := find(identity)) is not None}
    victims |= {child for process in list(victims) for child in _below(process)}
    head = find(root)
    if head is not None:
        victims |= set(tree(head))
        _signal([head], "terminate")
        _wait([head], grace_s)
    # A child that outlives its head by a moment is ending already; only the others get a signal.
    left = _wait(victims, 3.0)
    _signal(left, "terminate")
    left = _wait(left, 3.0)
    _signal(left, "kill")
    _wait(left, 5.0)
    return len(victims)


def _below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _signal(processes: Iterable[psutil.Process], method: str) -> None:
    for process in processes:
        try:
            getattr(process, method)()  # psutil checks again that the pid was not reused
        except psutil.NoSuchProcess:
            continue


def _wait(processes: Iterable[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Those still running after `timeout_s`. A zombie counts as ended: in a container it may never be reaped."""
    deadline = time.monotonic() + timeout_s
    left = list(processes)
    while (left := [process for process in left if _running(process)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def _running(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
