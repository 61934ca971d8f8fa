"""From a request's messages and memories to the prompt that the model runs.

Also the keeper of KV blocks: which are there, which are to be encoded, which must not come back.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from common.config import RecallConfig
from common.errors import InvalidInput
from models import prefix as kv
from models.blocks import BlockStore
from models.load import LoadedModel
from models.prompt import Message, PromptBuilder
from models.turn import Turn
from models.values import Values, values_of

ENCODE_BATCH = 16
ENCODE_TOKENS = 4096  # of one padded batch

_Key = tuple[str, str, str]  # namespace, memory id, adapter


@dataclass(frozen=True, kw_only=True)
class Recalled:
    """A memory that recall chose for this request, most relevant first."""

    id: str
    text: str


@dataclass(frozen=True)
class Prompt:
    """Token ids to run, behind a prefix where there is one. `values` of memories, for those who use them."""

    ids: list[int]
    prefix: kv.Prefix | None = None
    values: Values | None = None

    @property
    def slots(self) -> int:
        """Key/value slots that it fills."""
        return len(self.ids) + (self.prefix.length if self.prefix else 0)


class Injection:
    """Thread-safe where it does not take a model; whoever gives one holds the engine's lock."""

    def __init__(self, loaded: LoadedModel, blocks: BlockStore, recall: RecallConfig) -> None:
        self.builder = PromptBuilder(loaded.tokenizer)
        self.fallbacks = 0
        self._loaded = loaded
        self._blocks = blocks
        self._recall = recall
        self._inverse_frequency = loaded.model.model.rotary_emb.inv_freq
        self._heads: dict[str, torch.Tensor] = {}
        self._queue: dict[_Key, tuple[str, str]] = {}  # text, fingerprint
        self._erased: set[tuple[str, str]] = set()
        self._queue_lock = threading.Lock()

    # Prompts

    def prompt(
        self,
        model: Any,
        messages: Sequence[Message],
        memories: Sequence[Recalled],
        *,
        namespace: str,
        adapter: str,
        max_tokens: int,
        turn: Turn,
    ) -> Prompt:
        """What to run for this request; `turn.mode` says how memories reach the model, `turn` what became of
        it. Raises `InvalidInput` where prompt and answer do not fit the model's context."""
        mode = turn.mode
        if mode == "off" or not memories:
            return self._checked(Prompt(self.builder.plain(messages)), max_tokens, turn)
        tail = self.builder.tail(messages)
        if mode == "hybrid":
            tail = self.builder.memory(memories[0].text) + tail
        memories = self._fitting(memories, mode, len(tail) + max_tokens, turn)
        turn.injected = [memory.id for memory in memories]
        if mode in ("prefix", "hybrid", "values"):
            blocks = self._find_blocks(namespace, memories, adapter)
            if len(blocks) == len(memories):
                values = self._values(blocks)
                if mode == "values":
                    return self._checked(Prompt(self.builder.plain(messages), None, values), max_tokens, turn)
                policy = "none" if mode == "hybrid" else self._recall.reprocess
                head = self._head(model, adapter)
                prefix = kv.assemble(head, blocks, self._inverse_frequency, policy, self._recall.first_k)
                return self._checked(Prompt(tail, prefix, values), max_tokens, turn)
            self.enqueue(namespace, memories, adapter)
            self.fallbacks += 1
            missing = len(memories) - len(blocks)
            turn.fallback = (
                f"text: {missing} of {len(memories)} blocks not encoded yet for this model version; queued"
            )
        # Full history reads in order of time; recalled text as the prefix does, the most relevant last.
        ordered = memories if mode == "full" else memories[::-1]
        text = [token for memory in ordered for token in self.builder.memory(memory.text)]
        return self._checked(Prompt(self.builder.head + text + tail), max_tokens, turn)

    def _fitting(self, memories: Sequence[Recalled], mode: str, others: int, turn: Turn) -> list[Recalled]:
        """As many memories as the context holds: the newest of the full history, else the most relevant."""
        room = self._loaded.context_tokens - len(self.builder.head) - others
        kept: list[Recalled] = []
        for memory in reversed(memories) if mode == "full" else memories:
            room -= len(self.builder.memory(memory.text))
            if room < 0:
                turn.fallback = f"kept {len(kept)} of {len(memories)} memories: the model's context is full"
                break
            kept.append(memory)
        return kept[::-1] if mode == "full" else kept

    def _values(self, blocks: Sequence[kv.KVBlock]) -> Values | None:
        if not (self._recall.bias or self._recall.overlay):
            return None
        return values_of(blocks, self._loaded.model.config, self._loaded.device)

    def _find_blocks(self, namespace: str, memories: Sequence[Recalled], adapter: str) -> list[kv.KVBlock]:
        mark = self.fingerprint(adapter)
        found = (self._blocks.get(namespace, m.id, mark, self.builder.memory(m.text)) for m in memories)
        return [block for block in found if block is not None]

    def _checked(self, prompt: Prompt, max_tokens: int, turn: Turn) -> Prompt:
        total, limit = prompt.slots + max_tokens, self._loaded.context_tokens
        if total > limit:
            raise InvalidInput(
                f"prompt and answer need {total} tokens, the model's context holds {limit}; shorten messages or "
                "lower max_tokens",
                param="messages",
                code="context_length_exceeded",
            )
        again = len(prompt.prefix.again) if prompt.prefix else 0
        turn.prompt_tokens = len(prompt.ids) + again
        turn.prefix_tokens = prompt.slots - turn.prompt_tokens
        return prompt

    def _head(self, model: Any, adapter: str) -> torch.Tensor:
        if adapter not in self._heads:
            self._heads[adapter] = kv.encode_head(model, self.builder.head)
        return self._heads[adapter]

    # Blocks

    def fingerprint(self, adapter: str) -> str:
        return kv.fingerprint(
            self._loaded.digest, adapter, self.builder.head, self._loaded.model.config, self._loaded.dtype
        )

    @property
    def pending_blocks(self) -> int:
        return len(self._queue)

    def next_version(self) -> str | None:
        """The model version whose blocks `encode` takes next."""
        with self._queue_lock:
            return next((key[2] for key in self._queue), None)

    def encode(self, model: Any, version: str, *, limit: int, tokens: int) -> int:
        """Encode up to `limit` queued blocks of this version, as a padded batch of `tokens` (or of one block).
        Returns how many."""
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
        encoded = kv.encode_blocks(model, self._head(model, version), ids)
        for (key, (text, mark)), block, states in zip(chosen, ids, encoded, strict=True):
            self._blocks.put(key[0], kv.KVBlock(key[1], mark, tuple(block), text, states))
            with self._queue_lock:
                forgotten = self._queue.pop(key, None) is None
            if forgotten:  # while it was being encoded
                self._blocks.forget(key[0], [key[1]])
        return len(chosen)

    def give_up(self, version: str) -> int:
        """Drop the queued blocks of a version that cannot be encoded. Returns how many."""
        with self._queue_lock:
            dropped = [key for key in self._queue if key[2] == version]
            for key in dropped:
                del self._queue[key]
        return len(dropped)

    def written(self, namespace: str, memory_ids: Sequence[str]) -> None:
        """These ids hold content (again): their blocks may be encoded."""
        with self._queue_lock:
            self._erased -= {(namespace, id) for id in memory_ids}

    def enqueue(self, namespace: str, memories: Sequence[Recalled], adapter: str) -> None:
        """Have these memories' blocks encoded for this model version, where they are not yet.

        A memory erased while its request waited is passed over: its text must not come back to the disk.
        """
        mark = self.fingerprint(adapter)
        for memory in memories:
            ids = self.builder.memory(memory.text)
            if len(ids) > self._loaded.context_tokens or self._blocks.has(namespace, memory.id, mark, ids):
                continue
            with self._queue_lock:
                if (namespace, memory.id) not in self._erased:
                    self._queue[(namespace, memory.id, adapter)] = (memory.text, mark)

    def forget(self, namespace: str, memory_ids: Sequence[str]) -> int:
        """Drop queued and stored blocks of these memories. Returns the number of files removed."""
        ids = set(memory_ids)
        with self._queue_lock:
            self._erased |= {(namespace, id) for id in ids}
            for key in [key for key in self._queue if key[0] == namespace and key[1] in ids]:
                del self._queue[key]
        return self._blocks.forget(namespace, ids)
