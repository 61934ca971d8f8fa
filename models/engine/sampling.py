"""Choosing the next token, and turning tokens into text that can be streamed."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

REPLACEMENT = "\ufffd"  # what a tokenizer shows for the bytes of an unfinished character


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """OpenAI's sampling parameters. `temperature` 0 is greedy and ignores `top_p` and `seed`. `logprobs`: how
    many of the best tokens to tell beside each chosen one; None: none, nor its own."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    logprobs: int | None = None

    def generator(self) -> torch.Generator | None:
        if self.seed is None:
            return None
        return torch.Generator().manual_seed(self.seed)


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> int:
    """The next token from `[vocabulary]` logits: the best, or a draw from the nucleus (arXiv 1904.09751)."""
    if sampling.temperature == 0.0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.float().cpu() / sampling.temperature, dim=-1)
    ordered, order = probabilities.sort(descending=True)
    # A token stays while the mass before it is below top_p, so the best one always does.
    kept = ordered * ((ordered.cumsum(0) - ordered) < sampling.top_p)
    return int(order[torch.multinomial(kept, 1, generator=generator)])


class TextStream:
    """Text pieces of a growing token list. Holds back unfinished characters and what may become a stop string."""

    def __init__(self, tokenizer: Any, stop: list[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = [text for text in stop if text]
        self._tokens: list[int] = []
        self._sent = 0
        self.stopped = False

    def push(self, token: int) -> str:
        """Text that is certain after this token; sets `stopped` where a stop string is complete."""
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
        """What was held back, once no token follows."""
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
