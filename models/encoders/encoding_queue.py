"""Queue of KV blocks to encode: which exist, which are missing, which an erasure forbids to write again."""

import hashlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from common.config import RecallConfig
from models.encoders.encoders import Encoded, make_encoder
from models.kv import prefix as kv
from models.kv.blocks import BlockStore
from models.kv.quantised import Int8States
from models.text.prompt import PromptBuilder
from models.weights.load import LoadedModel

ENCODE_BATCH = 16
ENCODE_TOKENS = 4096  # of one padded batch

_Key = tuple[str, str, str]  # namespace, memory id, adapter
_Version = tuple[str, str]  # namespace, adapter


@dataclass(frozen=True, kw_only=True)
class RecalledMemory:
    """A memory that recall chose for a request. Lists are ordered by relevance, best first; histories by time."""

    id: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Written(RecalledMemory):
    """A memory and its write: record number `seq` of a shard, under the layout of this generation or a later one."""

    generation: int
    shard: int
    seq: int


@dataclass(frozen=True, kw_only=True)
class Erasure:
    """An erasure: the generation of the layout, and the last record of each shard after the erasure."""

    generation: int = 0
    heads: Mapping[int, int]

    @property
    def mark(self) -> dict[str, Any]:
        """The erasure as JSON, which `of` reads."""
        return {"generation": self.generation, "heads": [*map(list, self.heads.items())]}

    @classmethod
    def of(cls, mark: Mapping[str, Any]) -> "Erasure":
        return cls(generation=mark["generation"], heads={shard: seq for shard, seq in mark["heads"]})

    def precedes(self, write: Written) -> bool:
        if write.generation != self.generation:  # records of different layouts have no order among them
            return write.generation > self.generation
        return write.seq > self.heads.get(write.shard, -1)


