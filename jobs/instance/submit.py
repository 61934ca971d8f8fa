"""Run one of our jobs on an instance, as `ray job submit --working-dir . -- python -m jobs.NAME ...` does."""

import asyncio
import logging
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.config import ENV_PREFIX
from common.errors import NotReady
from jobs.instance.instance import Instance
from jobs.instance.source import ROOT, checkout

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

# Folders of a checkout that no job needs. Ray leaves out what `.gitignore` names by itself.
EXCLUDES = [
    "/.git/",
    "/.venv/",
    "/.cache/",
    "/.sharpwave/",
    "/runs/",
    "/data/",
    "/docs/",
    "/tests/",
    "/benchmarks/",
]
IDENTITY = ("STORE__", "MODEL__", "EMBED__")  # sections that the instance decides, see `head_environment`


def submit(instance: Instance, job: str, arguments: Sequence[str], *, say: Callable[[str], None]) -> int:
    """Run `jobs.<job>` on the instance, pass its log lines to `say`, and return its exit code. An interrupt stops the
    job. Raises `NotReady` if the instance has no job server or it does not answer."""
    from ray.job_submission import JobSubmissionClient  # seconds of import that other commands need not wait

    if not instance.dashboard:
        raise NotReady(f"the instance of {instance.store} has no job server; use `ray job submit`")
    for chatty in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk", "ray._private"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    headers = {}
    if instance.token_path.is_file():
        headers["Authorization"] = f"Bearer {instance.token_path.read_text().strip()}"
    try:
        client = JobSubmissionClient(instance.dashboard, headers=headers)
    except (ConnectionError, RuntimeError) as error:
        raise NotReady(f"no answer from the job server at {instance.dashboard}: {error}") from error
    # `-m`: a script's own folder comes first on its path, and libraries that import the package `evaluate` would get
    # `jobs/evaluate.py`.
    job_id = client.submit_job(
        entrypoint=shlex.join(["python", "-m", f"jobs.{job}", *arguments]), runtime_env=runtime_environment()
    )
    say(f"job {job_id}")
    try:
        asyncio.run(_tail(client, job_id, say))
    except KeyboardInterrupt:
        client.stop_job(job_id)
        say(f"stopping job {job_id}")
        raise
    info = client.get_job_info(job_id)
    if info.driver_exit_code is None:
        say(f"job {job_id} {info.status}: {info.message}")
        return 1
    return int(info.driver_exit_code)


async def _tail(client: "JobSubmissionClient", job_id: str, say: Callable[[str], None]) -> None:
    pending = ""
    async for text in client.tail_job_logs(job_id):
        *lines, pending = (pending + text).split("\n")
        for line in lines:
            say(line)
    if pending:
        say(pending)


def runtime_environment(root: Path = ROOT) -> dict[str, object]:
    """Ray's `runtime_env` of a job: the caller's settings, and the working tree if the code at `root` is a checkout.

    Installed code is not sent: every node of the instance has it (its head gets our PYTHONPATH).
    """
    settings = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(ENV_PREFIX)
        and "__" in name
        and not name.removeprefix(ENV_PREFIX).startswith(IDENTITY)
    }
    environment: dict[str, object] = {"env_vars": settings}
    if (tree := checkout(root)) is not None:
        environment |= {"working_dir": str(tree), "excludes": EXCLUDES}
    return environment
