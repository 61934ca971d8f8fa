"""Continuous batching of requests with different memories and model versions.

`Engine.step` is the body of the loop: prefill prompts in bounded chunks, in the order that `scheduler.py` decides;
decode one token of every running request in one forward pass; remove finished requests; and, if there is time, encode
memories that have no KV block yet. Requests join and leave between steps. `answer` drives the loop for one request,
`serve.engine_replica` for many.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from common.config import RecallConfig, ServeConfig
from common.errors import InvalidInput
from models.encoders.encoding_queue import ENCODE_BATCH, ENCODE_TOKENS, EncodingQueue, RecalledMemory
from models.engine.attribution import NULL_EVERY, Attribution
from models.engine.bias_overlay import Overlay, logit_bias
from models.engine.cuda_graphs import Filling, FixedShapes, cuda_graph
from models.engine.generation_stats import GenerationStats
from models.engine.injection import Injection, Prompt
from models.engine.kv_cache import Pass
from models.engine.masks import Constraint, Grammars, Masks, best_allowed
from models.engine.request import Request
from models.engine.sampling import Sampling
from models.engine.scheduler import Scheduler
from models.kv.blocks import BlockStore
from models.kv.prefix import Prefill
from models.text.messages import Message, Messages, TokenText
from models.text.token_bytes import TokenBytes
from models.text.tools import Tool
from models.weights.load import LoadedModel
from models.weights.versions import ModelVersions

ENCODE_EVERY = 16  # steps between two batches of blocks while requests run


class Engine:
    """One replica's model and its requests. Thread-safe: a lock lets one step use the model at a time."""

    def __init__(
        self,
        loaded: LoadedModel,
        versions: ModelVersions,
        blocks: BlockStore,
        recall: RecallConfig,
        serve: ServeConfig | None = None,
    ) -> None:
        self.loaded = loaded
        self.queue = EncodingQueue(loaded, blocks, recall)
        self.injection = Injection(loaded, self.queue, recall)
        self.versions = versions
        self._serve = serve or ServeConfig()
        self.scheduler = Scheduler(self._serve, loaded.model.config, loaded.dtype)
        self.overlay = Overlay(loaded.model, recall.overlay) if recall.overlay else None
        # An overlay's vectors are other ones at every pass, which a graph would not notice.
        graphs = loaded.device.type == "cuda" and self._serve.cuda_graphs and not self.overlay
        self.grammars = Grammars(loaded)
        self._masks = Masks(self.grammars, loaded.model.config.vocab_size, loaded.device)
        self.fixed_shapes = FixedShapes(loaded.model, cuda_graph) if graphs else None
        self.steps = 0
        self.encode_failures = 0
        self.encode_error: Exception | None = None
        self._attributed = 0  # answers whose memories were hidden
        self._noise = 0.0  # nats of the largest null row so far
        self._bias = recall.bias
        self._token_bytes = TokenBytes(loaded.tokenizer)
        self._lock = threading.Lock()

    def submit(
        self,
        messages: Messages,
        memories: Sequence[RecalledMemory],
        *,
        namespace: str,
        adapter: str,
        sampling: Sampling,
        turn: GenerationStats,
        tools: Sequence[Tool] = (),
        attribute: bool = False,
    ) -> Request:
        """Queue a request. `memories` come most relevant first (mode `full`: in order of time). The prompt tells the
        model of `tools`. `attribute`: measure what each injected memory did to the answer (`attribution.py`).

        Raises `InvalidInput` if prompt and answer exceed the model's context or the KV cache, for a grammar that cannot
        be followed and a bias of no token, `NotFound` if the version does not exist.
        """
        sampling.check(self.loaded.model.config.vocab_size)
        grammar = sampling.grammar
        constraint = Constraint(grammar, self.grammars.matcher(grammar)) if grammar else None
        with self._lock:
            self.versions.hold(adapter)
            try:
                with self.versions.using(adapter) as model:
                    prompt = self.injection.prompt(
                        model,
                        messages,
                        memories,
                        namespace=namespace,
                        adapter=adapter,
                        max_tokens=sampling.max_tokens,
                        turn=turn,
                        tools=tools,
                        attribute=attribute,
                    )
                answer = Request(
                    prompt,
                    adapter=adapter,
                    sampling=sampling,
                    turn=turn,
                    tokenizer=self.loaded.tokenizer,
                    token_bytes=self._token_bytes,
                    ends=self.loaded.end_ids,
                    constraint=constraint,
                    attribution=self._attribution_of(prompt, turn) if attribute else None,
                )
                self.scheduler.check_room(answer.slots)
                if sampling.echo and isinstance(messages, str | TokenText):
                    answer.echo(*self._echoed(messages))
                if prompt.values is not None and self._bias:
                    with self.versions.using(adapter) as model:
                        answer.bias = logit_bias(model, prompt.values, self._bias)
            except BaseException:
                self.versions.release(adapter)
                raise
            self.scheduler.add(answer)
            return answer

    def step(self) -> list[Request]:
        """Run one iteration; returns the requests with new text or a new state. Does nothing if not `busy`."""
        with self._lock:
            self.steps += 1
            updated = [*self._prefill(), *self._decode()]
            self._remove_generated(updated)
            updated += self._attribute()
            # Otherwise somebody waits for what this step has brought, or for the rest of a prompt.
            if not (updated or self.scheduler.num_requests) or self.steps % ENCODE_EVERY == 0:
                self._encode()
            return updated

    def cancel(self, request: Request) -> None:
        """Stop working on a request whose client has disconnected, whatever its state."""
        with self._lock:
            if self.scheduler.remove(request):
                self.versions.release(request.adapter)

    def answer(
        self,
        messages: Messages,
        memories: Sequence[RecalledMemory],
        *,
        namespace: str,
        adapter: str,
        sampling: Sampling,
        turn: GenerationStats,
        tools: Sequence[Tool] = (),
        attribute: bool = False,
    ) -> Iterator[str]:
        """Yield one request's text as it grows, and fill in `turn`. Other requests may run at the same time."""
        answer = self.submit(
            messages,
            memories,
            namespace=namespace,
            adapter=adapter,
            sampling=sampling,
            turn=turn,
            tools=tools,
            attribute=attribute,
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

    def token_text(self, ids: Sequence[int]) -> str:
        """The text of token ids. Raises `InvalidInput` for one that the vocabulary lacks."""
        for place, token in enumerate(ids):
            if not 0 <= token < self.loaded.model.config.vocab_size or not self._token_bytes.of(token):
                raise InvalidInput(
                    f"prompt: token id {token} at place {place}: the model's vocabulary has none of that id",
                    param="prompt",
                )
        return b"".join(map(self._token_bytes.of, ids)).decode(errors="replace")

    def _echoed(self, asked: str | TokenText) -> tuple[str, list[int]]:
        """The text of a text to continue, and its ids."""
        return (
            asked if isinstance(asked, str) else self.token_text(asked.ids),
            self.queue.builder.continued(asked, begins=False),
        )

    @property
    def busy(self) -> bool:
        return bool(self.scheduler.num_requests or self.queue.pending_blocks)

    def status(self) -> dict[str, Any]:
        encoder = self.queue.encoder
        return {
            "waiting": len(self.scheduler.waiting),
            "running": self.scheduler.num_running,
            "kv_cache_bytes": self.scheduler.cache.size_bytes,
            "graphs": self.fixed_shapes.status() if self.fixed_shapes else None,
            "pending_blocks": self.queue.pending_blocks,
            "fallbacks": self.injection.fallbacks,
            "encode_failures": self.encode_failures,
            "encoder": {
                "name": encoder.label,
                "report": encoder.report.to_dict() if encoder.report else None,
            },
            "blocks": self.queue.block_counts(),
        }

    def enqueue(self, namespace: str, memories: Sequence[RecalledMemory], adapter: str) -> None:
        """See `EncodingQueue.enqueue`. Does nothing for a version that has been retired."""
        if self.versions.exists(adapter):
            self.queue.enqueue(namespace, memories, adapter)

    def check_version(self, adapter: str) -> None:
        """See `ModelVersions.check`."""
        with self._lock:
            self.versions.check(adapter)

    def retire(self, adapter: str) -> int:
        """Drop the blocks and weights of a version removed from disk; running requests keep its weights until they end.
        Returns the number of KV block files removed."""
        with self._lock:
            self.versions.retire(adapter)
            return self.queue.retire(adapter)

    def encode_some(self) -> int:
        """Encode a batch of queued blocks. Returns how many; call until 0."""
        with self._lock:
            return self._encode()

    def score(self, messages: Sequence[Message], adapter: str) -> list[dict[str, Any]]:
        """Log-probability of each assistant message given what came before it; see `models.scoring`."""
        from models.scoring.leave_one_out import score_transcript

        transcript = self.queue.builder.transcript(messages, memories=False)
        if len(transcript.tail) > self.loaded.context_tokens:
            raise InvalidInput(
                f"messages need {len(transcript.tail)} tokens, the model's context holds "
                f"{self.loaded.context_tokens}; shorten them",
                param="messages",
                code="context_length_exceeded",
            )
        with self._lock, self.versions.using(adapter) as model:
            return score_transcript(model, transcript)

    def _prefill(self) -> list[Request]:
        """Run prompts, up to `Scheduler.prefill_tokens`. Returns the requests whose prompt has run, or failed."""
        updated: list[Request] = []
        room = self.scheduler.prefill_tokens
        while room > 0 and (request := self.scheduler.next_to_prefill()):
            try:
                prefill = request.prefill or request.begin(self._begin)
                with self.versions.using(request.adapter) as model, self._overlaid([request]):
                    room -= prefill.advance(model, room)
                if not prefill.done:
                    break
                self.scheduler.end_prefill()
                masks = self._masks.begin([request.constraint] if request.constraint else [])
                request.first(prefill.logits, prefill.position, masks.result()[0] if masks else None)
                if not request.generated:
                    self.scheduler.start_decoding(request, prefill.states)
            except Exception as error:
                self.scheduler.end_prefill()
                request.fail(error)
            updated.append(request)
        return updated

    def _begin(self, request: Request) -> Prefill | Filling:
        prompt = request.prompt
        if self.fixed_shapes and not request.judged:
            load = self.versions.load_of(request.adapter)
            if fixed := self.fixed_shapes.filling(prompt, load):
                return fixed
        config = self.loaded.model.config
        return Prefill(prompt.prefix, prompt.ids, config, request.judge, request.judged)

    @torch.inference_mode()
    def _decode(self) -> list[Request]:
        """One more token of every running request, in one pass."""
        batch = [*self.scheduler.running]
        if not batch:
            return []
        rows = [i for i, request in enumerate(batch) if request.constraint is not None]
        begun = self._masks.begin([each for request in batch if (each := request.constraint) is not None])
        try:
            logits = self._pass(batch)
            masks = begun.result() if begun else None
            allowed = dict(zip(rows, masks if masks is not None else [], strict=True))
            best = best_allowed(logits, rows, masks)
            for i, (request, row) in enumerate(zip(batch, logits, strict=True)):
                request.next(row, best[i], allowed.get(i))
        except Exception as error:  # half a step: what the rows hold is unknown
            self.scheduler.drop_running()
            for request in batch:
                request.fail(error)
        return batch

    def _remove_generated(self, updated: Sequence[Request]) -> None:
        """Free the rows of requests whose answers are complete, last row first, and the model versions of those that
        are done."""
        for request in dict.fromkeys(
            reversed(updated)
        ):  # a prompt that has just run may have been decoded as well
            if request.generated:
                self.scheduler.remove(request)
                if request.done:
                    self.versions.release(request.adapter)
                else:
                    self.scheduler.attributing.append(request)

    def _attribution_of(self, prompt: Prompt, turn: GenerationStats) -> Attribution:
        null = self._attributed % NULL_EVERY == 0
        self._attributed += prompt.hideable is not None
        return Attribution(prompt.hideable, turn.injected, null=null)

    def _attribute(self) -> list[Request]:
        """A pass for the request whose attribution has waited longest: as many tokens as of prompts. Returns it, or
        nothing, once it is done."""
        if not self.scheduler.attributing:
            return []
        request = self.scheduler.attributing[0]
        try:
            with self.versions.using(request.adapter) as model:
                request.attribute(model, self.scheduler.prefill_tokens)
        except Exception as error:
            request.fail(error)
        if not request.done:
            return []
        if request.attribution:
            self._noise = max(self._noise, request.attribution.noise)
            request.turn.influence_noise = self._noise
        self.scheduler.attributing.popleft()
        self.versions.release(request.adapter)
        return [request]

    def _pass(self, answers: Sequence[Request]) -> Tensor:
        """Logits behind the last token of each, `[rows, vocabulary]`, which stand until the next pass."""
        adapter = answers[0].adapter
        one_version = all(answer.adapter == adapter for answer in answers)
        ids, positions = [answer.token for answer in answers], [answer.position for answer in answers]

        def forward(chosen: Pass, states: Tensor) -> Tensor:
            with (
                self.versions.mixed([answer.adapter for answer in answers]) as model,
                self._overlaid(answers),
            ):
                return chosen.run(model, states)

        if self.fixed_shapes and one_version:
            return self.fixed_shapes.decode(
                forward, self.versions.load_of(adapter), self.scheduler.cache, ids, positions
            )
        if (
            self.fixed_shapes
        ):  # PEFT runs a batch of several versions by lists of its rows, which a graph would not notice
            self.fixed_shapes.mixed += 1
        states, new = self.scheduler.cache.begin_pass(ids, positions)
        chosen = Pass(len(answers), 1, new.slots, states.device)
        chosen.give(new)
        return forward(chosen, states)

    def _overlaid(self, answers: Sequence[Request]) -> AbstractContextManager[None]:
        """Around a forward pass with a row for each of these."""
        return self.overlay.rows([a.prompt.values for a in answers]) if self.overlay else nullcontext()

    def _encode(self) -> int:
        """A batch of queued blocks of one version; smaller while requests run. One version's trouble must not
        keep the others waiting: its blocks are dropped, and counted."""
        version = self.queue.next_version()
        if version is None:
            return 0
        tokens = self._serve.prefill_tokens if self.scheduler.num_requests else ENCODE_TOKENS
        try:
            with self.versions.using(version) as model:
                return self.queue.encode(model, version, limit=ENCODE_BATCH, tokens=tokens)
        except Exception as error:
            self.encode_failures += self.queue.give_up(version)
            self.encode_error = error
            return 0
