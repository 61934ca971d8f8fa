"""Build the prompt that the model runs from a request's messages and memories.

`models.encoders.encoding_queue` keeps the KV blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from common.config import RecallConfig
from common.errors import InvalidInput
from models.encoders.encoding_queue import EncodingQueue, RecalledMemory
from models.engine.bias_overlay import Values, values_of
from models.engine.generation_stats import MOST_ATTRIBUTED, GenerationStats
from models.kv import prefix as kv
from models.text.messages import Messages
from models.text.tools import Tool
from models.weights.load import LoadedModel


@dataclass(frozen=True)
class Prompt:
    """Token ids to run, an optional prefix before them, and `values` of memories for bias and overlay. `hideable`: the
    same prompt as a prefix whose owners are the injected memories and the ids behind it, for attribution."""

    ids: list[int]
    prefix: kv.Prefix | None = None
    values: Values | None = None
    hideable: tuple[kv.Prefix, list[int]] | None = None

    @property
    def slots(self) -> int:
        """Number of key/value slots that the prompt fills."""
        return self.tokens + (self.prefix.slots if self.prefix else 0)

    @property
    def tokens(self) -> int:
        """Number of tokens to run: its own, and the recomputed ones of memories."""
        return len(self.ids) + (len(self.prefix.again) if self.prefix else 0)

    @property
    def length(self) -> int:
        """Number of positions; equals `slots` unless the encoder keeps fewer slots than positions."""
        return len(self.ids) + (self.prefix.length if self.prefix else 0)


class Injection:
    """Builds prompts. Methods without a model are thread-safe; callers that pass a model hold the engine's lock.
    `queue` keeps the blocks and encodes missing ones."""

    def __init__(self, loaded: LoadedModel, queue: EncodingQueue, recall: RecallConfig) -> None:
        self._loaded = loaded
        self._queue = queue
        self._builder = queue.builder
        self.fallbacks = 0
        self._recall = recall
        self._policy = kv.Policy(kind=recall.reprocess, first_k=recall.first_k, best=recall.best)
        self._inverse_frequency = loaded.model.model.rotary_emb.inv_freq

    def prompt(
        self,
        model: Any,
        messages: Messages,
        memories: Sequence[RecalledMemory],
        *,
        namespace: str,
        adapter: str,
        max_tokens: int,
        turn: GenerationStats,
        tools: Sequence[Tool] = (),
        attribute: bool = False,
    ) -> Prompt:
        """Build the prompt of a request in mode `turn.mode`; records the outcome in `turn`. Raises `InvalidInput` if
        prompt and answer exceed the model's context, and where `attribute` cannot be done."""
        mode = turn.mode
        if attribute:
            self._check_attribution(mode, len(memories))
        if mode == "off" or not memories:
            return self._checked(Prompt(self._builder.plain(messages, tools)), max_tokens, turn)
        tail = self._builder.tail(messages, tools)
        if mode == "hybrid":
            if self._queue.encoder.history:
                raise InvalidInput(
                    "memory.mode hybrid needs blocks of their own; recall.encoder kv_exact has a history: use prefix",
                    param="memory.mode",
                )
            best = self._builder.memory(memories[0].text)
        by_time = mode == "full" or (mode == "prefix" and self._queue.encoder.history)
        again = len(best) if mode == "hybrid" else 0
        memories = self._fitting(memories, by_time, again + len(tail) + max_tokens, turn)
        turn.injected = [memory.id for memory in memories]
        if mode == "prefix" and self._queue.encoder.history:
            prompt = self._behind_history(model, memories, tail, namespace, adapter, turn)
            return self._checked(prompt, max_tokens, turn)
        if mode in ("prefix", "hybrid", "values"):
            blocks = self._queue.find_blocks(namespace, memories, adapter)
            if len(blocks) == len(memories):
                values = self._values(blocks)
                if mode == "values":
                    return self._checked(
                        Prompt(self._builder.plain(messages, tools), None, values), max_tokens, turn
                    )
                policy = kv.INDEPENDENT if mode == "hybrid" else self._policy
                head = self._queue.head(model, adapter)
                prefix = kv.assemble(head, blocks, self._inverse_frequency, policy)
                if mode == "hybrid" and memories:
                    prefix = kv.followed(prefix, [(0, best)])
                hideable = (prefix, tail) if attribute else None
                return self._checked(Prompt(tail, prefix, values, hideable), max_tokens, turn)
            self._queue.enqueue(namespace, memories, adapter)
            self.fallbacks += 1
            missing = len(memories) - len(blocks)
            turn.fallback = (
                f"text: {missing} of {len(memories)} blocks not encoded yet for this model version; queued"
            )
        # Full history reads in order of time; recalled text as the prefix does, the most relevant last.
        ordered = memories if mode == "full" else memories[::-1]
        texts = [(memories.index(memory), self._builder.memory(memory.text)) for memory in ordered]
        ids = self._builder.head + [token for _, text in texts for token in text] + tail
        if not attribute:
            return self._checked(Prompt(ids), max_tokens, turn)
        head = kv.assemble(self._queue.head(model, adapter), [], self._inverse_frequency, kv.INDEPENDENT)
        return self._checked(Prompt(ids, hideable=(kv.followed(head, texts), tail)), max_tokens, turn)

    def _check_attribution(self, mode: str, memories: int) -> None:
        if self._queue.encoder.history and mode == "prefix":
            reason = (
                "recall.encoder kv_exact encodes memories together, so that none can be hidden; use mode text"
            )
        elif mode == "values" or self._recall.bias or self._recall.overlay:
            reason = "recall.bias and recall.overlay have no memory that could be hidden alone; set them to 0"
        elif memories > MOST_ATTRIBUTED:
            reason = (
                f"{memories} memories, at most {MOST_ATTRIBUTED} can be hidden one by one; lower memory.k"
            )
        else:
            return
        raise InvalidInput(f"memory.attribute: {reason}", param="memory.attribute")

    def _behind_history(
        self,
        model: Any,
        memories: Sequence[RecalledMemory],
        tail: list[int],
        namespace: str,
        adapter: str,
        turn: GenerationStats,
    ) -> Prompt:
        """The states of as much of the history as there are; the rest of it runs as text, now and not again."""
        known = self._queue.known_history(namespace, memories, adapter)
        new = memories[len(known) :]
        self._queue.remember(namespace, memories, adapter, complete=not new)
        if new:
            self.fallbacks += 1
            rest = f"the last {len(new)} of {len(memories)} blocks"
            turn.fallback = f"text: {rest} not encoded yet for this model version; queued"
        text = [token for memory in new for token in self._builder.memory(memory.text)]
        return Prompt(text + tail, kv.laid(self._queue.head(model, adapter), known))

    def _fitting(
        self, memories: Sequence[RecalledMemory], by_time: bool, others: int, turn: GenerationStats
    ) -> list[RecalledMemory]:
        """As many memories as the context holds: the newest of those in order of time, else the most relevant."""
        room = self._loaded.context_tokens - len(self._builder.head) - others
        sizes = [len(self._builder.memory(memory.text)) for memory in memories]
        if by_time and self._queue.encoder.history and sum(sizes) > room:
            # Where a history begins decides all its states: it moves by a quarter of the context at a time.
            quarter = self._loaded.context_tokens // 4
            room = sum(sizes) + quarter * ((room - sum(sizes)) // quarter)
        kept: list[RecalledMemory] = []
        for memory, size in list(zip(memories, sizes, strict=True))[:: -1 if by_time else 1]:
            room -= size
            if room < 0:
                turn.fallback = f"kept {len(kept)} of {len(memories)} memories: the model's context is full"
                break
            kept.append(memory)
        return kept[::-1] if by_time else kept

    def _values(self, blocks: Sequence[kv.KVBlock]) -> Values | None:
        if not (self._recall.bias or self._recall.overlay):
            return None
        return values_of(blocks, self._loaded.model.config, self._loaded.device)

    def _checked(self, prompt: Prompt, max_tokens: int, turn: GenerationStats) -> Prompt:
        total, limit = prompt.length + max_tokens, self._loaded.context_tokens
        if total > limit:
            raise InvalidInput(
                f"prompt and answer need {total} tokens, the model's context holds {limit}; shorten messages or "
                "lower max_tokens",
                param="messages",
                code="context_length_exceeded",
            )
        turn.prompt_tokens = prompt.tokens
        turn.prefix_tokens = prompt.slots - prompt.tokens
        return prompt
