"""Scorer actors, and the pool that distributes the blocks of the divergence matrix over them.

A task is a block of rows (memories to leave out) by a block of conversations. Its result is stored under the block's
key, so that an interrupted job resumes with the missing blocks. Ray's ActorPool neither replaces a dead actor nor
re-queues its work, hence `ScorerPool`: one task in flight per actor, dead actors are replaced, and a task that failed
`ATTEMPTS` times is reported as failed, never as zeros.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import ray
import torch

from common.errors import InvalidInput, NotReady
from models.kv import prefix as kv
from models.scoring.hidden_blocks import HiddenBlocks, prefix_of
from models.scoring.leave_one_out import LeaveOneOut, ScoreContext
from models.text.prompt import PromptBuilder
from models.weights.adapters import AdapterStore
from models.weights.load import load_model
from models.weights.versions import ModelVersions

BASELINE, NULL = -1, -2  # rows that omit nothing: the plain one, and one computed on the path of an omission
ATTEMPTS = 3
DEADLINE_S = 1800.0
NOTICE_S = 20.0  # a scorer that is not up after this long is reported as waiting for resources


@dataclass(frozen=True)
class ScoreJob:
    """The input of one matrix: memory texts (rows), conversations of messages (columns), one model version. `context`:
    the memories are `text` before the conversations, or a `prefix` of independent KV blocks."""

    model: str
    dtype: str
    adapter: str
    adapters_dir: str
    texts: tuple[str, ...]
    conversations: tuple[tuple[dict[str, Any], ...], ...]
    batch_tokens: int
    threads: int
    context: str = "text"


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
    """`logprobs`: float64 `[rows, responses]` in nats, or None if the task failed; `error` is then the reason."""

    task: Task
    logprobs: np.ndarray | None
    error: str | None = None


class Scorer:
    """The work of one actor. Keeps the model states of the last block of conversations.

    The model is on the GPU that Ray assigned to the actor, if any: Ray limits the visible devices to it.
    """

    def __init__(self, job: ScoreJob) -> None:
        if job.threads:
            torch.set_num_threads(job.threads)
        self._job = job
        self._loaded = load_model(job.model, job.dtype)
        self._weights = ModelVersions(self._loaded, AdapterStore(Path(job.adapters_dir)), 1)
        self._builder = PromptBuilder(self._loaded.tokenizer)
        self._held: tuple[tuple[int, int], LeaveOneOut | HiddenBlocks] | None = None
        self._prefix: kv.Prefix | None = None

    def describe(self) -> dict[str, Any]:
        """`{digest, dtype, device, responses}`: what was loaded and where, and `{conversation, entry_index, tokens}`
        for each response. Raises `InvalidInput` if memories and a conversation exceed the model's context."""
        context = self._context(0, len(self._job.conversations))
        self._check_fits(context)
        responses = [
            {"conversation": i, "entry_index": r.entry_index, "tokens": r.stop - r.start}
            for i, transcript in enumerate(context.transcripts)
            for r in transcript.responses
        ]
        return {
            "digest": self._loaded.digest,
            "dtype": str(self._loaded.dtype),
            "device": self._loaded.device.type,
            "responses": responses,
        }

    def run(self, task: Task) -> np.ndarray:
        """Log-probabilities in nats, float64 `[rows, responses]`, of the responses in the task's conversations."""
        with self._weights.using(self._job.adapter) as model:
            block = (task.start, task.stop)
            if self._held is None or self._held[0] != block:
                self._held = (block, self._matrix(model, self._context(*block)))
            matrix = self._held[1]
            if isinstance(matrix, HiddenBlocks):
                omissions = [(row,) if row >= 0 else () for row in task.rows]
                return matrix.rows(model, omissions, batch_tokens=self._job.batch_tokens)
            return np.stack([self._row(matrix, row) for row in task.rows])

    def pid(self) -> int:
        return os.getpid()

    def _matrix(self, model: Any, context: ScoreContext) -> LeaveOneOut | HiddenBlocks:
        if self._job.context == "text":
            return LeaveOneOut(model, context, batch_tokens=self._job.batch_tokens)
        if self._prefix is None:
            self._prefix = prefix_of(model, context.head, context.memories)
        return HiddenBlocks(self._prefix, context.transcripts)

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
    """All blocks of the matrix; `BASELINE` and `NULL` belong to the block of the first memories."""
    wanted = [BASELINE, NULL, *range(memories)]
    return [
        Task(start, min(start + columns, conversations), tuple(wanted[i : i + rows]))
        for start in range(0, conversations, columns)
        for i in range(0, len(wanted), rows)
    ]


