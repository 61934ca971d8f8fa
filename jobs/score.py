"""Compute the divergence matrix of a namespace's memories over conversations. A Ray job:

    ray job submit --working-dir . -- python jobs/score.py --namespace demo --conversation talk.jsonl

Writes matrix.parquet, matrix.html, summary.json and heatmap.png to --out, and updates the salience of each memory with
its divergence; the same measurement counts once. An interrupted job resumes if --out is given again: finished blocks
are in --out/blocks. Exit code 3: some blocks failed.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: modules of this folder must not shadow libraries of the same name
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from actors.store.sharded_store import ShardedStore
from common.config import Config
from common.errors import InvalidInput, SharpwaveError
from common.files import write_bytes
from jobs.arguments import add_common_arguments, join, run_folder
from jobs.scoring import conversations as talks
from jobs.scoring.compute import compute, score_job
from jobs.scoring.matrix import Matrix
from jobs.scoring.page import page_of
from jobs.scoring.salience import update_salience
from serve.pages import all_memories


def score(
    config: Config,
    namespace: str,
    conversations: Sequence[talks.Conversation] | None,
    out: Path,
    model: str = "base",
) -> Matrix:
    """Read memories, compute the matrix, save it, update salience. `conversations` None: the memories' own questions.

    Raises `InvalidInput` if there are no memories, no conversations, or too few resources for the scorers.
    """
    store = ShardedStore(config)
    now = time.time()
    memories = asyncio.run(
        all_memories(store, namespace, period=(now, now))
    )  # what has ended does not matter
    if not memories:
        raise InvalidInput(f"namespace {namespace!r} holds no memories to score", param="namespace")
    conversations = talks.from_cues(memories) if conversations is None else conversations
    if not conversations:
        raise InvalidInput(
            "the memories bring no questions of their own; give --conversation", param="conversation"
        )
    job = score_job(config, memories, conversations, model)
    matrix = compute(job, config, memories, conversations, out / "blocks")
    write_bytes(out / "matrix.html", page_of(matrix).encode())
    matrix.save(out)  # its last file says that all are there
    asyncio.run(update_salience(store, namespace, matrix, memories, conversations))
    return matrix


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
        matrix = score(config, arguments.namespace, conversations, out, arguments.model)
    except SharpwaveError as error:
        print(f"score: {error.message}", file=sys.stderr)
        return 2 if error.status == 400 else 1
    print(json.dumps({**matrix.summary(), "out": str(out)}))
    return 3 if matrix.errors else 0


if __name__ == "__main__":
    sys.exit(main())
