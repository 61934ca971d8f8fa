"""Continuous batching: requests with different memories and model versions answer together.

`Engine.step` is the loop's body: prefill whoever waits, a bounded part at a time; then one token of everyone
who runs, in one forward pass; and, when there is time, encode memories that have no KV block yet. Requests join
and leave between steps. `answer` drives it for one request; `serve.replicas` for many.
"""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from common.config import RecallConfig, ServeConfig
from common.errors import InvalidInput
from models.encoders.encoding_queue import ENCODE_BATCH, ENCODE_TOKENS, Recalled
from models.engine.bias_overlay import Overlay, logit_bias
from models.engine.cuda_graphs import Filling, FixedShapes, cuda_graph
from models.engine.generation_stats import Turn
from models.engine.injection import Injection, Prompt
from models.engine.kv_cache import KVTable, Pass
from models.engine.request import Answer
from models.engine.sampling import Sampling
from models.kv.blocks import BlockStore
from models.kv.prefix import Prefill
from models.text.messages import Conversation, Message
from models.weights.load import LoadedModel
from models.weights.versions import Weights

ENCODE_EVERY = 16  # steps between two batches of blocks while requests run
PREFILL_ALONE = 2048  # tokens of prompts in a step while nobody waits for a next token


class Engine:
    """One replica's model and all that it is answering. Thread-safe: one step at a time holds the model."""

    def __init__(
        self,
        loaded: LoadedModel,
        weights: Weights,
        blocks: BlockStore,
        recall: RecallConfig,
        serve: ServeConfig | None = None,
    ) -> None:
        self.loaded = loaded
        self.memories = Injection(loaded, blocks, recall)
        self.steps = 0
        self.encode_failures = 0
        self.encode_error: Exception | None = None
        self._weights = weights
        self._serve = serve or ServeConfig()
        self._table = KVTable(self._serve.kv_cache_bytes)
        self._bias = recall.bias
        self._overlay = Overlay(loaded.model, recall.overlay) if recall.overlay else None
        # An overlay's vectors are other ones at every pass, which a graph would not notice.
        graphs = loaded.device.type == "cuda" and self._serve.cuda_graphs and not self._overlay
        self._fixed = FixedShapes(loaded.model, cuda_graph) if graphs else None
        self._waiting: deque[Answer] = deque()
        self._filling: Answer | None = None
        self._running: list[Answer] = []  # by row of the table
        self._lock = threading.Lock()

    def submit(
        self,
        messages: Conversation,
        memories: Sequence[Recalled],
        *,
        namespace: str,
        adapter: str,
        sampling: Sampling,
        turn: Turn,
    ) -> Answer:
        """Queue a request. `memories` come most relevant first (mode `full`: in order of time).

        Raises `InvalidInput` where prompt and answer do not fit the model's context or the KV cache, `NotFound`
        for a version that does not exist.
        """
        with self._lock:
            self._weights.hold(adapter)
            try:
                with self._weights.using(adapter) as model:
                    prompt = self.memories.prompt(
                        model,
                        messages,
                        memories,
                        namespace=namespace,
                        adapter=adapter,
                        max_tokens=sampling.max_tokens,
                        turn=turn,
                    )
                answer = Answer(
                    prompt,
                    adapter=adapter,
                    sampling=sampling,
                    turn=turn,
                    tokenizer=self.loaded.tokenizer,
                    ends=self.loaded.end_ids,
                )
                self._check_room(answer.slots)
                if prompt.values is not None and self._bias:
                    with self._weights.using(adapter) as model:
                        answer.bias = logit_bias(model, prompt.values, self._bias)
            except BaseException:
                self._weights.release(adapter)
                raise
            self._waiting.append(answer)
            return answer

    def step(self) -> list[Answer]:
        """Do what is due; returns the answers that have news. Nothing is due where not `busy`."""
        with self._lock:
            self.steps += 1
            heard = [*self._prefill(), *self._decode()]
            # Otherwise somebody waits for what this step has brought, or for the rest of a prompt.
            if not (heard or self._requests) or self.steps % ENCODE_EVERY == 0:
                self._encode()
            return heard

    def cancel(self, answer: Answer) -> None:
        """Its client has gone: stop working on it, whatever its state."""
        with self._lock:
            if answer in self._waiting:
                self._waiting.remove(answer)
            elif answer is self._filling:
                self._filling = answer.prefill = None
            elif answer in self._running:
                self._leave(self._running.index(answer))
            else:
                return
            self._weights.release(answer.adapter)

    def answer(
        self,
        messages: Conversation,
        memories: Sequence[Recalled],
        *,
        namespace: str,
        adapter: str,
        sampling: Sampling,
        turn: Turn,
    ) -> Iterator[str]:
        """Yield one request's text as it grows; `turn` tells the rest. Others may run beside it."""
        answer = self.submit(
            messages, memories, namespace=namespace, adapter=adapter, sampling=sampling, turn=turn
        )
        try:
            while not answer.done:
                self.step()
                while answer.pieces:
                    yield answer.pieces.popleft()
        finally:
            self.cancel(answer)
        if answer.error is not None:
            raise answer.error

    @property
    def busy(self) -> bool:
        return bool(self._requests or self.memories.pending_blocks)

    @property
    def _requests(self) -> int:
        return len(self._waiting) + len(self._running) + (self._filling is not None)

    def status(self) -> dict[str, Any]:
        encoder = self.memories.encoder
        return {
            "waiting": len(self._waiting),
            "running": len(self._running) + (self._filling is not None),
            "kv_cache_bytes": self._table.size_bytes,
            "graphs": self._fixed.status() if self._fixed else None,
            "pending_blocks": self.memories.pending_blocks,
            "fallbacks": self.memories.fallbacks,
            "encode_failures": self.encode_failures,
            "encoder": {
                "name": encoder.label,
                "report": encoder.report.to_dict() if encoder.report else None,
            },
            "blocks": self.memories.block_counts(),
        }

    def enqueue(self, namespace: str, memories: Sequence[Recalled], adapter: str) -> None:
        """See `Injection.enqueue`; for a version that has retired meanwhile there is nothing to encode."""
        if self._weights.exists(adapter):
            self.memories.enqueue(namespace, memories, adapter)

    def retire(self, adapter: str) -> int:
        """Drop what was made for a version that is gone from the disk; requests that run keep its weights.
        Returns the number of KV block files removed."""
        with self._lock:
            self._weights.retire(adapter)
            return self.memories.retire(adapter)

    def encode_some(self) -> int:
        """Encode a batch of queued blocks. Returns how many; call until 0."""
        with self._lock:
            return self._encode()

    def score(self, messages: Sequence[Message], adapter: str) -> list[dict[str, Any]]:
        """Log-probability of each assistant message given what came before it; see `models.scoring`."""
        from models.scoring.leave_one_out import score_transcript

        transcript = self.memories.builder.transcript(messages, memories=False)
        if len(transcript.tail) > self.loaded.context_tokens:
            raise InvalidInput(
                f"messages need {len(transcript.tail)} tokens, the model's context holds "
                f"{self.loaded.context_tokens}; shorten them",
                param="messages",
                code="context_length_exceeded",
            )
        with self._lock, self._weights.using(adapter) as model:
            return score_transcript(model, transcript)

    def _check_room(self, slots: int) -> None:
        """Alone in the table, every request that is let in must fit: else it would wait for ever."""
        need = KVTable.bytes_for(slots, self.loaded.model.config, self.loaded.dtype)
        if need > self._serve.kv_cache_bytes:
            raise InvalidInput(
                f"prompt and answer need {need} bytes of KV cache, serve.kv_cache_bytes is "
                f"{self._serve.kv_cache_bytes}; shorten messages, lower max_tokens, or raise it",
                param="messages",
                code="kv_cache_exceeded",
            )

    def _prefill(self) -> list[Answer]:
        """Run prompts, up to `serve.prefill_tokens` of them while others wait for their next token."""
        heard: list[Answer] = []
        room = self._serve.prefill_tokens if self._running else PREFILL_ALONE
        while room > 0 and (answer := self._next_to_fill()):
            try:
                prefill = answer.prefill or answer.begin(self._begin)
                with self._weights.using(answer.adapter) as model, self._overlaid([answer]):
                    room -= prefill.advance(model, room)
                if not prefill.done:
                    break
                self._filling = None
                answer.first(prefill.logits, prefill.position)
                if not answer.done:
                    self._table.join(prefill.states, answer.slots)
                    self._running.append(answer)
            except Exception as error:
                self._filling = None
                answer.fail(error)
            if answer.done:
                self._weights.release(answer.adapter)
            heard.append(answer)
        return heard

    def _begin(self, prompt: Prompt, adapter: str) -> Prefill | Filling:
        fixed = self._fixed.filling(prompt, self._weights.load_of(adapter)) if self._fixed else None
        return fixed or Prefill(prompt.prefix, prompt.ids, self.loaded.model.config)

    def _next_to_fill(self) -> Answer | None:
        """The request being prefilled, else the first that waits, once there is a row and room for it."""
        if self._filling is None and self._waiting and len(self._running) < self._serve.max_batch:
            config, dtype = self.loaded.model.config, self.loaded.dtype
            if not self._running or self._table.fits(self._waiting[0].slots, config, dtype):
                self._filling = self._waiting.popleft()
        return self._filling

    @torch.inference_mode()
    def _decode(self) -> list[Answer]:
        """One more token of every running request, in one pass."""
        if not self._running:
            return []
        heard = [*self._running]
        try:
            logits = self._pass(heard)
            for answer, row, best in zip(heard, logits, logits.argmax(-1).tolist(), strict=True):
                answer.next(row, best)
        except Exception as error:  # half a step: what the rows hold is unknown
            for answer in heard:
                answer.fail(error)
                self._weights.release(answer.adapter)
            self._running.clear()
            self._table.clear()
            return heard
        for row in reversed(range(len(heard))):
            if heard[row].done:
                self._leave(row)
                self._weights.release(heard[row].adapter)
        return heard

    def _pass(self, answers: Sequence[Answer]) -> Tensor:
        """Logits behind the last token of each, `[rows, vocabulary]`, which stand until the next pass."""
        adapter = answers[0].adapter
        one_version = all(answer.adapter == adapter for answer in answers)
        ids, positions = [answer.token for answer in answers], [answer.position for answer in answers]

        def forward(chosen: Pass, states: Tensor) -> Tensor:
            with (
                self._weights.mixed([answer.adapter for answer in answers]) as model,
                self._overlaid(answers),
            ):
                return chosen.run(model, states)

        if self._fixed and one_version:
            return self._fixed.decode(forward, self._weights.load_of(adapter), self._table, ids, positions)
        if (
            self._fixed
        ):  # PEFT runs a batch of several versions by lists of its rows, which a graph would not notice
            self._fixed.mixed += 1
        states, new = self._table.begin_pass(ids, positions)
        chosen = Pass(len(answers), 1, new.slots, states.device)
        chosen.give(new)
        return forward(chosen, states)

    def _overlaid(self, answers: Sequence[Answer]) -> AbstractContextManager[None]:
        """Around a forward pass with a row for each of these."""
        return self._overlay.rows([a.prompt.values for a in answers]) if self._overlay else nullcontext()

    def _leave(self, row: int) -> None:
        self._table.leave(row)
        last = self._running.pop()
        if row < len(self._running):
            self._running[row] = last

    def _encode(self) -> int:
        """A batch of queued blocks of one version; smaller while requests run. One version's trouble must not
        keep the others waiting: its blocks are dropped, and counted."""
        version = self.memories.next_version()
        if version is None:
            return 0
        tokens = self._serve.prefill_tokens if self._requests else ENCODE_TOKENS
        try:
            with self._weights.using(version) as model:
                return self.memories.encode(model, version, limit=ENCODE_BATCH, tokens=tokens)
        except Exception as error:
            self.encode_failures += self.memories.give_up(version)
            self.encode_error = error
            return 0
