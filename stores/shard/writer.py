"""Everything that changes a shard. Each write is a ticket, which shares its fsync with those of others."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from common.config import StoreConfig
from common.errors import InvalidInput
from stores.index.vectors import Vectors, check_vectors
from stores.log.base import Log
from stores.memory.filters import compile_filter
from stores.memory.memory import Memory, from_json
from stores.snapshots.files import Capture
from stores.snapshots.manager import Snapshots
from stores.view.conversations import Turns
from stores.view.view import View
from stores.writes import lookups, updates, versions
from stores.writes.group_commit import Batcher, Key, Pending, Planned, Sought, Ticket, id_key, space_key
from stores.writes.put import Put
from stores.writes.put import keys as put_keys
from stores.writes.put import sight as put_sight
from stores.writes.versions import Candidate, Weigh

Json = dict[str, Any]
Items = Sequence[tuple[Memory, Vectors]]
Page = list[Json]


class Writes:
    """The half of `Shard` that writes; `Shard` sets these."""

    number: int
    dim: int
    config: StoreConfig
    _view: View
    _log: Log
    _writes: Batcher
    _snapshots: Snapshots
    _capture: Callable[[], Capture]

    def put(self, items: Items, *, op_id: str, now: float, elsewhere: Sequence[float] | None = None) -> Page:
        """Write memories with their embeddings (float32 `[dim]`, unit norm): all of them or none.

        `elsewhere` is each item's highest cosine to its namespace in other shards, which counts in its
        novelty. Raises `Conflict` where an id exists with other content. One answer an item:
        `{id, kind, stored, status, gate: {score, reason}, anchor, shard, seq}`; status is `new`,
        `existing` (written before), `duplicate` (says the same as the memory whose id is given; see
        `twins.py`), `aggregated` (a fact that is there: one more telling of the one whose id is given),
        `routed` (no usable triple: kept as an episode) or `refused` (by the gate).
        """
        memories = [memory for memory, _ in items]
        vectors = check_vectors([vector for _, vector in items], self.dim)
        sought = lookups.sought(memories, vectors)
        return self.write(
            op_id,
            lookups.put_digest(memories),
            lambda pending: Put(
                self._view,
                pending,
                memories,
                sought,
                config=self.config,
                shard=self.number,
                elsewhere=elsewhere,
            ).plan(),
            now=now,
            spaces=sought.namespaces,
            keys=put_keys(memories),
            seeks=sought,
        )

    def sight(self, items: Items, *, op_id: str, now: float) -> list[Json | None]:
        """Count items whose home is another shard but that say the same as a memory here: each one's answer,
        as `put` gives it, or None where nothing here says the same (any more)."""
        memories = [memory for memory, _ in items]
        vectors = check_vectors([vector for _, vector in items], self.dim)
        sought = lookups.sought(memories, vectors)
        answers: list[Json | None] = self.write(
            op_id,
            lookups.request_digest("sight", lookups.put_digest(memories)),
            lambda pending: put_sight(
                self._view, pending, memories, sought, config=self.config, shard=self.number
            ),
            now=now,
            spaces=sought.namespaces,
            seeks=sought,
        )
        return answers

    def supersede(self, memory: Memory, vector: Vectors, *, generation: int, op_id: str, now: float) -> Json:
        """Make `memory` the new version of the one with its id, which must be of this `generation`.

        Raises `NotFound`, or `Conflict` where another version was written meanwhile. Returns `{id, kind,
        stored, status: superseded, anchor, shard, seq, generation, supersedes}`, with `closes` where a
        fact ends others.
        """
        vectors = check_vectors([vector], self.dim)
        request = lookups.request_digest("supersede", lookups.put_digest([memory]), generation)
        return self.write(
            op_id,
            request,
            lambda pending: versions.supersede(
                self._view, pending, memory, vectors[0], generation=generation, shard=self.number
            ),
            now=now,
            owns=[memory.namespace],
        )

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
        """Of several updates of the memory `key` proposed at once, commit the heaviest by `weigh` with its
        anchor, and let the strengths of the others decay (`store.race_decay`).

        `generation` is that of the version they go out from, 0 where there is none; `Conflict` where
        another was written meanwhile. Returns what `supersede` does with `{winner, weights, strength,
        rivals}`, by the ids of the candidates.
        """
        memories = [candidate.memory for candidate in candidates]
        versions.check_candidates(namespace, memories)
        vectors = check_vectors([candidate.vector for candidate in candidates], self.dim)
        request = lookups.request_digest("race", namespace, key, lookups.put_digest(memories), generation)
        return self.write(
            op_id,
            request,
            lambda pending: versions.race(
                self._view,
                pending,
                key,
                candidates,
                vectors,
                generation=generation,
                now=now,
                weigh=weigh,
                decay=self.config.race_decay,
                shard=self.number,
            ),
            now=now,
            owns=[namespace],
        )

    def take(self, carried: Sequence[Json], *, op_id: str, now: float) -> Page:
        """Take over memories of another shard as `entry.carried` gives them, statistics and versions
        included, past the gate: all or none. Raises `Conflict` where an id exists with other content.
        One answer an item: `{id, kind, status: new | existing, anchor, shard, seq}`."""
        vectors = check_vectors([item["vector"] for item in carried], self.dim)
        memories = [from_json(item["memory"]) for item in carried]

        request = lookups.request_digest("take", lookups.put_digest(memories))
        spaces = {memory.namespace for memory in memories}
        return self.write(
            op_id,
            request,
            lambda pending: updates.take(self._view, carried, memories, vectors, self.number),
            now=now,
            spaces=spaces,
            keys=put_keys(memories),
        )

    def touch(self, namespace: str, ids: Sequence[str], *, op_id: str, now: float) -> Json:
        """Count one use of each memory. Returns `{touched, unknown}`."""
        request = lookups.request_digest("touch", namespace, [*ids])
        shared = [id_key(namespace, id) for id in ids]
        return self.write(
            op_id,
            request,
            lambda pending: updates.touch(self._view, namespace, ids),
            now=now,
            spaces=[namespace],
            shared=shared,
        )

    def score(self, namespace: str, scores: Sequence[tuple[str, float]], *, op_id: str, now: float) -> Json:
        """Take measured divergences (nats, signed) into salience. Returns `{scored: {id: salience},
        unknown}`. An id may come once a call."""
        updates.check_scores(scores)
        request = lookups.request_digest("score", namespace, [*scores])
        keys, rate = [id_key(namespace, id) for id, _ in scores], self.config.salience_rate
        return self.write(
            op_id,
            request,
            lambda pending: updates.score(self._view, namespace, scores, rate),
            now=now,
            spaces=[namespace],
            keys=keys,
        )

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

        Content and vectors of every version leave the log, the files on disk and the index, and so do
        turns that say the same (with `everything`, all conversations); digests and anchors stay. A further
        telling of a fact is chosen like a memory, by its own id or fields; the fact is written anew. Of an
        encrypted namespace of which nothing is left the keys are destroyed, and with `everything` all
        those that were used before: copies of its data, wherever they are, can no longer be read.

        The receipt: `{namespace, forgotten: [ids], log_records, versions, index_rows, lexical_docs,
        turns, snapshots, heads: [[shard, seq]], scrubbed, keys_destroyed}`, where what was erased was written no
        later than record `seq`, `scrubbed` is false as long as the disk had no
        room to rewrite the file, and `keys_destroyed` says whether there is no key of the namespace (None
        without encryption). Unknown ids are passed over.
        """
        if (ids is not None) + (where is not None) + bool(everything) != 1:
            raise InvalidInput("forget: give exactly one of ids, filter, all", param="ids")
        keep = None if where is None else compile_filter(where)
        # A digest of the filter would stay, and who guesses it learns what was sought
        request = lookups.request_digest("forget", namespace, ids and [*ids], where is not None, everything)
        old_keys: list[bytes] = []

        def planned(pending: Pending) -> Planned:
            if everything and self._log.ring:
                old_keys.extend(self._log.ring.rotate(namespace))
            erasure = updates.forget(self._view, namespace, ids, keep, self.number)
            snapshots = len(self._snapshots.folders()) if erasure.erase else 0
            # No write of the namespace is in this batch: whatever is erased here is no later than the log's last.
            answer = {**erasure.result, "snapshots": snapshots, "heads": [[self.number, self._log.seq]]}
            return replace(erasure, result=answer, drop=self._told_of(namespace, erasure, ids or ()))

        receipt = self.write(op_id, request, planned, now=now, owns=[namespace])
        return {**receipt, **self._clean_up(namespace, old_keys)}

    def forget_turns(
        self,
        namespace: str,
        *,
        conversations: Sequence[str] | None = None,
        texts: Sequence[str] | None = None,
        op_id: str,
        now: float,
    ) -> Json:
        """Erase whole `conversations`, or the turns that say one of `texts` in any conversation, together
        with what was popped, rewound or dropped there. The receipt: `{namespace, turns, log_records,
        scrubbed, keys_destroyed}`, as `forget` gives it."""
        if (conversations is None) == (texts is None):
            raise InvalidInput("forget_turns: give conversations or texts", param="conversations")

        def planned(pending: Pending) -> Planned:
            space = self._view.spaces.get(namespace)
            turns = space.turns if space else Turns()
            if conversations is not None:
                erasure = updates.forget_conversations(turns, namespace, conversations)
            else:
                erasure = updates.forget_texts(turns, namespace, {text.strip() for text in texts or ()})
            return replace(erasure, drop=self._told_of(namespace, erasure))

        # A digest of the texts would outlive what it is of
        request = lookups.request_digest("forget_turns", namespace, conversations, texts is not None)
        receipt = self.write(op_id, request, planned, now=now, owns=[namespace])
        return {**receipt, **self._clean_up(namespace)}

    def _told_of(self, namespace: str, erasure: Planned, ids: Iterable[str] = ()) -> list[str]:
        """Operations that wrote none of the erased records, but were asked with content that goes. `ids` are
        those to be forgotten, whether they are here or not."""
        gone = {*ids, *updates.named(erasure)}
        if not gone:
            return []
        return [op_id for op_id, result in self._log.results() if gone & updates.unwritten(result)]

    def _clean_up(self, namespace: str, old_keys: Sequence[bytes] = ()) -> Json:
        """See that what an erasure took from the log is nowhere else: scrub, and destroy keys. Where an
        earlier call of this `op_id` failed at it, so much the more."""
        with self._writes.lock:
            self._snapshots.finish_purge()
            scrubbed = self._log.scrub() if self._log.scrub_due else True
            ring, gone = self._log.ring, None
            if ring:
                ring.destroy_keys(old_keys)
                if namespace not in self._view.spaces:
                    ring.destroy(namespace)
                gone = namespace not in ring.namespaces
            return {"scrubbed": scrubbed, "keys_destroyed": gone}

    def rotate_key(self, namespace: str) -> bool:
        """Wrap everything of an encrypted namespace by a fresh data key and destroy the old one; see `Log`."""
        with self._writes.lock, self._snapshots.purging(self._capture):  # they are sealed under the old one
            return self._log.rotate_key(namespace)

    def write(
        self,
        op_id: str,
        request: str,
        planned: Callable[[Pending], Planned],
        *,
        now: float,
        spaces: Iterable[str] = (),
        owns: Iterable[str] = (),
        keys: Iterable[Key] = (),
        shared: Iterable[Key] = (),
        seeks: Sought | None = None,
    ) -> Any:
        """Any write: `planned` says what it does, `request` is a digest of what is asked for.

        `spaces` are the namespaces it touches, `owns` those where it takes memories away or gives them
        other content; for `keys`, `shared` and `seeks` see `batch.py`. Returns the result once it is on disk and
        readers see it; a second call with the same `op_id` returns the first one's.
        """
        ticket = Ticket(
            op_id,
            request,
            planned,
            now=now,
            keys=[*map(space_key, owns), *keys],
            shared=[*map(space_key, spaces), *shared],
            seeks=seeks,
        )
        return self._writes.do(ticket)
