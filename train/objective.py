"""Training objective: cross-entropy on answers, and KL(base || student) on text that the base model generated."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences, and the positions whose next token is predicted."""

    ids: Tensor  # [rows, width] int64
    mask: Tensor  # [rows, width] int64, 1 on tokens
    rows: Tensor  # [positions] int64, the row of each position
    columns: Tensor  # [positions] int64, its column: where the token before the target stands
    targets: Tensor  # [positions] int64
    shared: int  # columns at the left that are the same in all rows, and hold no position


def make_batch(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], pad: int, device: Any = "cpu") -> Batch:
    """Build a batch from (prompt ids, answer ids). Only answer tokens are targets; the last token is not an input."""
    texts = [[*prompt, *answer[:-1]] for prompt, answer in pairs]
    shared = common_start([prompt[:-1] for prompt, _ in pairs]) if len(pairs) > 1 else 0
    width = max(len(text) for text in texts)
    where = [
        (row, len(prompt) - 1 + offset, target)
        for row, (prompt, answer) in enumerate(pairs)
        for offset, target in enumerate(answer)
    ]
    ids = torch.tensor([text + [pad] * (width - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    rows, columns, targets = (torch.tensor(column) for column in zip(*where, strict=True))
    ids, mask, rows, columns, targets = (part.to(device) for part in (ids, mask, rows, columns, targets))
    return Batch(ids, mask, rows, columns, targets, shared)


def common_start(rows: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens that all rows share."""
    columns = enumerate(zip(*rows, strict=False))  # as many as the shortest row has
    return next((n for n, column in columns if len(set(column)) > 1), min(map(len, rows)))


def split_batch(batch: Batch, rows: int) -> tuple[Batch, Batch]:
    """The first `rows` rows and the others, as views; positions stand in order of rows, so they split alike."""
    cut = int((batch.rows < rows).sum())
    parts = ((slice(None, rows), slice(None, cut), 0), (slice(rows, None), slice(cut, None), rows))
    return tuple(  # type: ignore[return-value]
        Batch(
            batch.ids[r],
            batch.mask[r],
            batch.rows[p] - first,
            batch.columns[p],
            batch.targets[p],
            batch.shared,
        )
        for r, p, first in parts
    )


def position_logits(model: Any, batch: Batch, states: Any = None) -> Tensor:
    """Logits `[positions, vocabulary]` in float32; the head of the model runs at these positions only.

    The common start of all rows, such as the system turn, is run once: it is a third of the tokens of short questions.
    `states`, a cache of one row, precede all rows; the call consumes them.
    """
    decoder = model.get_decoder()
    before = 0 if states is None else states.get_seq_length()
    if batch.shared:
        states = decoder(
            input_ids=batch.ids[:1, : batch.shared], past_key_values=states, use_cache=True
        ).past_key_values
    if states is not None:
        states.batch_repeat_interleave(len(batch.ids))  # gradients of all rows meet in the one
    hidden = decoder(
        input_ids=batch.ids[:, batch.shared :],
        attention_mask=torch.nn.functional.pad(batch.mask, (before, 0), value=1),
        past_key_values=states,
        use_cache=states is not None,
    )[0]
    return model.get_output_embeddings()(hidden[batch.rows, batch.columns - batch.shared]).float()


def answer_loss(logits: Tensor, batch: Batch, weights: Tensor) -> Tensor:
    """Cross-entropy in nats a token, as a `row_mean`; `weights` `[rows]` are 1, or 0 for padding rows."""
    losses = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
    return row_mean(losses, batch, weights)


def row_mean(values: Tensor, batch: Batch, weights: Tensor) -> Tensor:
    """Mean of `values` `[positions]` within each row, then over the rows of weight 1; 0 where there are none.

    A mean over all positions would let a few long texts dominate the many short ones.
    """
    lengths = torch.bincount(batch.rows, minlength=len(weights)).clamp_min(1)
    return (values * (weights / lengths)[batch.rows]).sum() / weights.sum().clamp_min(1.0)


def kl_to_base(logits: Tensor, log_probs: Tensor, tokens: Tensor) -> Tensor:
    """`[positions]`: KL(base || student) in nats, from the base's top k and one bucket for the rest.

    `log_probs` and `tokens` are `[positions, k]`. Merging the rest into a bucket can only lower the KL.
    """
    student = logits.gather(-1, tokens) - logits.logsumexp(-1, keepdim=True)
    base = log_probs.exp()
    inside = (base * (log_probs - student)).sum(-1)
    base_rest = (1.0 - base.sum(-1)).clamp_min(1e-6)
    student_rest = (1.0 - student.exp().sum(-1)).clamp_min(1e-6)
    return inside + base_rest * (base_rest.log() - student_rest.log())
