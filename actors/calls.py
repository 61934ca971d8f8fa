"""What a client may call on a shard, and what every call says beside its arguments."""

from typing import NamedTuple

from ray.exceptions import RayTaskError

from common.errors import SharpwaveError

WRITES = (
    *("put", "touch", "score", "forget", "verify"),  # verify holds writes back, and must not block reads
    *("supersede", "take", "put_line", "race_line", "push", "pop", "rewind", "snapshot", "probe"),
)
READS = (
    *("prepare", "get", "list", "search", "statistics", "history", "weakest", "complete", "export_page"),
    *("query_facts", "recall_facts", "fact_path", "query_places"),
    *("line", "query_lines", "bias_vector", "peek"),
)
CONTROLS = ("counts", "final")

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
