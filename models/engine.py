"""From messages and memories to an answer.

`Engine.answer` names the stages: render, resolve the weights, build the prompt, prefill, decode. One request at a
time holds the model (`_lock`); KV blocks that a request missed are encoded in the gaps by `encode_some`.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from common.config import RecallConfig
from common.errors import InvalidInput
from models import prefix as kv
from models.blocks import BlockStore
from models.load import LoadedModel
from models.prompt import Message, PromptBuilder
from models.sampling import Sampling, TextStream, choose
from models.weights import Weights

ENCODE_BATCH = 16
ENCODE_TOKENS = 4096  # of one padded batch


@dataclass(frozen=True, kw_only=True)
class Recalled:
    """A memory that recall chose for this request, most relevant first."""

    id: str
    text: str


@dataclass(kw_only=True)
class Turn:
    """What happened in one request; filled in as it runs."""

    mode: str
    injected: list[str] = field(default_factory=list)
    prefix_tokens: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    fallback: str | None = None
    finish_reason: str = "length"
    generate_s: float = 0.0
    prefill_s: float = 0.0


@dataclass(frozen=True)
class _Prompt:
    ids: list[int]
    prefix: kv.Prefix | None = None


class Engine:
    """The prefix engine of one replica."""

    def __init__(
        self, loaded: LoadedModel, weights: Weights, blocks: BlockStore, recall: RecallConfig
    ) -> None:
        self.loaded = loaded
        self.builder = PromptBuilder(loaded.tokenizer)
        self._weights = weights
        self._blocks = blocks
        self._recall = recall
        self._inverse_frequency = loaded.model.model.rotary_emb.inv_freq
        self._heads: dict[str, torch.Tensor] = {}
        self._queue: dict[tuple[str, str, str], tuple[str, str]] = {}
        self._erased: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._queue_lock = threading.Lock()
        self.fallbacks = 0

    def answer(
        self,
        messages: Sequence[Message],
        memories: Sequence[Recalled],
        *,
        namespace: str,
        mode: str,
        adapter: str,
        sampling: Sampling,
        turn: Turn,
    ) -> Iterator[str]:
        """Yield the answer's text as it grows; `turn` tells the rest.

        `memories` come most relevant first (`full`: in order of time). Raises `InvalidInput` where the prompt and
        the answer do not fit the model's context.
        """
        with self._lock, self._weights.using(adapter) as model:
            started = time.perf_counter()
            prompt = self._prompt(
                model, messages, memories, namespace, mode, adapter, sampling.max_tokens, turn
            )
            cache, logits, position = kv.prefill(model, prompt.prefix, prompt.ids)
            turn.prefill_s = time.perf_counter() - started
            yield from self._decode(model, cache, logits, position, sampling, turn)
            turn.generate_s = time.perf_counter() - started

    def encode_some(self, limit: int = ENCODE_BATCH) -> int:
        """Encode up to `limit` queued blocks of one model version. Returns how many; call until 0."""
        with self._queue_lock:
            version = next((key[2] for key in self._queue), None)
            queued = [(key, text) for key, text in self._queue.items() if key[2] == version][:limit]
        if not queued:
            return 0
        chosen: list[tuple[tuple[str, str, str], tuple[str, str]]] = []
        ids: list[list[int]] = []
        for key, (text, mark) in queued:
            tokens = self.builder.memory(text)
            # Padded to the longest, a batch of long memories would take the machine's memory.
            if chosen and (len(chosen) + 1) * max(map(len, [*ids, tokens])) > ENCODE_TOKENS:
                break
            chosen.append((key, (text, mark)))
            ids.append(tokens)
        with self._lock, self._weights.using(str(version)) as model:
            encoded = kv.encode_blocks(model, self._head(model, str(version)), ids)
        for (key, (text, mark)), tokens, states in zip(chosen, ids, encoded, strict=True):
            self._blocks.put(key[0], kv.KVBlock(key[1], mark, tuple(tokens), text, states))
            with self._queue_lock:
                forgotten = self._queue.pop(key, None) is None
            if forgotten:  # while it was being encoded
                self._blocks.forget(key[0], [key[1]])
        return len(chosen)

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
            if len(ids) > self.loaded.context_tokens or self._blocks.has(namespace, memory.id, mark, ids):
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

    def give_up(self) -> int:
        """Drop the queued blocks of the version that `encode_some` would take next. Returns how many."""
        with self._queue_lock:
            version = next((key[2] for key in self._queue), None)
            dropped = [key for key in self._queue if key[2] == version]
            for key in dropped:
                del self._queue[key]
        return len(dropped)

    @property
    def pending_blocks(self) -> int:
        return len(self._queue)

    def fingerprint(self, adapter: str) -> str:
        return kv.fingerprint(
            self.loaded.digest, adapter, self.builder.head, self.loaded.model.config, self.loaded.dtype
        )

    def score(self, messages: Sequence[Message], adapter: str) -> list[dict[str, Any]]:
        """Log-probability of each assistant message given what came before it; see `models.scoring`."""
        from models.scoring import score_transcript

        transcript = self.builder.transcript(messages, memories=False)
        if len(transcript.tail) > self.loaded.context_tokens:
            raise InvalidInput(
                f"messages need {len(transcript.tail)} tokens, the model's context holds "
                f"{self.loaded.context_tokens}; shorten them",
                param="messages",
                code="context_length_exceeded",
            )
        with self._lock, self._weights.using(adapter) as model:
            return score_transcript(model, transcript)

    def _prompt(
        self,
        model: Any,
        messages: Sequence[Message],
        memories: Sequence[Recalled],
        namespace: str,
        mode: str,
        adapter: str,
        max_tokens: int,
        turn: Turn,
    ) -> _Prompt:
        if mode == "off" or not memories:
            return self._checked(_Prompt(self.builder.plain(messages)), max_tokens, turn)
        tail = self.builder.tail(messages)
        if mode == "hybrid":
            tail = self.builder.memory(memories[0].text) + tail
        memories = self._fitting(memories, mode, len(tail) + max_tokens, turn)
        turn.injected = [memory.id for memory in memories]
        if mode in ("prefix", "hybrid"):
            blocks = self._find_blocks(namespace, memories, adapter)
            if len(blocks) == len(memories):
                policy = "none" if mode == "hybrid" else self._recall.reprocess
                head = self._head(model, adapter)
                prefix = kv.assemble(head, blocks, self._inverse_frequency, policy, self._recall.first_k)
                return self._checked(_Prompt(tail, prefix), max_tokens, turn)
            self.enqueue(namespace, memories, adapter)
            self.fallbacks += 1
            missing = len(memories) - len(blocks)
            turn.fallback = (
                f"text: {missing} of {len(memories)} blocks not encoded yet for this model version; queued"
            )
        # Full history reads in order of time; recalled text as the prefix does, the most relevant last.
        ordered = memories if mode == "full" else memories[::-1]
        text = [token for memory in ordered for token in self.builder.memory(memory.text)]
        return self._checked(_Prompt(self.builder.head + text + tail), max_tokens, turn)

    def _fitting(self, memories: Sequence[Recalled], mode: str, others: int, turn: Turn) -> list[Recalled]:
        """As many memories as the context holds: the newest of the full history, else the most relevant."""
        room = self.loaded.context_tokens - len(self.builder.head) - others
        kept: list[Recalled] = []
        for memory in reversed(memories) if mode == "full" else memories:
            room -= len(self.builder.memory(memory.text))
            if room < 0:
                turn.fallback = f"kept {len(kept)} of {len(memories)} memories: the model's context is full"
                break
            kept.append(memory)
        return kept[::-1] if mode == "full" else kept

    def _find_blocks(self, namespace: str, memories: Sequence[Recalled], adapter: str) -> list[kv.KVBlock]:
        mark = self.fingerprint(adapter)
        found = (self._blocks.get(namespace, m.id, mark, self.builder.memory(m.text)) for m in memories)
        return [block for block in found if block is not None]

    def _checked(self, prompt: _Prompt, max_tokens: int, turn: Turn) -> _Prompt:
        slots = prompt.prefix.length if prompt.prefix else 0
        again = len(prompt.prefix.again) if prompt.prefix else 0
        total, limit = slots + len(prompt.ids) + max_tokens, self.loaded.context_tokens
        if total > limit:
            raise InvalidInput(
                f"prompt and answer need {total} tokens, the model's context holds {limit}; shorten messages or "
                "lower max_tokens",
                param="messages",
                code="context_length_exceeded",
            )
        turn.prompt_tokens = len(prompt.ids) + again
        turn.prefix_tokens = slots - again
        return prompt

    def _head(self, model: Any, adapter: str) -> torch.Tensor:
        if adapter not in self._heads:
            self._heads[adapter] = kv.encode_head(model, self.builder.head)
        return self._heads[adapter]

    def _decode(
        self, model: Any, cache: Any, logits: torch.Tensor, position: int, sampling: Sampling, turn: Turn
    ) -> Iterator[str]:
        stream = TextStream(self.loaded.tokenizer, sampling.stop)
        generator = sampling.generator()
        for _ in range(sampling.max_tokens):
            token = choose(logits, sampling, generator)
            if token in self.loaded.end_ids:
                turn.finish_reason = "stop"
                break
            turn.completion_tokens += 1
            if piece := stream.push(token):
                yield piece
            if stream.stopped:
                turn.finish_reason = "stop"
                return
            if turn.completion_tokens < sampling.max_tokens:
                logits = kv.step(model, cache, token, position)
                position += 1
        if piece := stream.finish():
            yield piece
