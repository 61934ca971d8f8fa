"""Write measured divergences into the salience of memories, each measurement once."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from actors.scorers import tasks_of
from actors.store.sharded_store import ShardedStore
from jobs.scoring.conversations import Conversation
from jobs.scoring.matrix import Matrix

Weights = list[tuple[str, float]]


async def update_salience(
    store: ShardedStore,
    namespace: str,
    matrix: Matrix,
    memories: Sequence[dict[str, Any]],
    conversations: Sequence[Conversation],
) -> None:
    """Update the moving average of each completely scored memory with its weight in `matrix`.

    The same matrix changes a store only once: salience is a moving average, so a resumed or repeated job must not
    count again. Memories of one block of rows succeed or fail together and are one operation; a job that is resumed
    after some blocks failed thus adds those blocks only.
    """
    for weights, op_id in operations(namespace, matrix, memories, conversations):
        await store.memories.score(namespace, weights, op_id=op_id, now=time.time())


def operations(
    namespace: str,
    matrix: Matrix,
    memories: Sequence[dict[str, Any]],
    conversations: Sequence[Conversation],
) -> Iterator[tuple[Weights, str]]:
    """Weights of each block of rows that has any, with an `op_id` that is a digest of what was scored: namespace,
    model version, ids and generations of all memories (each one is scored in the presence of the others),
    conversations, and the weights."""
    measured = [
        namespace,
        matrix.fingerprint,
        [[memory["id"], memory["statistics"]["generation"]] for memory in memories],
        [conversation.messages for conversation in conversations],
    ]
    complete = dict(matrix.weights())
    for task in tasks_of(len(memories), 1):
        ids = [memories[row]["id"] for row in task.rows if row >= 0]
        weights = [(id, complete[id]) for id in ids if id in complete]
        if weights:
            content = json.dumps(["score", *measured, weights], sort_keys=True)
            yield weights, hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
