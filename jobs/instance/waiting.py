"""Waiting for an instance to start: what it waits for, and what of the logs tells why it failed."""

import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from common.errors import NotReady, SharpwaveError

WAITING = "waiting for: "  # how the driver's log says which part is not ready
QUIET_S = 15.0  # after so long the same is said again
# Ray's raylet gives its agents 15 s to come up, and ends itself where they take longer.
LATE_AGENTS = re.compile(
    r"Timed out waiting for file|[Rr]untime [Ee]nv [Aa]gent timed out|because one Ray agent failed"
)
# What is waited for, as the driver names it -> its log below the folder of Ray's logs.
LOGS = {
    "the model": "serve/replica_*EngineReplica*",
    "the embedder": "serve/replica_*EmbedderReplica*",
    "the HTTP application": "serve/replica_*Api*",
    "the HTTP proxy": "serve/proxy_*",
    "Ray": "raylet.*",
}
Say = Callable[[str], None]


class Told:
    """Says on `say` what is waited for, when that changes and every `QUIET_S`."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._started = self._last = time.monotonic()
        self.what = ""

    def waiting(self, what: str) -> None:
        now = time.monotonic()
        if what and (what != self.what or now - self._last >= QUIET_S):
            self.what, self._last = what, now
            self._say(f"{WAITING}{what} ({now - self._started:.0f} s)")


def run(
    command: Sequence[str],
    log: Path,
    told: Told,
    deadline: float,
    ray_runs: Callable[[], bool],
    *,
    cwd: Path,
    env: Mapping[str, str],
    ray_logs: Path | None,
) -> None:
    """Run a driver with its output in `log`, and tell what it says to wait for. Raises `NotReady` with `code`
    `start_failed` if it fails, if Ray ends, or if it has not ended at `deadline` (of `time.monotonic`)."""
    with log.open("wb") as output, log.open(errors="replace") as written:
        driver = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=cwd, env=env
        )
        try:
            while driver.poll() is None:
                told.waiting(_last_told(written) or told.what)
                if not ray_runs():
                    raise start_failure("Ray ended meanwhile", log, waiting="Ray", ray_logs=ray_logs)
                if time.monotonic() > deadline:
                    raise start_failure(
                        "the application did not start in time", log, waiting=told.what, ray_logs=ray_logs
                    )
                time.sleep(0.2)
        finally:
            if driver.poll() is None:
                driver.kill()
                driver.wait()
    if driver.returncode:
        raise start_failure("the application did not start", log)


def _last_told(written: Iterable[str]) -> str:
    """The last part that the lines written since the last call name."""
    told = [line.removeprefix(WAITING).strip() for line in written if line.startswith(WAITING)]
    return told[-1] if told else ""


def agents_were_late(temp_dir: Path) -> bool:
    """Whether Ray's raylet ended itself because its agents took too long, which on a busy machine may pass."""
    return any(
        LATE_AGENTS.search(_read(path)) for path in (temp_dir / "session_latest" / "logs").glob("raylet.*")
    )


def start_failure(
    what: str, log: Path, lines: int = 25, *, waiting: str = "", ray_logs: Path | None = None
) -> NotReady:
    """The last `SharpwaveError` in the log, or else the end of the log of the part that is `waiting`, or else of
    `log`; `ray_logs` is the folder of Ray's own."""
    text = _read(log)
    named = f"{what}, still waiting for {waiting}" if waiting else what
    ours = re.findall(rf"{SharpwaveError.__module__}\.\w+: (.+)", text)
    if ours:
        return NotReady(f"{named}: {ours[-1]}\n  log: {log}", code="start_failed")
    log = _log_of(waiting, ray_logs) or log
    said = [line for line in _read(log).splitlines() if not line.startswith(WAITING)]
    end = "".join(f"\n  {line}" for line in said[-lines:])
    return NotReady(f"{named}; the end of {log}:{end}", code="start_failed")


def _log_of(waiting: str, ray_logs: Path | None) -> Path | None:
    """The newest log of the first part that is waited for."""
    for part, pattern in LOGS.items():
        if ray_logs is not None and waiting.startswith(part):
            found = sorted(ray_logs.glob(pattern), key=lambda path: path.stat().st_mtime)
            return found[-1] if found else None
    return None


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""
