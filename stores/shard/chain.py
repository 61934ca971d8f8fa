"""The anchor chain of a shard's log: where it stands, and whether it is intact."""

from collections.abc import Mapping
from typing import Any

from common.types import Json
from stores.log.record import fault
from stores.shard.core import ShardCore


class Chain:
    def __init__(self, core: ShardCore) -> None:
        self._core = core

    def head(self) -> Json:
        """Where the chain stands, for a seal: `{shard, seq, anchor}`."""
        core = self._core
        with core.view_lock.read():
            return {"shard": core.number, "seq": core.state["seq"], "anchor": core.state["anchor"]}

    def verify(self, sealed: Mapping[str, Any] | None = None) -> Json | None:
        """The first broken record of the log on disk as `{seq, op, op_id, reason}`, or None. With `sealed`, this
        shard's entry of a seal, the log must also hold the sealed anchor. Writers go on meanwhile: the log is
        read up to its present end."""
        return self._core.log.examine() or (self._unsealed(sealed) if sealed and sealed["seq"] else None)

    def _unsealed(self, sealed: Mapping[str, Any]) -> Json | None:
        log = self._core.log
        if sealed["seq"] > log.seq:
            reason = f"sealed up to record {sealed['seq']}, but the log ends at {log.seq}"
            return {"seq": log.seq + 1, "op": None, "op_id": None, "reason": reason}
        record = next(log.records(after=sealed["seq"] - 1))
        return None if record.anchor.hex() == sealed["anchor"] else fault(record, "not the sealed anchor")
