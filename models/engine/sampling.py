"""Choose the next token, and convert tokens into streamable text.

What a seed means: a greedy or seeded answer is reproducible for the same batch of requests on the same machine, and
depends on the other requests of the batch only through rounding. One row of a matrix product may differ in its last
bits with the number of rows and with the processor (about 1e-4 in the logits), so if the two best tokens lie within
about 1e-3 of each other, another batch or processor may choose the other one; the texts then differ from there on.

A draw is made by the Gumbel-max trick (arXiv 1411.0030): every token has its own noise, fixed by seed, step and token
id, and the largest sum of log-probability and noise wins. A change of d in the logits can change the choice only if the
two best sums lie within 2 d / temperature, which happens about that often. (A draw from the cumulative sum of sorted
probabilities would change whenever two near-equal tokens swap places.)
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from common.errors import InvalidInput
from models.text.grammar import Grammar
from models.text.messages import overlap
from models.text.tools import OPENER

REPLACEMENT = "\ufffd"  # what a tokenizer shows for the bytes of an unfinished character


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """OpenAI's sampling parameters. `temperature` 0 is greedy and ignores `top_p` and `seed`. `logprobs`: how
    many of the best tokens to report beside each chosen one; None: no log-probabilities at all. `max_tokens` 0:
    only the prompt runs. `echo`: a text to continue comes before its answer, with its own log-probabilities.
    `end_logprob`: the token that ends an answer is reported as well. `grammar`: what the answer may be. `min_tokens`,
    `ignore_eos` are vLLM's: no end token and no stop string before so many tokens, and no end token at all ends the
    answer."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    logprobs: int | None = None
    echo: bool = False
    end_logprob: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    min_tokens: int = 0
    ignore_eos: bool = False
    grammar: Grammar | None = None

    def check(self, vocabulary: int) -> None:
        """Raise `InvalidInput` for a token id that the model does not have."""
        for token in self.logit_bias:
            if not 0 <= token < vocabulary:
                raise InvalidInput(
                    f"logit_bias: {token} is no token id; the model has 0 to {vocabulary - 1}",
                    param="logit_bias",
                )

    def generator(self) -> torch.Generator | None:
        if self.seed is None:
            return None
        return torch.Generator().manual_seed(self.seed)


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> int:
    """Choose the next token from `[vocabulary]` logits: the best, or a draw from the nucleus (arXiv 1904.09751).

    Every draw consumes one number per token id from `generator`, whatever the logits are.
    """
    if sampling.temperature == 0.0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.float().cpu() / sampling.temperature, dim=-1)
    scores = probabilities / exponential_noise(len(probabilities), generator)
    while True:
        token = int(scores.argmax())
        likelier = probabilities > probabilities[token]
        # A token belongs to the nucleus while the mass above it is below top_p, so the likeliest one always does.
        if sampling.top_p >= 1.0 or not likelier.any() or probabilities[likelier].sum() < sampling.top_p:
            return token
        scores.masked_fill_(~likelier, 0.0)  # whatever is no likelier is outside as well


def exponential_noise(size: int, generator: torch.Generator | None) -> Tensor:
    """`[size]` float64 draws E of an exponential distribution: p / E is largest at i with probability p_i, as -log E
    is Gumbel noise. float64, since float32 has no numbers small enough for unlikely tokens to win as often as they
    should."""
    return torch.rand(size, generator=generator, dtype=torch.float64).log_().neg_()


class Controls:
    """Penalties, biases and bans of one request, on its logits before the choice.

    OpenAI's formula (its API reference, "frequency and presence penalties"): `logit[j] - count[j] * frequency_penalty -
    (count[j] > 0) * presence_penalty + logit_bias[j]`, where `count[j]` is how often token j is in the answer so far.
    End tokens are banned before `min_tokens`, unless the grammar allows nothing else."""

    def __init__(self, sampling: Sampling, ends: Collection[int]) -> None:
        self._presence, self._frequency = sampling.presence_penalty, sampling.frequency_penalty
        self._bias = sampling.logit_bias
        self._min_tokens = 0 if sampling.ignore_eos else sampling.min_tokens
        self._ends = sorted(ends)
        self._counts: Counter[int] = Counter()

    @property
    def idle(self) -> bool:
        """Whether the next choice is that of the logits as they are."""
        penalised = bool(self._presence or self._frequency) and bool(self._counts)
        return not (penalised or self._bias or self._counts.total() < self._min_tokens)

    def count(self, token: int) -> None:
        self._counts[token] += 1

    def apply(self, logits: Tensor, allowed: Tensor | None) -> Tensor:
        """`[vocabulary]` logits, and which of them the grammar allows, to those to choose from."""
        added = dict(self._bias)
        if self._presence or self._frequency:
            for token, count in self._counts.items():
                added[token] = added.get(token, 0.0) - count * self._frequency - self._presence
        scores = logits.float()
        if added:
            ids = torch.tensor([*added], device=logits.device)
            scores = scores.index_add(0, ids, torch.tensor([*added.values()], device=logits.device))
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -torch.inf)
        if self._counts.total() < self._min_tokens:
            longer = scores.index_fill(0, torch.tensor(self._ends, device=logits.device), -torch.inf)
            scores = longer if allowed is None or bool(longer.isfinite().any()) else scores
        return scores


class TextStream:
    """Incremental decoding of tokens to text. Holds back incomplete characters and possible starts of stop strings.

    Stop strings are looked for where they end behind `min_tokens` tokens, and not in a call of a tool."""

    def __init__(self, tokenizer: Any, sampling: Sampling) -> None:
        self._tokenizer = tokenizer
        self._stop = [text for text in sampling.stop if text]
        self._min_tokens = sampling.min_tokens
        self._calls = sampling.grammar is not None and bool(sampling.grammar.tools)
        self._plain = sampling.grammar is None  # else a tokenizer may have special tokens that mark a call
        self._tokens: list[int] = []
        self._sent = self._early = 0  # characters sent; those of the first `min_tokens` tokens
        self.stopped = False

    def push(self, token: int) -> str:
        """Return the text that this token makes final; sets `stopped` when a stop string is complete."""
        self._tokens.append(token)
        text = self._text()
        if len(self._tokens) <= self._min_tokens:
            self._early = len(text)
        searched = text.partition(OPENER)[0] if self._calls else text
        ends = [found for stop in self._stop if (found := self._find(searched, stop)) >= 0]
        if ends:
            self.stopped = True
            return self._send(text[: min(ends)])
        if text.endswith(REPLACEMENT):
            return ""
        called = len(searched) < len(text)
        held = 0 if called else max((overlap(text, stop) for stop in self._stop), default=0)
        return self._send(text[: len(text) - held])

    def finish(self) -> str:
        """Return the text held back; call after the last token."""
        return self._send(self._text())

    def _find(self, text: str, stop: str) -> int:
        return text.find(stop, max(0, self._early - len(stop) + 1) if self._early else 0)

    def _text(self) -> str:
        return str(self._tokenizer.decode(self._tokens, skip_special_tokens=self._plain))

    def _send(self, text: str) -> str:
        piece = text[self._sent :]
        self._sent = max(self._sent, len(text))
        return piece
