"""Memories of a shard: put, supersede, race, import, touch, score, get, list, export."""

from collections.abc import Iterator, Mapping, Sequence
from heapq import nsmallest
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa

from common.types import Json, Page
from stores.index.vectors import Vectors, check_vectors
from stores.memory.filters import compile_filter
from stores.memory.memory import Memory, from_json, sources_of
from stores.memory.period import Period
from stores.shard.core import ShardCore
from stores.transfer import files
from stores.view.memory_state import MemoryState, history
from stores.view.view import cursor_of, statistics
from stores.writes import lookups, updates, versions
from stores.writes import put as puts
from stores.writes.batch import MemoryBatch
from stores.writes.group_commit import id_key
from stores.writes.versions import Candidate, Weigh

Rows = Iterator[Json]
LISTED_AT_ONCE = 1024  # memories that a list reads under one hold of the view's lock


class Prepared(NamedTuple):
    """A shard's answer to `prepare`. For each `own` memory, `conflicts`: why its id cannot be written, or None, and
    `written`: whether it exists already. For each `foreign` memory, `cosines`: the highest cosine to the namespace
    on this shard, and `duplicates`: the id of a near duplicate on this shard, or None."""

    written: list[bool]
    conflicts: list[str | None]
    cosines: list[float]
    duplicates: list[str | None]


