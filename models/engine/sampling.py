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

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

REPLACEMENT = "\ufffd"  # what a tokenizer shows for the bytes of an unfinished character


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """OpenAI's sampling parameters. `temperature` 0 is greedy and ignores `top_p` and `seed`. `logprobs`: how
    many of the best tokens to report beside each chosen one; None: no log-probabilities at all. `max_tokens` 0:
    only the prompt runs. `echo`: a text to continue comes before its answer, with its own log-probabilities.
    `end_logprob`: the token that ends an answer is reported as well."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    logprobs: int | None = None
    echo: bool = False
    end_logprob: bool = False

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


class TextStream:
    """Incremental decoding of tokens to text. Holds back incomplete characters and possible starts of stop strings."""

    def __init__(self, tokenizer: Any, stop: list[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = [text for text in stop if text]
        self._tokens: list[int] = []
        self._sent = 0
        self.stopped = False

    def push(self, token: int) -> str:
        """Return the text that this token makes final; sets `stopped` when a stop string is complete."""
        self._tokens.append(token)
        text = self._text()
        ends = [found for stop in self._stop if (found := text.find(stop)) >= 0]
        if ends:
            self.stopped = True
            return self._send(text[: min(ends)])
        if text.endswith(REPLACEMENT):
            return ""
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        return self._send(text[: len(text) - held])

    def finish(self) -> str:
        """Return the text held back; call after the last token."""
        return self._send(self._text())

    def _text(self) -> str:
        return str(self._tokenizer.decode(self._tokens, skip_special_tokens=True))

    def _send(self, text: str) -> str:
        piece = text[self._sent :]
        self._sent = max(self._sent, len(text))
        return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