class EncodingQueue:
    """Methods without a model are thread-safe; callers that pass a model hold the engine's lock."""

    def __init__(self, loaded: LoadedModel, blocks: BlockStore, recall: RecallConfig) -> None:
        self.builder = PromptBuilder(loaded.tokenizer)
        self.encoder = make_encoder(recall, loaded)
        self._loaded = loaded
        self._blocks = blocks
        self._int8 = recall.block_dtype == "int8"
        self._heads: dict[str, torch.Tensor] = {}
        self._queue: dict[_Key, tuple[str, str]] = {}  # text, fingerprint
        self._histories: dict[_Version, dict[str, str]] = {}  # id -> text, in order of time
        self._unfinished: dict[_Version, None] = {}  # histories with something to encode
        # What may be encoded of ids that were erased: the text that was written since, or none.
        self._erased: dict[tuple[str, str], tuple[Erasure, str | None]] = {}
        self._queue_lock = threading.Lock()

    def fingerprint(self, adapter: str) -> str:
        encoder = f"{self.encoder.label} int8" if self._int8 else self.encoder.label
        config, dtype = self._loaded.model.config, self._loaded.dtype
        return kv.fingerprint(self._loaded.digest, adapter, self.builder.head, config, dtype, encoder)

    @property
    def pending_blocks(self) -> int:
        """Number of queued blocks, plus the number of incomplete histories."""
        return len(self._queue) + len(self._unfinished)

    def next_version(self) -> str | None:
        """The model version whose blocks `encode` should process next."""
        with self._queue_lock:
            return next((key[-1] for key in (*self._queue, *self._unfinished)), None)

    def encode(self, model: Any, version: str, *, limit: int, tokens: int) -> int:
        """Encode up to `limit` queued blocks of this version in one padded batch of at most `tokens` (or one block).
        Returns how many."""
        if self.encoder.history:
            return self._encode_history(model, version, limit, tokens)
        with self._queue_lock:
            queued = [(key, text) for key, text in self._queue.items() if key[2] == version][:limit]
        chosen: list[tuple[_Key, tuple[str, str]]] = []
        ids: list[list[int]] = []
        for key, (text, mark) in queued:
            block = self.builder.memory(text)
            # Padded to the longest, a batch of long memories would take the machine's memory.
            if chosen and (len(chosen) + 1) * max(map(len, [*ids, block])) > tokens:
                break
            chosen.append((key, (text, mark)))
            ids.append(block)
        if not chosen:
            return 0
        encoded = self.encoder.encode(model, self.head(model, version), ids)
        for (key, (text, mark)), block, made in zip(chosen, ids, encoded, strict=True):
            self._put(key[0], RecalledMemory(id=key[1], text=text), mark, block, made)
            with self._queue_lock:
                wanted = self._queue.get(key) == (text, mark)
                if wanted:
                    del self._queue[key]
                wanted = wanted and self._admitted(key[0], RecalledMemory(id=key[1], text=text))
            if not wanted:  # forgotten while it was being encoded
                self._blocks.forget(key[0], [key[1]])
        return len(chosen)

    def _encode_history(self, model: Any, version: str, limit: int, tokens: int) -> int:
        """Encode what is new of a history of this version, up to `limit` blocks and `tokens` (or one block).
        Returns how many."""
        with self._queue_lock:
            space = next((space for space, of in self._unfinished if of == version), None)
            if space is None:
                return 0
            history = [
                RecalledMemory(id=id, text=text) for id, text in self._histories[space, version].items()
            ]
        done = self.known_history(space, history, version)
        chosen: list[RecalledMemory] = []
        ids: list[list[int]] = []
        used = 0
        # What is longer than the context is never asked for.
        left = self._loaded.context_tokens - len(self.builder.head) - sum(len(block.ids) for block in done)
        for memory in history[len(done) : len(done) + limit]:
            block = self.builder.memory(memory.text)
            used += len(block)
            if used > left or (chosen and used > tokens):
                break
            chosen.append(memory)
            ids.append(block)
        if not chosen:
            with self._queue_lock:
                if self._histories.get((space, version)) == {memory.id: memory.text for memory in history}:
                    self._unfinished.pop((space, version), None)
            return self._encode_history(model, version, limit, tokens)  # another namespace's
        encoded = self.encoder.encode(model, kv.laid(self.head(model, version), done).lay(), ids)
        fronts = _fronts([*(block.ids for block in done), *ids])[len(done) :]
        mark, behind = self.fingerprint(version), [memory.id for memory in history[: len(done)]]
        for memory, block, front, made in zip(chosen, ids, fronts, encoded, strict=True):
            self._put(space, memory, mark, block, made, front=front, behind=tuple(behind))
            behind.append(memory.id)
        with self._queue_lock:
            now = self._histories.get((space, version), {})
            kept = {id for id, text in now.items() if self._admitted(space, RecalledMemory(id=id, text=text))}
            behind_now = history[: len(behind)]
            gone = [m.id for m in behind_now if m.id not in kept or now[m.id] != m.text]
        if gone:  # forgotten while it was being encoded: what was encoded behind goes too
            self._blocks.forget(space, gone)
        return len(chosen)

    def _put(
        self,
        namespace: str,
        memory: RecalledMemory,
        mark: str,
        ids: Sequence[int],
        encoded: Encoded,
        *,
        front: str = "",
        behind: tuple[str, ...] = (),
    ) -> None:
        states = Int8States.of(encoded.states) if self._int8 else encoded.states
        block = kv.KVBlock(
            memory_id=memory.id,
            fingerprint=mark,
            ids=tuple(ids),
            text=memory.text,
            states=states,
            width=encoded.width,
            front=front,
            behind=behind,
        )
        self._blocks.put(namespace, block)

    def find_blocks(
        self, namespace: str, memories: Sequence[RecalledMemory], adapter: str
    ) -> list[kv.KVBlock]:
        """Blocks of the memories that have been encoded for this model version, in the given order."""
        mark = self.fingerprint(adapter)
        found = (self._blocks.get(namespace, m.id, mark, self.builder.memory(m.text)) for m in memories)
        return [block for block in found if block is not None]

    def known_history(
        self, namespace: str, history: Sequence[RecalledMemory], adapter: str
    ) -> list[kv.KVBlock]:
        """Blocks of the longest leading part of the history that has been encoded with its current text."""
        mark, found = self.fingerprint(adapter), []
        ids = [self.builder.memory(memory.text) for memory in history]
        for memory, block_ids, front in zip(history, ids, _fronts(ids), strict=True):
            block = self._blocks.get(namespace, memory.id, mark, block_ids, front)
            if block is None:
                break
            found.append(block)
        return found

    def remember(
        self, namespace: str, history: Sequence[RecalledMemory], adapter: str, *, complete: bool
    ) -> None:
        """Record the current history of a namespace; its missing blocks are encoded later."""
        with self._queue_lock:
            kept = {memory.id: memory.text for memory in history if self._admitted(namespace, memory)}
            self._histories[namespace, adapter] = kept
            if not complete and kept:
                self._unfinished[namespace, adapter] = None

    def give_up(self, version: str) -> int:
        """Drop the queued blocks of a version that cannot be encoded. Returns how many."""
        with self._queue_lock:
            dropped = [key for key in self._queue if key[2] == version]
            for key in dropped:
                del self._queue[key]
            histories = [key for key in self._unfinished if key[1] == version]
            for version_key in histories:
                del self._unfinished[version_key]
        return len(dropped) + len(histories)

    def written(self, namespace: str, writes: Iterable[Written]) -> None:
        """Allow memories written after the erasure of their ids to be encoded. A write older than the erasure stays
        blocked, even if it is reported only now."""
        with self._queue_lock:
            for write in writes:
                erased = self._erasure_of(namespace, write.id)
                if erased is not None and erased[0].precedes(write):
                    self._erased[namespace, write.id] = (erased[0], write.text)

    def enqueue(self, namespace: str, memories: Sequence[RecalledMemory], adapter: str) -> None:
        """Queue the missing blocks of these memories for this model version; blocks of a history follow its encoded
        part.

        A memory erased while its request waited is skipped: its text must not be written to disk again.
        """
        mark = self.fingerprint(adapter)
        for memory in memories:
            ids = self.builder.memory(memory.text)
            if len(ids) > self._loaded.context_tokens:
                continue
            if not self.encoder.history and self._blocks.has(namespace, memory.id, mark, ids):
                continue
            with self._queue_lock:
                if not self._admitted(namespace, memory):
                    continue
                if self.encoder.history:
                    self._histories.setdefault((namespace, adapter), {})[memory.id] = memory.text
                    self._unfinished[namespace, adapter] = None
                else:
                    self._queue[(namespace, memory.id, adapter)] = (memory.text, mark)

    def _admitted(self, namespace: str, memory: RecalledMemory) -> bool:
        erased = self._erasure_of(namespace, memory.id)
        return erased is None or erased[1] == memory.text

    def _erasure_of(self, namespace: str, memory_id: str) -> tuple[Erasure, str | None] | None:
        """The entry of `_erased`, or the erasure that another process has recorded."""
        told = self._erased.get((namespace, memory_id))
        mark = self._blocks.erased.get(namespace, memory_id) if told is None else None
        return told if mark is None else (Erasure.of(mark), None)

    def forget(self, namespace: str, memory_ids: Sequence[str], erasure: Erasure | None = None) -> int:
        """Drop queued and stored blocks of these memories, and blocks encoded after them. Returns the number of files
        removed. `erasure` dates the erasure; without it, every later call of `written` counts as newer."""
        ids, erasure = set(memory_ids), erasure or Erasure(heads={})
        with self._queue_lock:
            self._blocks.erased.add(namespace, ids, erasure.mark)
            for id in ids:
                self._erased[namespace, id] = (erasure, None)
            for key in [key for key in self._queue if key[0] == namespace and key[1] in ids]:
                del self._queue[key]
            for version, history in self._histories.items():
                if version[0] == namespace and ids & history.keys():
                    for id in ids:
                        history.pop(id, None)
                    self._unfinished[version] = None
        return self._blocks.forget(namespace, ids)

    def retire(self, adapter: str) -> int:
        """Drop everything that was encoded with a version of the weights that is no longer served. Returns the
        number of files removed."""
        self.give_up(adapter)
        with self._queue_lock:
            self._heads.pop(adapter, None)
            for key in [key for key in self._histories if key[1] == adapter]:
                del self._histories[key]
        return self._blocks.purge(self.fingerprint(adapter))

    def block_counts(self) -> dict[str, int]:
        return self._blocks.counts()

    def head(self, model: Any, adapter: str) -> torch.Tensor:
        """States of the chat template's head for this model version; every prefix begins with them."""
        if adapter not in self._heads:
            self._heads[adapter] = kv.encode_head(model, self.builder.head)
        return self._heads[adapter]


def _fronts(history: Sequence[Sequence[int]]) -> list[str]:
    """For each block of a history the digest of all ids before it, 24 hex digits."""
    total, found = hashlib.blake2b(digest_size=12), []
    for ids in history:
        found.append(total.hexdigest())
        total.update(repr([*ids]).encode())
    return found
