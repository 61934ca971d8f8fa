"""Erasure: forgetting memories and turns, rotating keys, and the probe for what is left."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from common.errors import InvalidInput
from common.types import Json, Page
from stores.erasure.disk_probe import Canaries
from stores.erasure.shard_probe import probe_shard
from stores.memory.filters import compile_filter
from stores.shard.core import ShardCore
from stores.view.conversations import Conversations
from stores.writes import erase, lookups
from stores.writes.group_commit import Pending, Planned
from stores.writes.retell import choose


class Erasure:
    def __init__(self, core: ShardCore) -> None:
        self._core = core

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

        Content and vectors of every version leave the log, the files on disk and the index, and so do turns with the
        same text (with `everything`, all conversations); digests and anchors stay. Of a memory that was told more than
        once each telling is selected by itself, by its own id or fields (`writes.retell`); what is left is kept, if the
        first telling goes under the id of the next one (`kept` in the receipt). When an encrypted
        namespace is empty its keys are destroyed, and with `everything` all its former keys: copies of its data,
        wherever they are, become unreadable.

        The receipt: `{namespace, forgotten: [ids], kept: {id: id}, log_records,
        versions, index_rows, lexical_docs, turns, snapshots,
        heads: [[shard, seq]], scrubbed, keys_destroyed}`. What was erased was written no later than record `seq`;
        `scrubbed` is false while the disk has no room to rewrite the file; `keys_destroyed` is true if the
        namespace has no key left (None without encryption). Unknown ids are ignored.
        """
        if (ids is not None) + (where is not None) + bool(everything) != 1:
            raise InvalidInput("forget: give exactly one of ids, filter, all", param="ids")
        core, keep = self._core, None if where is None else compile_filter(where)
        # A digest of the filter would stay in the log, and a guess of the filter could be tested against it.
        request = lookups.request_digest("forget", namespace, ids and [*ids], where is not None, everything)
        old_keys: list[bytes] = []

        def plan(pending: Pending) -> Planned:
            if everything and core.log.keyring:
                old_keys.extend(core.log.keyring.rotate(namespace))
            erasure = erase.forget(core.view, namespace, ids, keep, core.number)
            snapshots = len(core.snapshots.folders()) if erasure.erase else 0
            # No write of the namespace is in this batch, so everything erased is at or before the log's last record.
            answer = {**erasure.result, "snapshots": snapshots, "heads": [[core.number, core.log.seq]]}
            return replace(erasure, result=answer, drop=self._operations_on(namespace, erasure, ids or ()))

        receipt = core.write(op_id, request, plan, now=now, owns=[namespace])
        return {**receipt, **self.clean_up(namespace, old_keys)}

    def forget_turns(
        self,
        namespace: str,
        *,
        conversations: Sequence[str] | None = None,
        texts: Sequence[str] | None = None,
        op_id: str,
        now: float,
    ) -> Json:
        """Erase whole `conversations`, or the turns whose text is one of `texts` in any conversation, together with
        turns that were popped, rewound or dropped there. The receipt: `{namespace, turns, log_records, scrubbed,
        keys_destroyed}`, as `forget` gives it."""
        if (conversations is None) == (texts is None):
            raise InvalidInput("forget_turns: give conversations or texts", param="conversations")
        core = self._core

        def plan(pending: Pending) -> Planned:
            space = core.space(namespace)
            held = space.conversations if space else Conversations()
            if conversations is not None:
                erasure = erase.forget_conversations(held, namespace, conversations)
            else:
                erasure = erase.forget_texts(held, namespace, {text.strip() for text in texts or ()})
            return replace(erasure, drop=self._operations_on(namespace, erasure))

        # A digest of the texts would outlive the texts.
        request = lookups.request_digest("forget_turns", namespace, conversations, texts is not None)
        receipt = core.write(op_id, request, plan, now=now, owns=[namespace])
        return {**receipt, **self.clean_up(namespace)}

    def texts_of(
        self, namespace: str, *, ids: Sequence[str] | None = None, where: Mapping[str, Any] | None = None
    ) -> list[str]:
        """Texts of the memories that `forget` would erase: turns on other shards may have the same text."""
        core, keep = self._core, compile_filter(where)
        with core.view_lock.read():
            return sorted(choose(core.space(namespace), ids, keep).texts)

    def rotate_key(self, namespace: str) -> bool:
        """Wrap all pieces of an encrypted namespace by a fresh data key and destroy the old one; see `Log`."""
        core = self._core
        with (
            core.commits.lock,
            core.snapshots.purging(core.capture),
        ):  # snapshots are encrypted under the old key
            return core.log.rotate_key(namespace)

    def probe(self, canaries: Canaries) -> Page:
        """Where the canaries are still held; see `stores.erasure.shard_probe`."""
        core = self._core
        return probe_shard(core.log, core.view, core.view_lock, canaries)

    def _operations_on(self, namespace: str, erasure: Planned, ids: Iterable[str] = ()) -> list[str]:
        """Operations that wrote none of the erased records, but whose request or result holds erased content,
        results of pre-reshard operations on the erased memories included. `ids` are those to be forgotten, whether
        this shard holds them or not."""
        gone = {*ids, *erase.named(erasure)}
        if not gone:
            return []
        core = self._core
        own = [op_id for op_id, result in core.log.results() if gone & erase.unwritten(result)]
        return [*own, *core.kept_results.operations_on(namespace, gone)]

    def clean_up(self, namespace: str, old_keys: Sequence[bytes] = ()) -> Json:
        """Remove erased content from files and destroy keys, also where an earlier call with this `op_id` failed."""
        core = self._core
        with core.commits.lock:
            core.snapshots.finish_purge()
            scrubbed = core.log.scrub() if core.log.scrub_due else True
            keyring, gone = core.log.keyring, None
            if keyring:
                keyring.destroy_keys(old_keys)
                if core.space(namespace) is None:
                    keyring.destroy(namespace)
                gone = namespace not in keyring.namespaces
            return {"scrubbed": scrubbed, "keys_destroyed": gone}
