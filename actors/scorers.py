"""Scorer actors, and the dispatcher that fans the divergence matrix out over them.

A task is a block of rows (memories to leave out) by a block of conversations; its result is keyed by the block, so
a job that was cut off resumes with what is missing. Ray's ActorPool neither replaces a dead actor nor re-queues its
work, hence `fan_out`: one task in flight an actor, a dead actor replaced, a task given up after `ATTEMPTS`
and then reported as failed, never as zeros.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from common.errors import InvalidInput
from models.scoring.leave_one_out import LeaveOneOut, ScoreContext
from models.text.prompt import PromptBuilder
from models.weights.adapters import AdapterStore
from models.weights.load import load_model
from models.weights.versions import ModelVersions

BASELINE, NULL = -1, -2  # rows that leave nothing out: the plain one, and the one through an omission's path
ATTEMPTS = 3
DEADLINE_S = 1800.0


@dataclass(frozen=True)
class ScoreJob:
    """What is scored: memory texts (rows), conversations of messages (columns), on one model version."""

    model: str
    dtype: str
    adapter: str
    adapters_dir: str
    texts: tuple[str, ...]
    conversations: tuple[tuple[dict[str, Any], ...], ...]
    batch_tokens: int
    threads: int


@dataclass(frozen=True, order=True)
class Task:
    """Rows `rows` (memories, `BASELINE`, `NULL`) by conversations `start:stop`."""

    start: int
    stop: int
    rows: tuple[int, ...]

    @property
    def key(self) -> str:
        return f"c{self.start:05d}-r{self.rows[0]:+06d}"


@dataclass(frozen=True)
class TaskResult:
    """`logprobs`: float64 `[rows, responses]` in nats, None where the task failed for the reason in `error`."""

    task: Task
    logprobs: np.ndarray | None
    error: str | None = None


class Scorer:
    """The logic of one actor. Keeps the states of the conversation block it worked on last."""

    def __init__(self, job: ScoreJob) -> None:
        if job.threads:
            torch.set_num_threads(job.threads)
        self._job = job
        self._loaded = load_model(job.model, job.dtype)
        self._weights = ModelVersions(self._loaded, AdapterStore(Path(job.adapters_dir)), 1)
        self._builder = PromptBuilder(self._loaded.tokenizer)
        self._held: tuple[tuple[int, int], LeaveOneOut] | None = None

    def describe(self) -> dict[str, Any]:
        """Digest of the weights, and for each conversation its responses' `entry_index` and token counts."""
        context = self._context(0, len(self._job.conversations))
        self._check_fits(context)
        responses = [
            {"conversation": i, "entry_index": r.entry_index, "tokens": r.stop - r.start}
            for i, transcript in enumerate(context.transcripts)
            for r in transcript.responses
        ]
        return {"digest": self._loaded.digest, "dtype": str(self._loaded.dtype), "responses": responses}

    def run(self, task: Task) -> np.ndarray:
        """log p `[rows, responses]` of the task's conversations."""
        with self._weights.using(self._job.adapter) as model:
            block = (task.start, task.stop)
            if self._held is None or self._held[0] != block:
                context = self._context(*block)
                self._held = (block, LeaveOneOut(model, context, batch_tokens=self._job.batch_tokens))
            return np.stack([self._row(self._held[1], row) for row in task.rows])

    def pid(self) -> int:
        return os.getpid()

    @staticmethod
    def _row(matrix: LeaveOneOut, row: int) -> np.ndarray:
        if row == NULL:
            return matrix.null_row()
        return matrix.row(None if row == BASELINE else row)

    def _context(self, start: int, stop: int) -> ScoreContext:
        return ScoreContext(
            self._builder.head,
            [self._builder.memory(text) for text in self._job.texts],
            [self._builder.transcript(c, memories=True) for c in self._job.conversations[start:stop]],
        )

    def _check_fits(self, context: ScoreContext) -> None:
        memories = len(context.head) + sum(map(len, context.memories))
        longest = memories + max(len(transcript.tail) for transcript in context.transcripts)
        if longest > self._loaded.context_tokens:
            raise InvalidInput(
                f"{len(context.memories)} memories and the longest conversation need {longest} tokens, the model's "
                f"context holds {self._loaded.context_tokens}; score fewer memories at once (kind, conversation)",
                param="namespace",
            )


def tasks_of(memories: int, conversations: int, *, rows: int = 8, columns: int = 64) -> list[Task]:
    """All blocks: the two rows that leave nothing out come with the first memories' block."""
    wanted = [BASELINE, NULL, *range(memories)]
    return [
        Task(start, min(start + columns, conversations), tuple(wanted[i : i + rows]))
        for start in range(0, conversations, columns)
        for i in range(0, len(wanted), rows)
    ]


def start_scorers(job: ScoreJob, count: int, *, num_gpus: float = 0) -> list[Any]:
    """`count` actors for this job; the work is in the reference, shipped once."""
    remote = ray.remote(Scorer).options(num_cpus=1, num_gpus=num_gpus, max_restarts=0)
    reference = ray.put(job)
    return [remote.remote(reference) for _ in range(count)]


def fan_out(job: ScoreJob, actors: Sequence[Any], tasks: Sequence[Task]) -> Iterator[TaskResult]:
    """Yield each task's result as it completes. Actors in `actors` that die are replaced."""
    waiting = list(reversed(tasks))
    attempts = dict.fromkeys(tasks, 0)
    idle = list(actors)
    flying: dict[Any, tuple[Task, Any]] = {}
    while waiting or flying:
        while waiting and idle:
            task, actor = waiting.pop(), idle.pop()
            attempts[task] += 1
            flying[actor.run.remote(task)] = (task, actor)
        ready, _ = ray.wait(list(flying), timeout=DEADLINE_S)
        if not ready:
            raise TimeoutError(f"no scoring task finished within {DEADLINE_S:g} s")
        task, actor = flying.pop(ready[0])
        try:
            yield TaskResult(task, ray.get(ready[0]))
            idle.append(actor)
        except ray.exceptions.RayActorError as error:
            idle += start_scorers(job, 1)
            yield from _again_or_failed(task, error, waiting, attempts)
        except ray.exceptions.RayTaskError as error:
            idle.append(actor)
            yield from _again_or_failed(task, error, waiting, attempts)


def _again_or_failed(
    task: Task, error: Exception, waiting: list[Task], attempts: dict[Task, int]
) -> Iterator[TaskResult]:
    if attempts[task] < ATTEMPTS:
        waiting.append(task)
    else:
        yield TaskResult(task, None, str(error).strip().splitlines()[-1])
