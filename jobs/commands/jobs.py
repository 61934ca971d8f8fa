"""The commands that run a Ray job on the instance: `score`, `consolidate`, `evaluate`."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from common.config import parse_override
from common.errors import SharpwaveError
from jobs.commands.options import (
    DEFAULT_STORE,
    FAILED,
    OK,
    PARTIAL,
    USAGE,
    ConfigFile,
    Json,
    Namespace,
    Out,
    Settings,
    Store,
    running,
)
from jobs.commands.output import emit, note
from jobs.instance.submit import submit

REPORTS = ("report.json", "summary.json")  # what a job leaves in --out: the whole run, or a matrix


def score(
    namespace: Namespace = "default",
    conversation: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help='file of conversations to score, {"messages": [...]} each [default: the memories\' own questions]',
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="base, base:latest, or base:DIGEST")] = "base",
    config: ConfigFile = None,
    settings: Settings = None,
    out: Out = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Omit each memory once and measure the loss of log-probability of each response: the N x M divergence matrix.

    \b
    sharpwave score --namespace acme
    sharpwave score --conversation talk.json --out runs/talk
    """
    extra = ["--model", model] + (["--conversation", str(conversation.resolve())] if conversation else [])
    _run_job("score", extra, namespace, config, settings, out, store, as_json)


def consolidate(
    namespace: Namespace = "default",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="do everything but publish")] = False,
    config: ConfigFile = None,
    settings: Settings = None,
    out: Out = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Train a LoRA adapter on replayed memories, and publish it if the acceptance gate accepts it.

    \b
    sharpwave consolidate --namespace acme
    sharpwave consolidate --set train.rounds=20 --set gate.min_uplift=0.5
    """
    _run_job(
        "consolidate", ["--dry-run"] if dry_run else [], namespace, config, settings, out, store, as_json
    )


def evaluate(
    namespace: Namespace = "default",
    model: Annotated[str, typer.Option(help="base, base:latest, or base:DIGEST")] = "base:latest",
    config: ConfigFile = None,
    settings: Settings = None,
    out: Out = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Ask questions about the memories with memory off: does the model know them from its weights?

    \b
    sharpwave evaluate --namespace acme
    sharpwave evaluate --model base --out runs/before
    """
    _run_job("evaluate", ["--model", model], namespace, config, settings, out, store, as_json)


def _run_job(
    job: str,
    extra: list[str],
    namespace: str,
    config: Path | None,
    settings: list[str] | None,
    out: Path | None,
    store: Path,
    as_json: bool,
) -> None:
    """Submit the job, follow its log, and print the report's folder. The job runs in another folder (a copy of the
    checkout), so every path is made absolute."""
    instance = running(store)
    folder = (out or Path("runs") / f"{job}-{time.strftime('%Y%m%d-%H%M%S')}").resolve()
    arguments = ["--namespace", namespace, "--out", str(folder), *extra]
    arguments += ["--config", str(config.resolve())] if config else []
    for setting in settings or []:
        parse_override(setting)
        arguments += ["--set", setting]
    code = submit(instance, job, arguments, say=note)
    report = next((folder / name for name in REPORTS if (folder / name).is_file()), None)
    if report is not None:
        emit(json.loads(report.read_text()), as_json=as_json, text=str(folder))
    if code in (OK, USAGE, PARTIAL):
        raise typer.Exit(code)
    failure = f"{job} failed with exit code {code}; its log is above"
    if report is None:
        raise SharpwaveError(failure)
    note(failure)
    raise typer.Exit(FAILED)
