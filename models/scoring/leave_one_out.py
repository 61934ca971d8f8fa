"""Exact leave-one-out divergence: how much each memory changed each response.

    D[i, j] = log p(response j | all memories) - log p(response j | without memory i)        nats, signed

summed over the response's tokens. `LeaveOneOut.row` computes the second term for one i and all j. It saves work over
N + 1 full passes for every conversation without approximation: the states of head and memories are computed once; a
row reuses the states before its memory, recomputes those after it, and runs all conversations after them in batches
sorted by length; the vocabulary projection runs at response tokens only. `naive_row` is the reference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from models.kv import prefix as kv
from models.scoring.logprobs import logprobs_at
from models.text.prompt import Transcript


@dataclass(frozen=True)
class ScoreContext:
    """Input of scoring: `head` ids, ids of each of N memories, and conversations with M responses in total."""

    head: list[int]
    memories: list[list[int]]
    transcripts: list[Transcript]

    @property
    def responses(self) -> int:
        return sum(len(transcript.responses) for transcript in self.transcripts)


class LeaveOneOut:
    """Rows of the matrix for one `ScoreContext` on one model. `batch_tokens` bounds a forward pass."""

    def __init__(self, model: Any, context: ScoreContext, *, batch_tokens: int = 4096) -> None:
        self._model = model
        self._context = context
        self._batch_tokens = batch_tokens
        self._states = _run(model, None, context.head + [t for ids in context.memories for t in ids])
        lengths = [len(context.head), *map(len, context.memories)]
        self._starts = np.cumsum(lengths)[:-1]

    def row(self, omit: int | None) -> np.ndarray:
        """log p of every response, float64 `[M]`, without memory `omit` (None: with all)."""
        return self._responses(self._states if omit is None else self._without(omit))

    def null_row(self) -> np.ndarray:
        """`row(None)` computed by the code path of an omission; the difference is the numerical noise."""
        middle = len(self._context.memories) // 2
        return (
            self._responses(self._resume(self._starts[middle], middle))
            if self._starts.size
            else self.row(None)
        )

    def _without(self, omit: int) -> Tensor:
        return self._resume(self._starts[omit], omit + 1)

    def _resume(self, keep_slots: int, from_memory: int) -> Tensor:
        """States of the first `keep_slots` slots followed by memories `from_memory` and later, recomputed."""
        kept = self._states[:, :, :, : int(keep_slots)]
        rest = [token for ids in self._context.memories[from_memory:] for token in ids]
        return _run(self._model, kept, rest) if rest else kept

    def _responses(self, states: Tensor) -> np.ndarray:
        found: dict[int, list[float]] = {}
        for batch in self._batches(states.shape[3]):
            rows = _score_tails(self._model, states, [self._context.transcripts[i] for i in batch])
            found.update(zip(batch, rows, strict=True))
        return np.array([value for i in sorted(found) for value in found[i]], np.float64)

    def _batches(self, slots: int) -> list[list[int]]:
        """Conversations by length, longest first, so that a batch pads little and memory runs out at once or never."""
        tails = [len(transcript.tail) for transcript in self._context.transcripts]
        batches: list[list[int]] = []
        for i in sorted(range(len(tails)), key=lambda i: -tails[i]):
            if (
                batches
                and (len(batches[-1]) + 1) * (tails[batches[-1][0]] + slots // 8) <= self._batch_tokens
            ):
                batches[-1].append(i)
            else:
                batches.append([i])
        return batches


def divergences(baseline: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Signed `[N, M]` from log-probabilities `[M]` and `[N, M]`; its view clipped at 0 is derived, never stored."""
    return baseline[None, :] - rows


def naive_row(model: Any, context: ScoreContext, omit: int | None) -> np.ndarray:
    """Reference for `LeaveOneOut.row`: one full pass without cache for every conversation."""
    memories = [token for i, ids in enumerate(context.memories) if i != omit for token in ids]
    prefix = context.head + memories
    values: list[float] = []
    for transcript in context.transcripts:
        ids = torch.tensor([prefix + transcript.tail], device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False).logits[0].float()
        logprobs = torch.log_softmax(logits, dim=-1)
        for response in transcript.responses:
            span = range(len(prefix) + response.start, len(prefix) + response.stop)
            values.append(sum(logprobs[p - 1, ids[0, p]].item() for p in span))
    return np.array(values, np.float64)


def score_transcript(model: Any, transcript: Transcript) -> list[dict[str, Any]]:
    """`/v1/score`: total log-probability in nats and number of tokens of each assistant message."""
    [totals] = _score_tails(model, None, [transcript])
    return [
        {
            "total_logprob": total,
            "num_tokens": response.stop - response.start,
            "entry_index": response.entry_index,
        }
        for total, response in zip(totals, transcript.responses, strict=True)
    ]


@torch.inference_mode()
def _run(model: Any, states: Tensor | None, ids: Sequence[int]) -> Tensor:
    """States of everything up to and including `ids`, which run behind `states`."""
    cache = DynamicCache(config=model.config) if states is None else kv.as_cache(states, model.config)
    model.model(input_ids=torch.tensor([list(ids)], device=model.device), past_key_values=cache)
    return kv.stacked(cache)[:, :, 0]


@torch.inference_mode()
def _score_tails(model: Any, states: Tensor | None, transcripts: Sequence[Transcript]) -> list[list[float]]:
    """log p of each response of each conversation, all behind the same `states`. Right-padded: causal, so harmless."""
    count, longest = len(transcripts), max(len(transcript.tail) for transcript in transcripts)
    start = 0 if states is None else states.shape[3]
    ids = torch.zeros(count, longest, dtype=torch.long, device=model.device)
    for row, transcript in enumerate(transcripts):
        ids[row, : len(transcript.tail)] = torch.tensor(transcript.tail)
    cache = (
        DynamicCache(config=model.config)
        if states is None
        else kv.as_cache(states, model.config, batch=count)
    )
    positions = torch.arange(start, start + longest, device=model.device).expand(count, -1)
    hidden = model.model(input_ids=ids, past_key_values=cache, position_ids=positions).last_hidden_state
    return [
        [
            float(logprobs_at(model, hidden[row], ids[row], range(response.start, response.stop)).sum())
            for response in transcript.responses
        ]
        for row, transcript in enumerate(transcripts)
    ]
