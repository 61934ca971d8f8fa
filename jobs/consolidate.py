"""Train a LoRA adapter on a namespace's memories, and publish it if it passes the acceptance gate. A Ray job:

    ray job submit --working-dir . -- python jobs/consolidate.py --namespace demo [--set gate.min_uplift=0.6]

An accepted adapter becomes an immutable version, and the alias `latest` moves to it. A rejected one is not published.
In both cases report.json in --out has the measurements and the reasons. Exit code 3: rejected.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: modules of this folder must not shadow libraries of the same name
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from ray.serve.handle import DeploymentHandle

from actors.store.sharded_store import ShardedStore
from common.config import Config
from common.errors import SharpwaveError
from common.files import write_json
from jobs.arguments import add_common_arguments, join, run_folder
from jobs.evaluation.compare import compare, examine
from jobs.evaluation.evaluate_with_memory import memory_on
from jobs.evaluation.questions import direct_questions, one_a_memory, questions_of
from models.weights.adapters import AdapterStore
from serve.pages import all_memories
from train.evaluation.acceptance_gate import GateDecision, Measurements, decide
from train.trainer import TrainResult, run_training


def consolidate(
    config: Config, app: DeploymentHandle, namespace: str, out: Path, *, dry_run: bool = False
) -> dict[str, Any]:
    """Read, evaluate before, train, evaluate after, decide, publish or reject. Returns the report.

    Raises `InvalidInput` if the memories bring no questions to evaluate the adapter with, and `Conflict` if the adapter
    does not fit the model of the running instance: it is published then, but not as `latest`.
    """
    seconds: dict[str, float] = {}
    started = time.time()
    with _timed(seconds, "read"):
        memories = _present(config, namespace)
        questions = questions_of(memories, namespace)
    with _timed(seconds, "evaluate_before"):
        base = examine(config, None, questions, out, "base")
        memory = memory_on(app, one_a_memory(questions), namespace)
        plain = direct_questions(memories)
        direct = memory_on(app, plain, namespace) if plain else None
    with _timed(seconds, "train"):
        trained = run_training(config, memories, out / "adapter", config.store_dir / "train")
    with _timed(seconds, "evaluate_after"):
        adapter = examine(config, trained.adapter_dir, questions, out, "adapter")
    evaluation = compare(base, memory, adapter, direct)
    decision = accept(config, namespace, trained, evaluation)
    digest = None
    if decision.accepted and not dry_run:
        digest = publish(config, namespace, trained, evaluation, started)
    report = {
        "namespace": namespace,
        "config_hash": config.hash,
        "model": config.model.name,
        "adapter": digest,
        "replay": trained.replay,
        "evaluation": evaluation,
        "gate": {"accepted": decision.accepted, "reasons": decision.reasons, "dry_run": dry_run},
        "seconds": seconds,
    }
    write_json(out / "report.json", report)
    if digest is not None:
        app.set_alias.remote("latest", digest).result()
        # Until its KV blocks are encoded, prefix requests to it fall back to text.
        app.encode_namespace.remote(namespace)
    return report


def _present(config: Config, namespace: str) -> list[dict[str, Any]]:
    """The memories that hold now: what has ended is not trained."""
    now = time.time()
    return asyncio.run(all_memories(ShardedStore(config), namespace, period=(now, now)))


def accept(config: Config, namespace: str, trained: TrainResult, evaluation: dict[str, Any]) -> GateDecision:
    """The decision of the acceptance gate; a rejection if memories were erased, or facts ended, while they were trained
    on."""
    gone = set(trained.memory_ids) - {memory["id"] for memory in _present(config, namespace)}
    if gone:  # the receipts of those erasures could not name a version that did not exist yet
        return GateDecision(
            False, [f"{len(gone)} memories were erased or ended while they were being trained on"]
        )
    measured = Measurements(
        uplift=evaluation["uplift"],
        sanity_drop=-evaluation["sanity"]["delta"],
        refusal_rate=evaluation["refusal_rate"],
        anchor_kl=trained.anchor_kl,
    )
    return decide(measured, config.gate)


def publish(
    config: Config, namespace: str, trained: TrainResult, evaluation: dict[str, Any], started: float
) -> str:
    """Store the adapter as an immutable version with its manifest. Returns the digest."""
    store = AdapterStore(config.store_dir / "adapters")
    manifest = {
        "namespace": namespace,
        "created": started,
        "model": config.model.name,
        "model_digest": trained.model_digest,
        "config_hash": config.hash,
        "data_digest": trained.data_digest,
        "memory_ids": trained.memory_ids,
        "evaluation": {name: evaluation[name] for name in ("base", "adapter", "uplift", "sanity")},
    }
    return store.publish(trained.adapter_dir, manifest, alias=None)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    print(f"{stage} ...", file=sys.stderr, flush=True)
    yield
    seconds[stage] = time.perf_counter() - started
    print(f"{stage} {seconds[stage]:.1f} s", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true", help="do everything but publish")
    add_common_arguments(parser)
    arguments = parser.parse_args(argv)
    try:
        config, app = join(arguments, workers_speak=True)
        out = run_folder(config, arguments, "consolidate")
        report = consolidate(config, app, arguments.namespace, out, dry_run=arguments.dry_run)
    except SharpwaveError as error:
        print(f"consolidate: {error.message}", file=sys.stderr)
        return 2 if error.status == 400 else 1
    print(json.dumps({**report, "out": str(out)}))
    return 0 if report["gate"]["accepted"] else 3


if __name__ == "__main__":
    sys.exit(main())
