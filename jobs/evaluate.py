"""Evaluate a model version without memory, against the base and against the base with memory. A Ray job:

    ray job submit --working-dir . -- python jobs/evaluate.py --namespace demo --model base:latest

Nothing is trained and nothing is published; report.json in --out has the result.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
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
from jobs.evaluation.questions import one_a_memory, questions_of
from models.weights.adapters import BASE, AdapterStore
from serve.pages import all_memories


def evaluate(config: Config, app: DeploymentHandle, namespace: str, model: str, out: Path) -> dict[str, Any]:
    """Evaluate the base, the base with memory as configured, and the version `model`. Returns the report.

    Raises `NotFound` for an unknown version, `InvalidInput` if the memories bring no questions.
    """
    adapters = AdapterStore(config.store_dir / "adapters")
    digest = adapters.require(model, config.model.name)
    now = time.time()
    memories = asyncio.run(all_memories(ShardedStore(config), namespace, period=(now, now)))
    questions = questions_of(memories, namespace)
    base = examine(config, None, questions, out, "base")
    memory = memory_on(app, one_a_memory(questions), namespace)
    adapter = base if digest == BASE else examine(config, adapters.path(digest), questions, out, "adapter")
    report = {"model": model, "adapter": digest or None, **compare(base, memory, adapter)}
    write_json(out / "report.json", report)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="base:latest")
    add_common_arguments(parser)
    arguments = parser.parse_args(argv)
    try:
        config, app = join(arguments)
        out = run_folder(config, arguments, "evaluate")
        report = evaluate(config, app, arguments.namespace, arguments.model, out)
    except SharpwaveError as error:
        print(f"evaluate: {error.message}", file=sys.stderr)
        return 2 if error.status == 400 else 1
    print(json.dumps({**report, "out": str(out)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
