"""Compute the divergence matrix on scorer actors, block by block; finished blocks are files, so that it resumes."""

import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.scorers import BASELINE, NULL, ScoreJob, ScorerPool, Task, tasks_of
from common.config import Config
from common.files import write_bytes
from jobs.scoring.conversations import Conversation
from jobs.scoring.matrix import Matrix
from models.weights.adapters import AdapterStore


def score_job(
    config: Config, memories: Sequence[dict[str, Any]], conversations: Sequence[Conversation], model: str
) -> ScoreJob:
    """The input of the scorers. Raises `NotFound` if `model` names no version of the configured model."""
    adapters = config.store_dir / "adapters"
    return ScoreJob(
        model=config.model.name,
        dtype=config.model.dtype,
        adapter=AdapterStore(adapters).require(model, config.model.name),
        adapters_dir=str(adapters),
        texts=tuple(memory["text"] for memory in memories),
        conversations=tuple(conversation.messages for conversation in conversations),
        batch_tokens=config.score.batch_tokens,
        threads=max(1, (os.cpu_count() or 1) // config.score.actors),
        context=config.score.context,
    )


def compute(
    job: ScoreJob,
    config: Config,
    memories: Sequence[dict[str, Any]],
    conversations: Sequence[Conversation],
    blocks: Path,
) -> Matrix:
    """The matrix of `memories` (rows) over the responses in `conversations` (columns).

    Every finished block is written to `blocks`, and read from there if it was computed before for the same memories,
    conversations and weights. A block that failed leaves NaN and an entry in `errors`.
    """
    started = time.perf_counter()
    gpus = config.score.gpus_per_actor
    _notify(idle_gpus_notice(gpus, ray.cluster_resources().get("GPU", 0)))
    with ScorerPool(job, config.score.actors, gpus_per_actor=gpus) as pool:
        described = pool.describe()
        _notify(missing_gpu_notice(gpus, described["device"]))
        folder = blocks / _digest(job, described["digest"])
        values, errors = _run_blocks(pool, job, described["responses"], folder)
    baseline = values[BASELINE]
    index = {memory["id"]: i for i, memory in enumerate(memories)}
    return Matrix(
        memory_ids=[memory["id"] for memory in memories],
        texts=[memory["text"] for memory in memories],
        responses=[
            {
                **response,
                "question": _question(conversations[response["conversation"]]),
                "response": str(
                    conversations[response["conversation"]].messages[response["entry_index"]]["content"]
                ),
            }
            for response in described["responses"]
        ],
        divergence=baseline[None] - np.stack([values[i] for i in range(len(memories))]),
        null=baseline - values[NULL],
        truth=[index.get(conversations[r["conversation"]].memory or "") for r in described["responses"]],
        context=job.context,
        fingerprint=f"{described['digest']}:{job.adapter or 'base'}:{described['dtype']}"
        + ("" if job.context == "text" else f":{job.context}"),
        seconds=time.perf_counter() - started,
        errors=errors,
    )


def _run_blocks(
    pool: ScorerPool, job: ScoreJob, responses: list[dict[str, Any]], blocks: Path
) -> tuple[dict[int, np.ndarray], list[str]]:
    """Log-probabilities by row, each `[responses]` with NaN where a block failed; and the reasons of the failures."""
    memories = len(job.texts)
    values = {row: np.full(len(responses), np.nan) for row in (BASELINE, NULL, *range(memories))}
    columns = np.array([response["conversation"] for response in responses])
    tasks, errors = tasks_of(memories, len(job.conversations)), []
    for task in [task for task in tasks if (blocks / f"{task.key}.npy").is_file()]:
        _insert(values, columns, task, np.load(blocks / f"{task.key}.npy"))
        tasks.remove(task)
    total = len(tasks)
    for done, result in enumerate(pool.run(tasks), 1):
        if result.logprobs is None:
            errors.append(f"{result.task.key}: {result.error}")
        else:
            buffer = io.BytesIO()
            np.save(buffer, result.logprobs)
            write_bytes(blocks / f"{result.task.key}.npy", buffer.getvalue())
            _insert(values, columns, result.task, result.logprobs)
        print(f"scored {done}/{total} blocks, {len(errors)} failed", file=sys.stderr, flush=True)
    return values, errors


def _insert(values: dict[int, np.ndarray], columns: np.ndarray, task: Task, logprobs: np.ndarray) -> None:
    inside = (columns >= task.start) & (columns < task.stop)
    for row, found in zip(task.rows, logprobs, strict=True):
        values[row][inside] = found


def _digest(job: ScoreJob, model_digest: str) -> str:
    """Blocks are reused only for the same memories, conversations and weights."""
    content = json.dumps(
        [model_digest, job.adapter, job.texts, job.conversations, job.dtype, job.context], sort_keys=True
    )
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def _question(conversation: Conversation) -> str:
    return next((str(m["content"]) for m in conversation.messages if m["role"] == "user"), "")


def idle_gpus_notice(gpus_per_actor: float, gpus: float) -> str | None:
    """A notice if the cluster has GPUs that the settings leave unused, else None."""
    if not gpus or gpus_per_actor:
        return None
    return (
        f"the cluster has {gpus:g} GPUs, but score.gpus_per_actor is 0: scoring on CPUs; "
        "to use them: --set score.gpus_per_actor=1"
    )


def missing_gpu_notice(gpus_per_actor: float, device: str) -> str | None:
    """A notice if a scorer holds a GPU for Ray but its model was loaded onto the CPU, else None."""
    if not gpus_per_actor or device != "cpu":
        return None
    return f"score.gpus_per_actor is {gpus_per_actor:g}, but torch finds no GPU there: scoring on CPUs"


def _notify(notice: str | None) -> None:
    if notice is not None:
        print(notice, file=sys.stderr, flush=True)
