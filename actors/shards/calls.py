"""The calls that a client may make on a shard, and what every call carries beside its arguments."""

from typing import NamedTuple

from ray.exceptions import RayTaskError

from common.errors import SharpwaveError

# By part of the shard, as `part.method`; see `stores.shard.shard.Shard`
WRITES = (
    *("memories.put", "memories.count_duplicates", "memories.import_rows", "memories.supersede"),
    *("memories.race", "memories.touch", "memories.score"),
    *("keyed.put", "keyed.race"),
    *("conversations.push", "conversations.pop", "conversations.rewind"),
    *("erasure.forget", "erasure.forget_turns"),
    *("erasure.rotate_key", "snapshot"),  # they delay writes, and must not block reads
)
READS = (
    *("memories.prepare", "memories.get", "memories.history", "memories.list", "memories.statistics"),
    "memories.support",
    *("memories.weakest", "search.candidates", "search.complete", "reshard.rows", "erasure.texts_of"),
    *(
        "graph.query_facts",
        "graph.solve_facts",
        "graph.recall_facts",
        "graph.fact_path",
        "graph.query_places",
    ),
    *("keyed.get", "keyed.query", "keyed.bias_vector"),
    *("conversations.peek", "chain.head"),
)
CONTROLS = ("counts", "chain.verify", "erasure.probe")  # no reshard waits for them

GROUP_OF = {
    **dict.fromkeys(WRITES, "write"),
    **dict.fromkeys(READS, "read"),
    **dict.fromkeys(CONTROLS, "control"),
}


class Call(NamedTuple):
    """`generation` of the layout that the caller knows; `deadline` (seconds, `time.time`), after which nobody
    waits for the answer. Nodes' clocks must differ by far less than `serve.deadline_s`."""

    generation: int
    deadline: float


def cause_of(error: RayTaskError) -> Exception:
    """The original error of the shard."""
    return error.cause if isinstance(error.cause, SharpwaveError) else error
