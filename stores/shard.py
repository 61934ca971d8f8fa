"""One shard: a durable log with its view. Open this file first.

Every write takes the same five steps under one lock: has this `op_id` been done, plan, stage, commit
(fsync), apply to the view. Readers never wait for the disk: they share the view's lock, which a writer
takes only for the last step, so they see an operation whole or not at all.
"""

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from common.config import StoreConfig
from common.errors import Conflict, InvalidInput
from stores import plan, rank, search
from stores.filters import compile_filter
from stores.index import Vectors
from stores.locks import ReadWriteLock
from stores.log import LmdbLog
from stores.memory import Memory, to_json
from stores.record import Op, Record
from stores.view import Entry, View, describe

Json = dict[str, Any]
Items = Sequence[tuple[Memory, Vectors]]
Page = list[Json]


class Shard:
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
        self._writing = threading.Lock()
        self._viewing = ReadWriteLock()
        self._view = View(dim, plan.index_plan(config))
        self._log = LmdbLog(
            path,
            map_size_bytes=config.map_size_bytes,
            identity={"shard": number, "dim": dim},
            wait_s=wait_s,
        )
        try:
            for record in self._log.records():
                self._view.apply(record)
        except BaseException:
            self._log.close()
            raise
        self._view.start()
        self._state = self._log.state()

    # Writes

    def put(self, items: Items, *, op_id: str, now: float, elsewhere: Sequence[float] | None = None) -> Page:
        """Write memories with their embeddings (float32 `[dim]`, unit norm): all of them or none.

        `elsewhere` is each item's highest cosine to its namespace in other shards, which counts in its
        novelty. Raises `Conflict` where an id exists with other content. One answer an item:
        `{id, kind, stored, status, gate: {score, reason}, anchor, shard, seq}`; status is `new`,
        `existing` (written before), `duplicate` (earlier in this call) or `refused` (by the gate).
        """
        memories = [memory for memory, _ in items]
        vectors = plan.check_vectors([vector for _, vector in items], self.dim)
        request = plan.put_digest(memories)
        with self._writing:
            first: Page | None = self._log.seen(op_id, request)
            if first is not None:
                return first
            for conflict in plan.conflicts(self._view, memories):
                if conflict:
                    raise Conflict(conflict, param="id")
            novelties = plan.novelties(self._view, memories, vectors, elsewhere)
            answers = [
                plan.answer(self._view, memory, novelty, self.config, self.number)
                for memory, novelty in zip(memories, novelties, strict=True)
            ]
            chosen = plan.to_write(memories, answers)
            drafts = [
                (Op.PUT, {"memory": to_json(memories[i]), "novelty": novelties[i]}, vectors[i].tobytes())
                for i in chosen
            ]
            staged = self._log.stage(op_id, drafts, now=now)
            plan.settle(memories, answers, dict(zip(chosen, staged, strict=True)))
            counted = {
                "gate_attempts": sum(answer["status"] in ("new", "refused") for answer in answers),
                "gate_accepts": len(staged),
            }
            self._commit(op_id, request, staged, answers, counts=counted)
            return answers

    def touch(self, namespace: str, ids: Sequence[str], *, op_id: str, now: float) -> Json:
        """Count one use of each memory. Returns `{touched, unknown}`."""
        request = plan.request_digest("touch", namespace, [*ids])
        with self._writing:
            first: Json | None = self._log.seen(op_id, request)
            if first is not None:
                return first
            touched = [id for id in ids if self._view.find(namespace, id)]
            result = {"touched": touched, "unknown": [id for id in ids if id not in set(touched)]}
            drafts = [(Op.TOUCH, {"namespace": namespace, "ids": touched}, b"")] if touched else []
            self._commit(op_id, request, self._log.stage(op_id, drafts, now=now), result)
            return result

    def score(self, namespace: str, scores: Sequence[tuple[str, float]], *, op_id: str, now: float) -> Json:
        """Take measured divergences (nats, signed) into salience. Returns `{scored: {id: salience},
        unknown}`. An id may come once a call."""
        if not all(math.isfinite(divergence) for _, divergence in scores):
            raise InvalidInput("scores: every divergence must be finite", param="scores")
        if len({id for id, _ in scores}) < len(scores):
            raise InvalidInput("scores: an id may come once a call", param="scores")
        request = plan.request_digest("score", namespace, [*scores])
        with self._writing:
            first: Json | None = self._log.seen(op_id, request)
            if first is not None:
                return first
            rate = self.config.salience_rate
            rows = [
                (id, float(divergence), entry.salience_after(divergence, rate))
                for id, divergence in scores
                if (entry := self._view.find(namespace, id))
            ]
            scored = {id: salience for id, _, salience in rows}
            result = {"scored": scored, "unknown": [id for id, _ in scores if id not in scored]}
            drafts = [(Op.SCORE, {"namespace": namespace, "scores": rows}, b"")] if rows else []
            self._commit(op_id, request, self._log.stage(op_id, drafts, now=now), result)
            return result

    def forget(
        self,
        namespace: str,
        *,
        ids: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
        everything: bool = False,
        op_id: str,
        now: float,
    ) -> Json:
        """Erase memories chosen by exactly one of `ids`, `where` (a filter) or `everything`.

        Content and vector leave the log, the file on disk and the index; digests and anchors stay. The
        receipt: `{namespace, forgotten: [ids], log_records, index_rows, scrubbed}`, where `scrubbed` is
        false as long as the disk had no room to rewrite the file. Unknown ids are passed over.
        """
        if (ids is not None) + (where is not None) + bool(everything) != 1:
            raise InvalidInput("forget: give exactly one of ids, filter, all", param="ids")
        keep = None if where is None else compile_filter(where)
        request = plan.request_digest("forget", namespace, ids and [*ids], where, everything)
        with self._writing:
            receipt = self._log.seen(op_id, request)
            if receipt is None:
                space = self._view.spaces.get(namespace)
                entries = space.entries if space else {}
                names = dict.fromkeys(ids) if ids is not None else entries
                gone = [e for id in names if (e := entries.get(id)) and (keep is None or keep(e.memory))]
                receipt = self._erase(namespace, gone, op_id, request, now)
            return {**receipt, "scrubbed": self._log.scrub() if self._log.scrub_due else True}

    def _erase(self, namespace: str, gone: list[Entry], op_id: str, request: str, now: float) -> Json:
        forgotten = [entry.memory["id"] for entry in gone]
        drafts = [(Op.FORGET, {"namespace": namespace, "ids": forgotten}, b"")] if gone else []
        receipt = {
            "namespace": namespace,
            "forgotten": forgotten,
            "log_records": len(gone),
            "index_rows": len(gone),
        }
        staged = self._log.stage(op_id, drafts, now=now)
        self._commit(op_id, request, staged, receipt, erase=[entry.seq for entry in gone])
        return receipt

    def _commit(
        self, op_id: str, request: str, staged: Sequence[Record], result: Any, **details: Any
    ) -> None:
        """Disk first, then memory: what a reader sees can no longer be lost."""
        self._log.commit(op_id, request, staged, result, **details)
        with self._viewing.write():
            for record in staged:
                self._view.apply(record)
            self._state = self._log.state()

    # Asked before a put

    def check(self, memories: Sequence[Memory]) -> list[str | None]:
        """Why each memory could not be written, or None where it could. Nothing is written."""
        with self._viewing.read():
            return plan.conflicts(self._view, memories)

    def nearest(self, namespaces: Sequence[str], vectors: Vectors) -> list[float]:
        """Highest cosine of each vector to its namespace in this shard, in 0 to 1."""
        vectors = plan.check_vectors(vectors, self.dim)
        with self._viewing.read():
            return plan.nearest(self._view, namespaces, vectors)

    # Reads

    def get(self, namespace: str, id: str) -> Json | None:
        """The memory with `statistics`, `anchor`, `shard`, `seq` and `versions`, or None."""
        with self._viewing.read():
            entry = self._view.find(namespace, id)
            return describe(entry, self.number) if entry else None

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
        `cursor_of`."""
        keep = compile_filter(where)
        with self._viewing.read():
            space = self._view.spaces.get(namespace)
            found = (
                describe(entry, self.number)
                for entry in (space.after(after) if space else ())
                if kind in (None, entry.memory["kind"])
                and conversation in (None, entry.memory["conversation"])
                and keep(entry.memory)
            )
            return [*islice(found, max(0, limit))]

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
            rank.reach(k, offset),
            query=query,
            retrieval=retrieval,
            kinds=kinds,
            where=where,
        )
        results, _ = rank.ranked(retrieval, query, found["hits"], k, now=now, offset=offset)
        return deepcopy(results)

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
        flat = rank.check_retrieval(retrieval) == "flat"
        wanted = search.ask(
            namespace,
            plan.check_vectors([vector], self.dim),
            k if flat else rank.depth_of(k),
            query=None if flat else query,
            kinds=kinds,
            where=where,
        )
        return search.find(self._viewing, self._view, wanted, self.number)

    def statistics(self, namespace: str) -> pa.Table:
        """One row a memory: id, kind, salience, usage, novelty, generation."""
        with self._viewing.read():
            return self._view.statistics(namespace)

    def counts(self) -> Json:
        """`{memories, namespaces: {name: memories}, gate_attempts, gate_accepts, seq, epoch, anchor,
        failure}`; `failure` says why writes are refused, if they are."""
        with self._viewing.read():
            namespaces = {name: len(space.entries) for name, space in self._view.spaces.items()}
            return {
                "memories": sum(namespaces.values()),
                "namespaces": namespaces,
                **self._state,
                "failure": self._log.failure,
            }

    def verify(self) -> int | None:
        """The first broken record of the log on disk, or None. Writes wait meanwhile."""
        with self._writing:
            return self._log.verify()

    def close(self) -> None:
        with self._writing:
            self._log.close()