class ScorerPool:
    """Context manager that owns `count` scorer actors for one job, including replacements of dead ones.

    Leaving the block ends every actor, also after an exception. Each actor holds one CPU and `gpus_per_actor` GPUs
    (a fraction shares one GPU). Raises `InvalidInput` on creation if the nodes are too small for the actors.
    """

    def __init__(self, job: ScoreJob, count: int, *, gpus_per_actor: float = 0.0) -> None:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        check_capacity(nodes, count, gpus_per_actor)
        self._job = job
        self._count = count
        self._gpus = gpus_per_actor
        self._actors: list[Any] = []

    def __enter__(self) -> Self:
        self._reference = ray.put(self._job)  # shipped once
        for _ in range(self._count):
            self._start()
        return self

    def __exit__(self, *details: object) -> None:
        while self._actors:
            ray.kill(self._actors.pop())

    @property
    def actors(self) -> tuple[Any, ...]:
        """Handles of the actors that belong to the pool now."""
        return tuple(self._actors)

    def describe(self) -> dict[str, Any]:
        """See `Scorer.describe`. Waits until one actor runs; raises `NotReady` after `DEADLINE_S`."""
        answer = self._actors[0].describe.remote()
        if not ray.wait([answer], timeout=NOTICE_S)[0]:
            print(f"waiting for a scorer to start: {self._needs()}", file=sys.stderr, flush=True)
        try:
            found: dict[str, Any] = ray.get(answer, timeout=DEADLINE_S)
        except ray.exceptions.GetTimeoutError as error:
            raise NotReady(f"no scorer started within {DEADLINE_S:g} s: {self._needs()}") from error
        return found

    def run(self, tasks: Sequence[Task]) -> Iterator[TaskResult]:
        """Yield the result of each task when it is complete, in any order."""
        waiting = list(reversed(tasks))
        attempts = dict.fromkeys(tasks, 0)
        idle = list(self._actors)
        running: dict[Any, tuple[Task, Any]] = {}
        while waiting or running:
            while waiting and idle:
                task, actor = waiting.pop(), idle.pop()
                attempts[task] += 1
                running[actor.run.remote(task)] = (task, actor)
            ready, _ = ray.wait(list(running), timeout=DEADLINE_S)
            if not ready:
                raise TimeoutError(f"no scoring task finished within {DEADLINE_S:g} s")
            task, actor = running.pop(ready[0])
            try:
                yield TaskResult(task, ray.get(ready[0]))
                idle.append(actor)
            except ray.exceptions.RayActorError as error:
                idle.append(self._replace(actor))
                yield from _again_or_failed(task, error, waiting, attempts)
            except ray.exceptions.RayTaskError as error:
                idle.append(actor)
                yield from _again_or_failed(task, error, waiting, attempts)

    def _start(self) -> Any:
        remote = ray.remote(Scorer).options(num_cpus=1, num_gpus=self._gpus, max_restarts=0)
        self._actors.append(remote.remote(self._reference))
        return self._actors[-1]

    def _replace(self, dead: Any) -> Any:
        self._actors.remove(dead)
        ray.kill(dead)  # it may only have lost its connection
        return self._start()

    def _needs(self) -> str:
        free = ray.available_resources()
        return (
            f"each of {self._count} needs 1 CPU and {self._gpus:g} GPUs; "
            f"free now: {free.get('CPU', 0):g} CPUs, {free.get('GPU', 0):g} GPUs"
        )


def check_capacity(nodes: Sequence[Mapping[str, float]], count: int, gpus_per_actor: float) -> None:
    """Raises `InvalidInput` if nodes of these total resources cannot hold `count` actors of one CPU and
    `gpus_per_actor` GPUs at the same time: Ray would wait for such a node without end."""
    sizes = [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes]
    room = sum(_actors_on(cpus, gpus, gpus_per_actor) for cpus, gpus in sizes)
    if room >= count:
        return
    listed = ", ".join(f"{cpus:g} CPUs with {gpus:g} GPUs" for cpus, gpus in sizes) or "none"
    raise InvalidInput(
        f"score.actors = {count} with score.gpus_per_actor = {gpus_per_actor:g}: the cluster has room for {room} such "
        f"actors (1 CPU each); its nodes: {listed}; lower one of the two settings",
        param="score.gpus_per_actor" if gpus_per_actor else "score.actors",
    )


def _actors_on(cpus: float, gpus: float, gpus_per_actor: float) -> int:
    """How many actors a node can hold. A fraction of a GPU comes from one device, never from two."""
    if gpus_per_actor == 0:
        return int(cpus)
    if gpus_per_actor < 1:
        return min(int(cpus), int(gpus) * int(1 / gpus_per_actor + 1e-9))
    return min(int(cpus), int(gpus // gpus_per_actor))


def _again_or_failed(
    task: Task, error: Exception, waiting: list[Task], attempts: dict[Task, int]
) -> Iterator[TaskResult]:
    if attempts[task] < ATTEMPTS:
        waiting.append(task)
    else:
        yield TaskResult(task, None, str(error).strip().splitlines()[-1])
