"""What a client may call on a shard, and what every call says beside its arguments."""

from typing import NamedTuple

from ray.exceptions import RayTaskError

from common.errors import SharpwaveError

WRITES = (
    *("put", "sight", "take", "supersede", "race", "touch", "score", "forget"),
    *("put_line", "race_line"),
    *("push", "pop", "rewind", "forget_turns"),
    *("rotate_key", "snapshot"),  # they hold writes back, and must not block reads
)
READS = (
    *("prepare", "get", "history", "list", "candidates", "complete", "weakest", "statistics", "rows", "said"),
    *("query_facts", "solve_facts", "recall_facts", "fact_path", "query_places"),
    *("line", "query_lines", "bias_vector"),
    *("peek", "final"),
)
CONTROLS = ("counts", "verify", "probe")  # no reshard waits for them

GROUP_OF = {
    **dict.fromkeys(WRITES, "write"),
    **dict.fromkeys(READS, "read"),
    **dict.fromkeys(CONTROLS, "control"),
}


class Call(NamedTuple):
    """`generation` of the layout that the caller knows; `deadline` by the clock (`time.time`), behind which
    nobody waits for the answer. Nodes' clocks may differ by far less than `serve.deadline_s`."""

    generation: int
    deadline: float


def cause_of(error: RayTaskError) -> Exception:
    """What the shard raised, as it raised it."""
    return error.cause if isinstance(error.cause, SharpwaveError) else error
