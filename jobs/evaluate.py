"""Examine a model version with memory off, against the base and against memory on. A Ray job:

    ray job submit --working-dir . -- python jobs/evaluate.py --namespace demo --model base:latest

Arms: base, base with memory as configured, and the version asked for. Nothing is trained and nothing is published.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: this folder's names must not stand in for libraries of the same name
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from actors.store.sharded_store import ShardedStore
from common.errors import SharpwaveError
from common.files import write_json
from jobs.arguments import add_common_arguments, join, run_folder
from jobs.consolidate import compare, examine, one_a_memory, questions_of
from jobs.evaluation import evaluate_with_memory
from jobs.score import all_memories
from models.weights.adapters import BASE, AdapterStore


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
        adapters = AdapterStore(config.store_dir / "adapters")
        digest = adapters.require(arguments.model, config.model.name)
        memories = asyncio.run(all_memories(ShardedStore(config), arguments.namespace))
        questions = questions_of(memories, arguments.namespace)
        base = examine(config, None, questions, out, "base")
        memory = evaluate_with_memory.memory_on(app, one_a_memory(questions), arguments.namespace)
        adapter = (
            base if digest == BASE else examine(config, adapters.path(digest), questions, out, "adapter")
        )
    except SharpwaveError as error:
        print(f"evaluate: {error.message}", file=sys.stderr)
        return 2 if error.status == 400 else 1
    report = {"model": arguments.model, "adapter": digest or None, **compare(base, memory, adapter)}
    write_json(out / "report.json", report)
    print(json.dumps({**report, "out": str(out)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
