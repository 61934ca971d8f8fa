"""One consolidation's training: records in, adapter folder out. Runs inside a Ray job; Ray is initialised."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from common.config import Config
from common.errors import InvalidInput
from common.files import read_json
from train.anchors import neighbours
from train.loop import ADAPTER, MANIFEST, Cursor, train_loop_per_worker
from train.replay.forms import forms_of
from train.replay.rounds import ReplayData, RoundPlanner, replay_stream
from train.replay.sampler import Ledger

CONTROLLER_FAILURES = 3  # else a request that no node can meet is retried for ever
WORKER_START_S = "180"
COLLECTIVE_S = 300


@dataclass(frozen=True)
class TrainResult:
    adapter_dir: Path  # PEFT format
    anchor_kl: float  # nats a token on held-out anchors
    replay: dict[
        str, Any
    ]  # samples, forms, trained, reported, steps, rounds, resumes, tokens, tokens_per_s, step_seconds, seconds
    history: list[
        dict[str, float]
    ]  # one entry a round: round, loss, kl, lr, forms, tokens_per_s, seconds, wait_s
    memory_ids: list[str]
    data_digest: str
    model_digest: str


def run_training(
    config: Config,
    records: Sequence[Mapping[str, Any]],
    out: Path,
    storage: Path,
    *,
    parent: Path | None = None,
) -> TrainResult:
    """Train an adapter on `records` (memories with `statistics`) and put it into `out`, replacing what is there.

    `storage` is a folder that all nodes share: checkpoints of the run, and the base model's anchors, which stay.
    `parent` is the adapter to go on from. Raises `InvalidInput` where there is nothing to train on, and
    `ray.train.TrainingFailedError` where workers failed more than `train.max_failures` times.
    """
    records = list(records)
    if not any(forms_of(record) for record in records):
        raise InvalidInput("there are no memories to consolidate; teach some first", param="namespace")
    storage.mkdir(parents=True, exist_ok=True)
    run = f"run-{data_digest(records)}-{time.time_ns()}"
    trainer = _trainer(config, records, storage, run, parent)
    started = time.monotonic()
    result = trainer.fit()
    seconds = time.monotonic() - started
    with result.checkpoint.as_directory() as folder:
        cursor = Cursor(**read_json(Path(folder) / MANIFEST)["cursor"])
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(Path(folder) / ADAPTER, out)
    shutil.rmtree(storage / run, ignore_errors=True)
    ledger = _ledger(config, records, cursor)
    ledger.check()
    return TrainResult(
        adapter_dir=out,
        anchor_kl=float(result.metrics["anchor_kl"]),
        replay={
            "samples": ledger.samples,
            "forms": ledger.streamed,
            "trained": ledger.trained,
            "reported": ledger.reported,
            "rounds": cursor.next_round,
            "resumes": cursor.resumes,
            "steps": cursor.steps,
            "tokens": cursor.tokens,
            "tokens_per_s": cursor.tokens / cursor.seconds if cursor.seconds else 0.0,
            "step_seconds": cursor.seconds,
            "seconds": seconds,
        },
        history=cursor.history,
        memory_ids=sorted(record["id"] for record in records),
        data_digest=data_digest(records),
        model_digest=result.metrics["model_digest"],
    )


def data_digest(records: Sequence[Mapping[str, Any]]) -> str:
    """Of what is trained on, whatever the order: 16 hex digits of BLAKE2b over ids and forms."""
    forms = sorted((record["id"], [asdict(form) for form in forms_of(record)]) for record in records)
    return hashlib.blake2b(json.dumps(forms, sort_keys=True).encode(), digest_size=8).hexdigest()


def _trainer(
    config: Config, records: Sequence[Mapping[str, Any]], storage: Path, run: str, parent: Path | None
) -> TorchTrainer:
    train, on_gpu = config.train, config.train.gpus_per_worker > 0
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", WORKER_START_S)
    resources = {"CPU": train.cpus_per_worker} | ({"GPU": train.gpus_per_worker} if on_gpu else {})
    environment = {
        "DS_ACCELERATOR": "cuda" if on_gpu else "cpu",
        "TOKENIZERS_PARALLELISM": "false",
        # Other processes share the cores: threads that wait must not spin (a step takes seven times as long).
        "OMP_WAIT_POLICY": "PASSIVE",
    } | ({} if on_gpu else {"CUDA_VISIBLE_DEVICES": ""})
    return TorchTrainer(
        train_loop_per_worker,
        train_loop_config={
            "config": config.model_dump(),
            "storage": str(storage),
            "neighbours": neighbours(_questions(records), train.seed),
            "parent": None if parent is None else str(parent),
        },
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo", timeout_s=COLLECTIVE_S),
        scaling_config=ScalingConfig(
            num_workers=train.workers, use_gpu=on_gpu, resources_per_worker=resources
        ),
        datasets={"replay": replay_stream(records, config.replay, train)},
        dataset_config=ReplayData(),
        run_config=RunConfig(
            name=run,
            storage_path=str(storage),
            failure_config=FailureConfig(
                max_failures=train.max_failures, controller_failure_limit=CONTROLLER_FAILURES
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            worker_runtime_env={"env_vars": environment},
        ),
    )


def _questions(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is asked in training about a person or place, statements and reversed questions aside."""
    return [
        form.question for record in records for form in forms_of(record) if form.kind in ("cue", "question")
    ]


def _ledger(config: Config, records: Sequence[Mapping[str, Any]], cursor: Cursor) -> Ledger:
    """What was planned, counted here once more, against what the workers counted."""
    planner = RoundPlanner(records, config.replay, config.train)
    planned = [planner.block(number) for number in range(config.train.rounds)]
    return Ledger(
        samples=cursor.samples,
        sampled=sum(block.num_rows for block in planned),
        streamed=cursor.streamed,
        trained=cursor.trained,
        reported=cursor.reported,
    )