class Memories:
    def __init__(self, core: ShardCore) -> None:
        self._core = core

    # Writing

    def prepare(self, own: Sequence[Memory], foreign: MemoryBatch) -> Prepared:
        """Conflicts of a put, and what it needs from this shard; writes nothing. `own` are memories whose ids may be
        on this shard, `foreign` those that another shard will write."""
        core, batch = self._core, foreign.checked(self._core.dim)
        with core.view_lock.read():
            view = core.view
            near = lookups.committed_neighbours(view, batch)
            return Prepared(
                [view.find(memory.namespace, memory.id) is not None for memory in own],
                lookups.conflicts(view, own),
                lookups.highest_cosines(near),
                lookups.duplicate_ids(batch.memories, near, core.config),
            )

    def put(
        self, batch: MemoryBatch, *, op_id: str, now: float, elsewhere: Sequence[float] | None = None
    ) -> Page:
        """Write memories with their embeddings: all of them or none.

        `elsewhere` is each memory's highest cosine to its namespace in other shards, which counts in its novelty.
        Raises `Conflict` if an id exists with other content. One answer a memory: `{id, kind, stored, status,
        gate: {score, reason}, anchor, shard, seq}`; status is `new`, `existing` (written before), `duplicate` (a near
        duplicate of the memory whose id is given; see `near_duplicates`), `aggregated` (one more assertion of the
        fact whose id is given), `routed` (no usable triple: kept as an episode) or `refused` (by the write gate).
        """
        core, batch = self._core, batch.checked(self._core.dim)
        sought = lookups.sought(batch)
        answers: Page = core.write(
            op_id,
            lookups.put_digest(batch.memories),
            lambda pending: puts.Put(
                core.view,
                pending,
                batch.memories,
                sought,
                config=core.config,
                shard=core.number,
                elsewhere=elsewhere,
                passages=batch.passages,
            ).plan(),
            now=now,
            spaces=sought.namespaces,
            keys=puts.keys(batch.memories),
            seeks=sought,
        )
        return answers

    def count_duplicates(self, batch: MemoryBatch, *, op_id: str, now: float) -> list[Json | None]:
        """Count memories of another shard that are near duplicates of a memory of this one. Returns each one's answer
        as `put` gives it, or None if this shard has no near duplicate (any more)."""
        core, batch = self._core, batch.checked(self._core.dim)
        sought = lookups.sought(batch)
        answers: list[Json | None] = core.write(
            op_id,
            lookups.request_digest("sight", lookups.put_digest(batch.memories)),
            lambda pending: puts.count_duplicates(
                core.view, pending, batch.memories, sought, config=core.config, shard=core.number
            ),
            now=now,
            spaces=sought.namespaces,
            seeks=sought,
        )
        return answers

    def supersede(
        self,
        memory: Memory,
        vector: Vectors,
        *,
        generation: int,
        op_id: str,
        now: float,
        passages: Vectors | None = None,
    ) -> Json:
        """Make `memory` the new version of the one with its id, which must be of this `generation`. `passages` `[m,
        dim]` are further vectors of a long text.

        Raises `NotFound`, or `Conflict` if another version was written meanwhile. Returns `{id, kind, stored,
        status: superseded, anchor, shard, seq, generation, supersedes}`, with `closes` if the fact ends others.
        """
        core = self._core
        vectors = check_vectors([vector], core.dim)
        further = None if passages is None or not len(passages) else check_vectors(passages, core.dim)
        answer: Json = core.write(
            op_id,
            lookups.request_digest("supersede", lookups.put_digest([memory]), generation),
            lambda pending: versions.supersede(
                core.view,
                pending,
                memory,
                vectors[0],
                generation=generation,
                shard=core.number,
                passages=further,
            ),
            now=now,
            owns=[memory.namespace],
        )
        return answer

    def race(
        self,
        namespace: str,
        key: str,
        candidates: Sequence[Candidate],
        *,
        generation: int,
        op_id: str,
        now: float,
        weigh: Weigh,
    ) -> Json:
        """Commit the candidate of highest weight by `weigh` as the memory `key`, and decay the strengths of the others
        (`store.race_decay`).

        `generation` is that of the version they start from, 0 if there is none. Raises `Conflict` if another was
        written meanwhile. Returns the answer of `supersede` with `{winner, weights, strength, rivals}`, by
        candidate id.
        """
        core = self._core
        memories = [candidate.memory for candidate in candidates]
        versions.check_candidates(namespace, memories)
        vectors = check_vectors([candidate.vector for candidate in candidates], core.dim)
        answer: Json = core.write(
            op_id,
            lookups.request_digest("race", namespace, key, lookups.put_digest(memories), generation),
            lambda pending: versions.race(
                core.view,
                pending,
                key,
                candidates,
                vectors,
                generation=generation,
                now=now,
                weigh=weigh,
                decay=core.config.race_decay,
                shard=core.number,
            ),
            now=now,
            owns=[namespace],
        )
        return answer

    def import_rows(self, rows: Sequence[Json], *, op_id: str, now: float) -> Page:
        """Write memories of another shard or of a file, as `memory_state.row_of` gives them, statistics and versions
        included: all or none, without the write gate. Raises `Conflict` if an id exists with other content. One
        answer a row: `{id, kind, status: new | existing, anchor, shard, seq}`."""
        core = self._core
        vectors = check_vectors([row["vector"] for row in rows], core.dim)
        memories = [from_json(row["memory"]) for row in rows]
        answers: Page = core.write(
            op_id,
            lookups.request_digest("take", lookups.put_digest(memories)),
            lambda pending: updates.import_rows(core.view, rows, memories, vectors, core.number),
            now=now,
            spaces={memory.namespace for memory in memories},
            keys=puts.keys(memories),
        )
        return answers

    def touch(self, namespace: str, ids: Sequence[str], *, op_id: str, now: float) -> Json:
        """Count one use of each memory. Returns `{touched, unknown}`."""
        core = self._core
        done = core.kept_results.uses.done(op_id, "touch", namespace)
        rest = [id for id in ids if id not in done]
        reply = core.write(
            op_id,
            lookups.request_digest("touch", namespace, rest),
            lambda pending: updates.touch(core.view, namespace, rest),
            now=now,
            spaces=[namespace],
            shared=[id_key(namespace, id) for id in rest],
        )
        known = {*done, *reply["touched"]}
        return {**reply, "touched": [id for id in ids if id in known]}

    def score(self, namespace: str, scores: Sequence[tuple[str, float]], *, op_id: str, now: float) -> Json:
        """Average measured divergences (nats, signed) into salience. Returns `{scored: {id: salience}, unknown}`. An
        id may occur once a call."""
        core = self._core
        done = core.kept_results.uses.done(op_id, "score", namespace)
        rest = [pair for pair in scores if pair[0] not in done]
        updates.check_scores(rest)
        reply = core.write(
            op_id,
            lookups.request_digest("score", namespace, rest),
            lambda pending: updates.score(core.view, namespace, rest, core.config.salience_rate),
            now=now,
            spaces=[namespace],
            keys=[id_key(namespace, id) for id, _ in rest],
        )
        before = {id: done[id] for id, _ in scores if id in done}
        return {**reply, "scored": before | reply["scored"]}

    # Reading

    def get(self, namespace: str, id: str) -> Json | None:
        """The memory with `statistics`, `anchor`, `shard`, `seq` and `versions`, or None."""
        core = self._core
        with core.view_lock.read():
            entry = core.view.find(namespace, id)
            return core.view.spaces[namespace].describe(entry, core.number) if entry else None

    def history(self, namespace: str, id: str) -> Page | None:
        """Every version of the memory, newest first: `{seq, anchor, written, content}`; None if the id is unknown."""
        core = self._core
        with core.view_lock.read():
            entry = core.view.find(namespace, id)
            return history(entry) if entry else None

    def support(
        self, namespace: str, ids: Sequence[str], *, period: Period
    ) -> dict[str, Sequence[str] | None]:
        """For each of the ids that this shard has (or has as a further telling of a memory) the ids of the memories
        that it was derived from, or None if it does not hold at any time of the period."""
        core = self._core
        found: dict[str, Sequence[str] | None] = {}
        with core.view_lock.read():
            if space := core.space(namespace):
                for id in ids:
                    if entry := space.entries.get(space.told.get(id, id)):
                        here = entry.memory["kind"] != "relational"
                        here = here or space.facts.holds(entry.memory["id"], period)
                        found[id] = sources_of(entry.memory) if here else None
        return found

    def export_rows(self, namespace: str | None = None, *, conversation: str | None = None) -> Rows:
        """Each memory of a namespace, or of all, as a row for `import_rows`; see `transfer.files.export_rows`."""
        core = self._core
        return files.export_rows(core.view, core.view_lock, core.number, namespace, conversation=conversation)

    def statistics(self, namespace: str) -> pa.Table:
        """One row a memory: id, kind, salience, usage, novelty, generation."""
        core = self._core
        with core.view_lock.read():
            entries = core.view.entries(namespace)
        return statistics(entries)  # without the lock

    def weakest(self, namespace: str, n: int, *, now: float) -> Page:
        """The `n` episodes of least retention: `{memory, strength}`, weakest first."""
        core, half_life_s = self._core, self._core.config.strength_half_life_s

        def retention(entry: MemoryState) -> float:
            return entry.retention_at(now, half_life_s)

        with core.view_lock.read():
            entries = core.view.entries(namespace)
        episodes = (entry for entry in entries if entry.memory["kind"] == "episodic")  # without the lock
        found = nsmallest(n, ((retention(entry), entry.seq) for entry in episodes))
        with core.view_lock.read():
            space = core.space(namespace)
            if space is None:
                return []
            left = [(s, space.by_row[row]) for s, row in found if row in space.by_row]
            return [{"memory": space.describe(entry, core.number), "strength": s} for s, entry in left]

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
        """Up to `limit` memories in order of (time, id) behind the cursor `after` (see `cursor_of`). Concurrent
        writes may be included or not."""
        core, keep = self._core, compile_filter(where)
        found: Page = []
        while len(found) < limit:
            with core.view_lock.read():  # a part at a time: a rare match must not keep writers waiting
                space = core.space(namespace)
                if space is None:
                    break
                part = [*islice(space.after(after), LISTED_AT_ONCE)]
                admitted = (
                    space.describe(entry, core.number)
                    for entry in part
                    if kind in (None, entry.memory["kind"])
                    and conversation in (None, entry.memory["conversation"])
                    and keep(space.seen(entry))
                )
                found += islice(admitted, limit - len(found))
            if len(part) < LISTED_AT_ONCE:
                break
            after = cursor_of(part[-1].memory)
        return found
