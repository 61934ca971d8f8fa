"""A shard's side of a reshard: handing over changed memories, and adopting those of another shard."""

from collections.abc import Mapping, Sequence

from common.types import Json
from stores.log.base import Operation
from stores.shard.core import ShardCore
from stores.transfer.reshard import Changes, read_touched, turns_of
from stores.writes import lookups
from stores.writes.group_commit import Planned
from stores.writes.kept_results import REQUEST, Result, part_id, part_of
from stores.writes.rewrite import Key, key_of, replace_memories, rows_of


class Reshard:
    def __init__(self, core: ShardCore) -> None:
        self._core = core

    def changes(self, after: int, limit: int) -> Changes:
        """The present state of the memories named by up to `limit` records behind number `after`."""
        core = self._core
        with core.commits.lock:  # a scrub replaces the log's file
            last = core.log.seq
            found = read_touched(core.log.records(after), after, limit)
            results = core.kept_results.results_at(
                (op_id, *key, None if is_conversation else self._kind(key))
                for op_id, (key, is_conversation) in found.whole.items()
            )
        with core.view_lock.read():
            rows, gone = rows_of(core.view, found.keys, core.number)
            turns = turns_of(core.view, found.conversations)
        return Changes(
            upto=found.upto,
            more=found.upto < last,
            rows=rows,
            gone=gone,
            turns=turns,
            uses=found.uses,
            results=results,
        )

    def rows(self, keys: Sequence[Key]) -> Sequence[Json]:
        """Rows, as `changes` gives them, of those memories that this shard holds."""
        core = self._core
        with core.view_lock.read():
            return rows_of(core.view, keys, core.number)[0]

    def adopt(
        self, rows: Sequence[Json], gone: Sequence[Key], turns: Sequence[Json], *, op_id: str, now: float
    ) -> Json:
        """Write rows and turns of another shard, without the write gate, in place of any earlier copies on this shard;
        erase the memories in `gone`. Returns the counts `{rows, gone}`."""
        core = self._core
        spaces = {namespace for namespace, _ in (*map(key_of, rows), *gone)}
        spaces |= {kept["namespace"] for kept in turns}
        adopted: Json = core.write(
            op_id,
            lookups.request_digest("adopt", op_id),
            lambda pending: replace_memories(core.view, rows, gone, turns),
            now=now,
            owns=spaces,
        )
        if (gone or turns) and core.log.scrub_due:
            with core.commits.lock:
                core.log.scrub()
        return adopted

    def remember(
        self,
        part: int,
        uses: Sequence[tuple[str, Json]],
        results: Sequence[Result],
        counts: Mapping[str, int],
        *,
        now: float,
    ) -> None:
        """Keep part number `part` (from 0) of the last uses and results of another layout, for as long as results of
        this shard's own operations; add the former shards' counters. See `stores.writes.kept_results`."""
        core = self._core
        operations = [
            Operation(op_id=r.op_id, request=r.request, records=(), result=r.result) for r in results
        ]
        with core.commits.lock:
            core.log.commit(operations)
        planned = Planned(drafts=[], result=part_of(uses, results), counts=counts)
        core.write(part_id(part), REQUEST, lambda pending: planned, now=now)
        core.kept_results.forget_cached()

    def remembered(self) -> tuple[list[tuple[str, Json]], list[Result]]:
        """The uses and results kept by `remember`."""
        core = self._core
        with core.commits.lock:
            results = core.kept_results.results()
        return [*core.kept_results.uses.by_op.items()], results

    def _kind(self, key: Key) -> str:
        entry = self._core.view.find(*key)
        return str(entry.memory["kind"]) if entry else "episodic"
