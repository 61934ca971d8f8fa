"""Answers over HTTP that ran in different company, compared by their log-probabilities."""

import math
from collections.abc import Sequence
from typing import Any

TIE = 1e-3  # nats: about ten times what rounding changes between batch sizes and processors
TOP = 20  # as many as the API gives

Entry = tuple[str, dict[str, float]]  # a token, and the log-probabilities of the likeliest tokens there


def chat_entries(content: Sequence[Any]) -> list[Entry]:
    """From `choice.logprobs.content` of a chat, as objects of the client or as JSON."""
    rows = [each if isinstance(each, dict) else each.model_dump() for each in content]
    return [(row["token"], {top["token"]: top["logprob"] for top in row["top_logprobs"]}) for row in rows]


def completion_entries(logprobs: Any) -> list[Entry]:
    """From `choice.logprobs` of a completion."""
    return [*zip(logprobs.tokens, logprobs.top_logprobs, strict=True)]


def assert_same_answer(
    one: Sequence[Entry],
    other: Sequence[Entry],
    *,
    temperature: float = 0.0,
    seed: int | None = None,
    tokenizer: Any = None,
) -> None:
    """Require the same tokens, or a near-tie at the first difference: there, both tokens must be among the likeliest of
    both answers, and their scores within `TIE`. What follows a near-tie is not compared.

    The score is the log-probability; for a drawn answer (`top_p` 1) with its seed, the Gumbel noise of the draw is
    added, which needs the tokenizer. Where one answer has ended, only the other shows scores; its two best must tie.
    """
    place = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a[0] != b[0]), None)
    if place is None and len(one) == len(other):
        return
    shorter = min(len(one), len(other))
    ended = place is None
    if place is None:
        assert not temperature, f"one drawn answer ends before the other, at token {shorter}"
        place = shorter
    for entries in (one, other):
        if place >= len(entries):
            continue
        scores = entries[place][1]
        if temperature:
            scores = _drawn_scores(scores, place, temperature, seed, tokenizer)
        if ended:
            best = sorted(scores.values())
            gap = best[-1] - best[-2]
        else:
            tokens = [one[place][0], other[place][0]]
            assert scores.keys() >= {*tokens}, f"answers differ at token {place}: {tokens} of {scores}"
            gap = abs(scores[tokens[0]] - scores[tokens[1]])
        assert gap <= TIE, f"answers differ at token {place} by {gap} nats: no near-tie"


def _drawn_scores(
    scores: dict[str, float], place: int, temperature: float, seed: int | None, tokenizer: Any
) -> dict[str, float]:
    import torch

    from models.engine.sampling import exponential_noise

    generator = torch.Generator().manual_seed(seed)
    size = len(tokenizer)
    for _ in range(place + 1):
        noise = exponential_noise(size, generator)
    ids = {tokenizer.decode([token]): token for token in range(size)}
    return {text: score - temperature * math.log(float(noise[ids[text]])) for text, score in scores.items()}
