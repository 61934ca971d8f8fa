"""State of one request in the engine, from the prompt to its last token."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from common.errors import InvalidInput
from models.engine.attribution import Attribution
from models.engine.cuda_graphs import Filling
from models.engine.generation_stats import GenerationStats
from models.engine.injection import Prompt
from models.engine.masks import Constraint
from models.engine.sampling import Controls, Sampling, TextStream, choose
from models.kv.prefix import Prefill
from models.text.token_bytes import TokenBytes


class Request:
    """A generation request and its answer so far. `pieces`: final texts not yet fetched by the client. `done`: no
    more text will follow, and what is told of the answer is complete. `error`: the reason if it ended early."""

    def __init__(
        self,
        prompt: Prompt,
        *,
        adapter: str,
        sampling: Sampling,
        turn: GenerationStats,
        tokenizer: Any,
        token_bytes: TokenBytes,
        ends: set[int],
        constraint: Constraint | None = None,
        attribution: Attribution | None = None,
    ) -> None:
        self.prompt, self.adapter, self.sampling, self.turn = prompt, adapter, sampling, turn
        self.slots = prompt.slots + sampling.max_tokens  # of keys and values, that it may come to use
        self.pieces: deque[str] = deque()
        self.tokens: list[int] = []  # every token chosen, an end token included
        self.generated = False  # no token follows
        self.done = False
        self.error: Exception | None = None
        self.prefill: Prefill | Filling | None = None
        self.bias: Tensor | None = None  # of the logits, [vocabulary]
        self.judged = 0  # of the prompt's last ids, to be given to `judge`
        self.token = self.position = 0  # the last token chosen, which has not run yet, and where it stands
        self.constraint = constraint
        self.attribution = attribution
        self._ends = set() if sampling.ignore_eos else ends
        self._tokenizer, self._bytes = tokenizer, token_bytes
        self._controls = Controls(sampling, ends)
        self._stream = TextStream(tokenizer, sampling)
        self._generator = sampling.generator()
        self._submitted = self._started = time.perf_counter()

    def begin(self, start: Callable[["Request"], Prefill | Filling]) -> Prefill | Filling:
        """Start the prefill with `start`, which lays the prefix; its time counts as prefill."""
        self._started = time.perf_counter()
        self.turn.queued_s = self._started - self._submitted
        self.prefill = start(self)
        return self.prefill

    def echo(self, text: str, ids: Sequence[int]) -> None:
        """Begin the answer with the text to continue, of which `ids` are the prompt's last ones. A token that nothing
        comes before has no log-probability."""
        self._append(text)
        if self.sampling.logprobs is not None:
            self.judged = len(ids)
            if self.prompt.length == len(ids):
                self.turn.logprobs.append({**self._entry(ids[0], None), "top_logprobs": []})

    def judge(self, tokens: Sequence[int], logits: Tensor) -> None:
        """Report log-probabilities of the echoed text; see `models.kv.prefix.Judge`."""
        top = self.sampling.logprobs or 0
        self.turn.logprobs += [
            self._logprobs(token, row, top) for token, row in zip(tokens, logits, strict=True)
        ]

    def first(self, logits: Tensor, position: int, allowed: Tensor | None) -> None:
        """Take the first token from the prompt's last logits, `[vocabulary]`, of which the grammar allows those.
        `position`: the one after the prompt."""
        self.prefill = None
        # The cache has its states; blocks that were read from the disk belong to no one else.
        self.prompt = replace(self.prompt, prefix=None, hideable=None)
        self.position = position
        if not self.sampling.max_tokens:
            self.turn.prefill_s = time.perf_counter() - self._started
            self._end("length")
            return
        logits = self._biased(logits)
        token = self._choose(logits, allowed)
        self.turn.prefill_s = time.perf_counter() - self._started  # a GPU has finished now, and not before
        self._take(token, logits)

    def next(self, logits: Tensor, best: int, allowed: Tensor | None) -> None:
        """Take the next token from the logits `[vocabulary]` of its last token; `best` is the argmax of those that
        are `allowed`, which None leaves open."""
        self.position += 1
        logits = self._biased(logits)
        greedy = self.sampling.temperature == 0.0 and self.bias is None and self._controls.idle
        self._take(best if greedy else self._choose(logits, allowed), logits)

    def fail(self, error: Exception) -> None:
        self.error, self.prefill = error, None
        self.generated = self.done = True

    def _biased(self, logits: Tensor) -> Tensor:
        return logits if self.bias is None else logits.float() + self.bias

    def _choose(self, logits: Tensor, allowed: Tensor | None) -> int:
        if not self._controls.idle or allowed is not None:
            logits = self._controls.apply(logits, allowed)
        return choose(logits, self.sampling, self._generator)

    def _take(self, token: int, logits: Tensor) -> None:
        if self.constraint is not None:
            try:
                self.constraint.take(token, self._bytes.of(token))
            except InvalidInput as error:
                self.fail(error)
                return
        self.token = token
        self.tokens.append(token)
        self._controls.count(token)
        ended = token in self._ends
        if self.attribution and not ended:
            self.attribution.take(token, logits)
        if self.sampling.logprobs is not None and (not ended or self.sampling.end_logprob):
            self.turn.logprobs.append(self._logprobs(token, logits, self.sampling.logprobs))
        if ended:
            self._end("stop")
            return
        self.turn.completion_tokens += 1
        self._append(self._stream.push(token))
        if self._stream.stopped:
            self._end("stop", finish=False)
        elif self.constraint is not None and self.constraint.ended:
            self._end("stop")
        elif self.turn.completion_tokens >= self.sampling.max_tokens:
            self._end("length")

    def _end(self, reason: str, *, finish: bool = True) -> None:
        if finish:
            self._append(self._stream.finish())
        self.turn.finish_reason = reason
        self.turn.generate_s = time.perf_counter() - self._started
        self.generated = True
        if self.attribution is None:
            self.done = True

    def attribute(self, model: Any, limit: int) -> None:
        """Run a part of the attribution, one pass of about `limit` tokens; `done` after the last one."""
        assert self.attribution is not None
        if self.attribution.advance(model, limit):
            self.turn.influence = self.attribution.influence
            self.turn.attribute_s = time.perf_counter() - self._started - self.turn.generate_s
            self.done = True

    def _append(self, text: str) -> None:
        if text:
            self.pieces.append(text)

    def _logprobs(self, token: int, logits: Tensor, top: int) -> dict[str, Any]:
        """OpenAI's entry for one token. Of the model's own distribution: before temperature, top_p, penalties, biases
        of the request and the mask of its grammar."""
        scores = torch.log_softmax(logits.float(), dim=-1)
        best = scores.topk(top)
        others = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return {
            **self._entry(token, float(scores[token])),
            "top_logprobs": [self._entry(other, score) for other, score in others],
        }

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        """`bytes` are the token's own: those of all tokens, joined, are the text's UTF-8."""
        return {
            "token": self._tokenizer.decode([token]),
            "logprob": logprob,
            "bytes": list(self._bytes.of(token)),
        }
