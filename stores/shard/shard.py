"""One shard: a durable log with its view. Open this file first.

Every write (`writes.py`) takes the same five steps: has this `op_id` been done, plan, stage, commit
(fsync), show. Threads that write at the same time take them as one batch (`batch.py`). Readers never wait
for the disk: they share the view's lock, which a writer takes only for the last step, so they see an
operation whole or not at all.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from common.config import StoreConfig
from stores.erasure.disk_probe import Canaries, probe_shard
from stores.index.vectors import Vectors, check_vectors
from stores.locks import ReadWriteLock
from stores.log.base import Operation
from stores.log.encrypted import SHARD
from stores.log.open import open_log
from stores.log.record import Op, Record, fault
from stores.memory.filters import compile_filter
from stores.memory.memory import Memory
from stores.ranking import ranking
from stores.reads import search
from stores.reads.cue_recall import Recollect
from stores.shard.conversations import TurnWrites
from stores.shard.graph import GraphReads
from stores.shard.keyed import LineWrites
from stores.snapshots.files import Capture, capture
from stores.snapshots.manager import Snapshots
from stores.transfer import files
from stores.transfer.reshard import Moving
from stores.view.memory_state import describe, history, unshared
from stores.view.view import View, cursor_of, statistics
from stores.writes import lookups, near_duplicates, updates
from stores.writes.group_commit import Batcher, Pending

Json = dict[str, Any]
Page = list[Json]
LISTED_AT_ONCE = 1024  # memories that a list looks at in one hold of the view's lock


class Shard(Moving, TurnWrites, LineWrites, GraphReads, Recollect):
    """Safe for many threads of one process; a second process is kept out.

    Opening replays the log and raises `StoreCorrupt` where a record is damaged: nothing is served from
    a log that fails its checks.
    """

    def __init__(
        self, path: Path, *, number: int, dim: int, config: StoreConfig, wait_s: float = 0.0
    ) -> None:
        """`dim` is the embedder's dimension, `wait_s` how long to wait for a former owner to end."""
        self.number = number
        self.dim = dim
        self.config = config
        self._viewing = ReadWriteLock()
        self._log = open_log(path, config=config, identity={"shard": number, "dim": dim}, wait_s=wait_s)
        self._snapshots = Snapshots(
            path / "snapshots",
            every=config.snapshot_every,
            keep=config.snapshots_kept,
            sealer=self._log.ring,
            config=config,
        )
        try:
            self._view = self._replay()
        except BaseException:
            self._log.close()
            raise
        self._view.start()
        self._destroy_keys_left_over()
        self._state = self._log.state()
        self._writes = Batcher(self._log, self._show, at_most=config.batch_operations, around=self._around)
        self._snapshots.make_if_due(self._log.seq, self._capture)

    def _replay(self) -> View:
        """The newest snapshot that proves itself, and the log behind it."""
        view, seq = self._snapshots.open(self._log, self.dim)
        erasures = [0]

        def tail() -> Iterator[Record]:
            for record in self._log.records(after=seq):
                if record.op is Op.FORGET or _forgets_turns(record):
                    erasures.append(record.seq)
                yield record

        view.replay(tail())
        self._snapshots.purge(before=erasures[-1])  # what a crash left of an erasure
        return view

    @contextmanager
    def _around(self, operations: Sequence[Operation]) -> Iterator[None]:
        """Of a commit: what it erases leaves the snapshots before anyone is answered."""
        erases = any(operation.erase for operation in operations)
        with self._snapshots.purging(self._capture) if erases else nullcontext():
            yield
        self._snapshots.make_if_due(self._log.seq, self._capture)

    def _show(self, records: Sequence[Record]) -> None:
        """What has reached the disk becomes visible: all of a batch at once."""
        with self._viewing.write():
            self._view.replay(records)
            self._state = self._log.state()

    def _destroy_keys_left_over(self) -> None:
        """Of namespaces that hold nothing: a crash may have come between an erasure and its keys."""
        if ring := self._log.ring:
            for namespace in {*ring.namespaces} - {*self._view.spaces} - {SHARD}:
                ring.destroy(namespace)

    # Asked before a put

    def twins(self, memories: Sequence[Memory], vectors: Vectors) -> list[str | None]:
        """The id of the memory here that says the same as each, or None; see `twins.py`."""
        vectors = check_vectors(vectors, self.dim)
        with self._viewing.read():
            near = lookups.neighbours(self._view, Pending(), lookups.sought(memories, vectors))
            return [
                pairs[twin][1].memory["id"]
                if (twin := near_duplicates.find(memory, [(c, e.memory) for c, e in pairs], self.config))
                is not None
                else None
                for memory, pairs in zip(memories, near, strict=True)
            ]

    def check(self, memories: Sequence[Memory]) -> list[str | None]:
        """Why each memory could not be written, or None where it could. Nothing is written."""
        with self._viewing.read():
            return lookups.conflicts(self._view, memories)

    def nearest(self, namespaces: Sequence[str], vectors: Vectors) -> list[float]:
        """Highest cosine of each vector to its namespace in this shard, in 0 to 1."""
        vectors = check_vectors(vectors, self.dim)
        with self._viewing.read():
            return lookups.nearest(self._view, namespaces, vectors)

    def said(
        self, namespace: str, *, ids: Sequence[str] | None = None, where: Mapping[str, Any] | None = None
    ) -> list[str]:
        """The texts of the memories that a `forget` would choose: turns on other shards may say the same."""
        keep = compile_filter(where)
        with self._viewing.read():
            space = self._view.spaces.get(namespace)
            entries = [*space.entries.values()] if space else []
            if ids is not None:
                gone = updates.chosen(space.entries if space else {}, ids, keep)
                tellings = updates.retold(space, gone, ids, keep)
                return sorted(updates.said(gone, [each for some in tellings.values() for each in some]))
        gone = [entry for entry in entries if keep(entry.memory)]  # a filter takes long: writers go on
        return sorted(updates.said(gone, [t for entry in entries for t in [*entry.tellings] if keep(t)]))

    # Reads

    def get(self, namespace: str, id: str) -> Json | None:
        """The memory with `statistics`, `anchor`, `shard`, `seq` and `versions`, or None."""
        with self._viewing.read():
            entry = self._view.find(namespace, id)
            return describe(entry, self.number) if entry else None

    def history(self, namespace: str, id: str) -> Page | None:
        """Every version of the memory, newest first: `{seq, anchor, written, content}`; None where it is
        unknown."""
        with self._viewing.read():
            entry = self._view.find(namespace, id)
            return history(entry) if entry else None

    def list(
        self,
        namespace: str,
        *,
        kind: str | None = None,
        conversation: str | None = None,
        after: str | None = None,
        limit: int = 100,
        where: Mapping[str, Any] | None = None,
    ) -> Page:
        """Up to `limit` memories in order of (time, id), from behind the cursor `after` on; see
        `cursor_of`. What is written meanwhile may be among them or not."""
        keep = compile_filter(where)
        found: Page = []
        while len(found) < limit:
            with self._viewing.read():  # a part at a time: a rare match must not keep writers waiting
                space = self._view.spaces.get(namespace)
                part = [*islice(space.after(after), LISTED_AT_ONCE)] if space else []
                admitted = (
                    describe(entry, self.number)
                    for entry in part
                    if kind in (None, entry.memory["kind"])
                    and conversation in (None, entry.memory["conversation"])
                    and keep(entry.memory)
                )
                found += islice(admitted, limit - len(found))
            if len(part) < LISTED_AT_ONCE:
                break
            after = cursor_of(part[-1].memory)
        return found

    def search(
        self,
        namespace: str,
        vector: Vectors,
        k: int,
        *,
        query: str | None = None,
        retrieval: str = "full",
        kinds: Iterable[str] | None = None,
        where: Mapping[str, Any] | None = None,
        now: float | None = None,
        offset: int | None = None,
    ) -> Page:
        """The `k` best memories of those that kinds and filter admit, best first: `{memory, score,
        scores: {dense, lexical, concert}}`. `flat`: by cosine; `full`: see `rank.py`. Recency counts from
        `now`. With `offset`, one page of the search: those behind the first `offset`."""
        found = self.candidates(
            namespace,
            vector,
            ranking.reach(k, offset),
            query=query,
            retrieval=retrieval,
            kinds=kinds,
            where=where,
        )
        results, _ = ranking.ranked(retrieval, query, found["hits"], k, now=now, offset=offset)
        return [{**hit, "memory": unshared(hit["memory"])} for hit in results]

    def candidates(
        self,
        namespace: str,
        vector: Vectors,
        k: int,
        *,
        query: str | None = None,
        retrieval: str = "full",
        kinds: Iterable[str] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> Json:
        """What this shard has to say to a search for `k` over all shards: see `search.find`."""
        flat = ranking.check_retrieval(retrieval) == "flat"
        wanted = search.ask(
            namespace,
            check_vectors([vector], self.dim),
            k if flat else ranking.depth_of(k),
            query=None if flat else query,
            kinds=kinds,
            where=where,
        )
        return search.find(self._viewing, self._view, wanted, self.number)

    def statistics(self, namespace: str) -> pa.Table:
        """One row a memory: id, kind, salience, usage, novelty, generation."""
        with self._viewing.read():
            entries = self._view.entries(namespace)
        return statistics(entries)  # writers go on

    def counts(self) -> Json:
        """`{memories, namespaces: {name: memories}, gate_attempts, gate_accepts, seq, epoch, anchor,
        failure, snapshot}`; `failure` says why writes are refused, if they are; see `Snapshots.status`."""
        with self._viewing.read():
            namespaces = {name: len(space.entries) for name, space in self._view.spaces.items()}
            return {
                "memories": sum(namespaces.values()),
                "namespaces": namespaces,
                **self._state,
                "failure": self._writes.failure or self._log.failure,
                "snapshot": self._snapshots.status(),
            }

    def export_rows(self, namespace: str | None = None, *, conversation: str | None = None) -> Iterator[Json]:
        """Each memory of a namespace, or of all, as `take` takes it; see `transfer.export_rows`."""
        return files.export_rows(self._view, self._viewing, self.number, namespace, conversation=conversation)

    def probe(self, canaries: Canaries) -> Page:
        """See `probe.probe_shard`."""
        return probe_shard(self, canaries)

    def snapshot(self) -> Path | None:
        """Write a snapshot now; its folder, or None where the newest one covers everything. Writers wait
        only while references and vectors are copied."""
        return self._snapshots.make(self._capture)

    def _capture(self) -> Capture:
        with self._viewing.read():
            return capture(self._view, self._state, self.number)

    def final(self) -> Json:
        """Where the chain stands, for a seal: `{shard, seq, anchor}`."""
        with self._viewing.read():
            return {"shard": self.number, "seq": self._state["seq"], "anchor": self._state["anchor"]}

    def verify(self, sealed: Mapping[str, Any] | None = None) -> Json | None:
        """The first broken record of the log on disk, as far as it reaches now, as `{seq, op, op_id, reason}`,
        or None; writers go on. With this shard's part of a seal, the log must also hold its anchor."""
        return self._log.examine() or (self._unsealed(sealed) if sealed and sealed["seq"] else None)

    def _unsealed(self, sealed: Mapping[str, Any]) -> Json | None:
        if sealed["seq"] > self._log.seq:
            reason = f"sealed up to record {sealed['seq']}, but the log ends at {self._log.seq}"
            return {"seq": self._log.seq + 1, "op": None, "op_id": None, "reason": reason}
        record = next(self._log.records(after=sealed["seq"] - 1))
        return None if record.anchor.hex() == sealed["anchor"] else fault(record, "not the sealed anchor")

    def close(self) -> None:
        with self._writes.lock:
            if not self._writes.failure and not self._log.failure:
                self._snapshots.close(self._log.seq, self._capture)
            self._log.close()


def _forgets_turns(record: Record) -> bool:
    return record.op is Op.TURNS and not record.erased and "keep" in record.content()
