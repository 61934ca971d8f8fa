"""The divergence matrix of a namespace's memories over conversations, as a Ray job.

    ray job submit --working-dir . -- python jobs/score.py --namespace demo --conversation talk.jsonl

Writes matrix.parquet, summary.json and heatmap.png into --out, and each memory's measured divergence into its
salience. A job that was cut off resumes where --out is given again: every finished block lies in --out/blocks.
"""

import argparse
import asyncio
import hashlib
import io
import json
import os
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

if not __package__:  # run as a script: this folder's names must not stand in for libraries of the same name
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from actors.scorers import BASELINE, NULL, ScoreJob, Task, fan_out, start_scorers, tasks_of
from actors.store.sharded_store import ShardedStore
from common.config import Config
from common.errors import InvalidInput, SharpwaveError
from common.files import write_bytes
from jobs.arguments import add_common_arguments, join, run_folder
from jobs.scoring import conversations as talks
from jobs.scoring.matrix import Matrix
from models.weights.adapters import AdapterStore


def run(
    config: Config,
    namespace: str,
    conversations: Sequence[talks.Conversation] | None,
    out: Path,
    model: str = "base",
) -> Matrix:
    """Read memories, fan out, join, save, update salience. `conversations` None takes the memories' own questions."""
    store = ShardedStore(config)
    memories = asyncio.run(all_memories(store, namespace))
    if not memories:
        raise InvalidInput(f"namespace {namespace!r} holds no memories to score", param="namespace")
    conversations = talks.from_cues(memories) if conversations is None else conversations
    if not conversations:
        raise InvalidInput(
            "the memories bring no questions of their own; give --conversation", param="conversation"
        )
    job = _job(config, memories, conversations, model)
    matrix = compute(job, config, memories, conversations, out / "blocks")
    matrix.save(out)
    weights = matrix.weights()
    asyncio.run(store.score(namespace, weights, op_id=uuid.uuid4().hex, now=time.time()))
    return matrix


def compute(
    job: ScoreJob,
    config: Config,
    memories: Sequence[dict[str, Any]],
    conversations: Sequence[talks.Conversation],
    blocks: Path,
) -> Matrix:
    """The matrix itself. Finished blocks are kept in `blocks` and taken from there."""
    started = time.perf_counter()
    actors = start_scorers(job, config.score.actors)
    described = ray.get(actors[0].describe.remote())
    blocks = blocks / _digest(job, described["digest"])
    values, errors = _run_blocks(job, actors, described["responses"], len(memories), blocks)
    for actor in actors:
        ray.kill(actor)
    baseline = values[BASELINE]
    index = {memory["id"]: i for i, memory in enumerate(memories)}
    return Matrix(
        memory_ids=[memory["id"] for memory in memories],
        texts=[memory["text"] for memory in memories],
        responses=[
            {**response, "question": _question(conversations[response["conversation"]])}
            for response in described["responses"]
        ],
        divergence=baseline[None] - np.stack([values[i] for i in range(len(memories))]),
        null=baseline - values[NULL],
        truth=[index.get(conversations[r["conversation"]].memory or "") for r in described["responses"]],
        fingerprint=f"{described['digest']}:{job.adapter or 'base'}:{described['dtype']}",
        seconds=time.perf_counter() - started,
        errors=errors,
    )


async def all_memories(store: ShardedStore, namespace: str) -> list[dict[str, Any]]:
    """Every memory of a namespace, in order of time."""
    found: list[dict[str, Any]] = []
    cursor = None
    while True:
        page = await store.list(namespace, limit=1000, after=cursor)
        found += page["memories"]
        cursor = page["next"]
        if cursor is None:
            return found


def _run_blocks(
    job: ScoreJob, actors: list[Any], responses: list[dict[str, Any]], memories: int, blocks: Path
) -> tuple[dict[int, np.ndarray], list[str]]:
    """log p by row, each `[M]` with NaN where its block failed, and what the failures said."""
    values = {row: np.full(len(responses), np.nan) for row in (BASELINE, NULL, *range(memories))}
    columns = np.array([response["conversation"] for response in responses])
    tasks, errors = tasks_of(memories, len(job.conversations)), []
    for task in [task for task in tasks if (blocks / f"{task.key}.npy").is_file()]:
        _place(values, columns, task, np.load(blocks / f"{task.key}.npy"))
        tasks.remove(task)
    total = len(tasks)
    for done, result in enumerate(fan_out(job, actors, tasks), 1):
        if result.logprobs is None:
            errors.append(f"{result.task.key}: {result.error}")
        else:
            buffer = io.BytesIO()
            np.save(buffer, result.logprobs)
            write_bytes(blocks / f"{result.task.key}.npy", buffer.getvalue())
            _place(values, columns, result.task, result.logprobs)
        print(f"scored {done}/{total} blocks, {len(errors)} failed", file=sys.stderr, flush=True)
    return values, errors


def _place(values: dict[int, np.ndarray], columns: np.ndarray, task: Task, logprobs: np.ndarray) -> None:
    inside = (columns >= task.start) & (columns < task.stop)
    for row, found in zip(task.rows, logprobs, strict=True):
        values[row][inside] = found


def _job(
    config: Config,
    memories: Sequence[dict[str, Any]],
    conversations: Sequence[talks.Conversation],
    model: str,
) -> ScoreJob:
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
    )


def _digest(job: ScoreJob, model_digest: str) -> str:
    """Blocks are reused only for the same memories, conversations and weights."""
    content = json.dumps([model_digest, job.adapter, job.texts, job.conversations, job.dtype], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def _question(conversation: talks.Conversation) -> str:
    return next((str(m["content"]) for m in conversation.messages if m["role"] == "user"), "")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--conversation", type=Path, help="JSON lines of {messages}; default: the memories' cues"
    )
    parser.add_argument("--model", default="base")
    add_common_arguments(parser)
    arguments = parser.parse_args(argv)
    try:
        conversations = talks.read(arguments.conversation) if arguments.conversation else None
        config, _ = join(arguments)
        out = run_folder(config, arguments, "score")
        matrix = run(config, arguments.namespace, conversations, out, arguments.model)
    except SharpwaveError as error:
        print(f"score: {error.message}", file=sys.stderr)
        return 2 if error.status == 400 else 1
    print(json.dumps({**matrix.summary(), "out": str(out)}))
    return 3 if matrix.errors else 0


if __name__ == "__main__":
    sys.exit(main())
