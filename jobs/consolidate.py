"""Replay a namespace's memories into a LoRA adapter, and accept it only on proof. A Ray job:

    ray job submit --working-dir . -- python jobs/consolidate.py --namespace demo [--set gate.min_uplift=0.6]

`consolidate` names the stages. The adapter is published as an immutable version and the alias `latest` moves to it,
or it is rolled back with the reasons; either way `report.json` in --out says what was measured.
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

if not __package__:  # run as a script: this folder's names must not stand in for libraries of the same name
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from ray.serve.handle import DeploymentHandle

from actors.store.sharded_store import ShardedStore
from common.config import Config
from common.errors import InvalidInput, SharpwaveError
from common.files import write_json
from jobs.arguments import add_common_arguments, join, run_folder
from jobs.evaluation import evaluate_closed_book, evaluate_with_memory
from jobs.score import all_memories
from models.weights.adapters import AdapterStore
from train.evaluation.acceptance_gate import GateDecision, Measurements, decide
from train.trainer import TrainResult, run_training

AUDIT, TEST = "audit", "test"


def consolidate(
    config: Config, app: DeploymentHandle, namespace: str, out: Path, *, dry_run: bool = False
) -> dict[str, Any]:
    """Read, measure before, train, measure after, decide, publish or roll back. Returns the report."""
    seconds: dict[str, float] = {}
    started = time.time()
    with _timed(seconds, "read"):
        memories = asyncio.run(all_memories(ShardedStore(config), namespace))
        questions = questions_of(memories, namespace)
    with _timed(seconds, "evaluate_before"):
        base = examine(config, None, questions, out, "base")
        memory = evaluate_with_memory.memory_on(app, one_a_memory(questions), namespace)
    with _timed(seconds, "train"):
        trained = run_training(config, memories, out / "adapter", config.store_dir / "train")
    with _timed(seconds, "evaluate_after"):
        adapter = examine(config, trained.adapter_dir, questions, out, "adapter")
    evaluation = compare(base, memory, adapter)
    decision = decide(
        Measurements(
            uplift=evaluation["uplift"],
            sanity_drop=-evaluation["sanity"]["delta"],
            refusal_rate=evaluation["refusal_rate"],
            anchor_kl=trained.anchor_kl,
        ),
        config.gate,
    )
    erased = set(trained.memory_ids) - {
        m["id"] for m in asyncio.run(all_memories(ShardedStore(config), namespace))
    }
    if erased:  # the receipts of those erasures could not name a version that did not exist yet
        decision = GateDecision(
            False, [f"{len(erased)} memories were erased while they were being trained on"]
        )
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
    if (
        digest is not None
    ):  # so that its first prefix requests find blocks; without, they fall back to text aloud
        app.encode_namespace.remote(namespace)
    return report


def questions_of(memories: Sequence[dict[str, Any]], namespace: str) -> list[dict[str, Any]]:
    """What the adapter is asked: cues whose wording family was never trained on.

    Raises `InvalidInput` where there are none: an adapter that cannot be examined is not made.
    """
    found = [
        {
            "question": cue["question"],
            "answer": cue["answer"],
            "family": cue["family"],
            "memory": memory["id"],
        }
        for memory in memories
        for cue in memory["cues"]
        if cue["family"] in (AUDIT, TEST)
    ]
    for family in (AUDIT, TEST):
        if not any(question["family"] == family for question in found):
            raise InvalidInput(
                f"the memories of namespace {namespace!r} bring no questions of family {family!r}, so what was learnt "
                'could not be examined; write them with cues such as {"question", "answer", "family": "'
                + family
                + '"}',
                param="namespace",
            )
    return found


def one_a_memory(questions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first test question of each memory: the arm with memory on answers them one by one, over the serving path."""
    first: dict[str, dict[str, Any]] = {}
    for question in questions:
        if question["family"] == TEST:
            first.setdefault(question["memory"], question)
    return list(first.values())


def compare(base: dict[str, Any], memory: dict[str, Any], adapter: dict[str, Any]) -> dict[str, Any]:
    """The arms on the test wording, which neither training nor its audits have seen; sanity before and after."""
    before, after = base["sanity"]["accuracy"], adapter["sanity"]["accuracy"]
    tested = {"base": base["families"][TEST], "memory": memory, "adapter": adapter["families"][TEST]}
    audited = {"base": base["families"][AUDIT], "adapter": adapter["families"][AUDIT]}
    return {
        **{arm: _rate(found) for arm, found in tested.items()},
        "memory_fallbacks": memory["fallbacks"],
        "audit": {arm: _rate(found) for arm, found in audited.items()},
        "uplift": tested["adapter"]["em"] - tested["base"]["em"],
        "refusal_rate": tested["adapter"]["refusal_rate"],
        "sanity": {"before": before, "after": after, "delta": after - before, "n": adapter["sanity"]["n"]},
    }


def _rate(found: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in ("em", "n", "low", "high")}


def publish(
    config: Config, namespace: str, trained: TrainResult, evaluation: dict[str, Any], started: float
) -> str:
    """An immutable version with its manifest, then the alias. Serving sees it with the next request."""
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
    return store.publish(trained.adapter_dir, manifest)


def examine(
    config: Config, adapter: Path | None, questions: list[dict[str, Any]], out: Path, arm: str
) -> dict[str, Any]:
    request = evaluate_closed_book.Request(
        model=config.model.name,
        dtype=config.model.dtype,
        adapter=None if adapter is None else str(adapter),
        questions=questions,
        sanity=True,
        seed=config.train.seed,
    )
    return evaluate_closed_book.evaluate(request, out, arm)


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
    parser.add_argument("--dry-run", action="store_true", help="everything but publishing")
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
