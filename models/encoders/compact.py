"""Compact a memory without training: keep the slots that the model needs to repeat it.

The score of a key is the largest attention weight that it receives, over all queries, when the model reads the memory
a second time after the first (KVzip, arXiv 2505.23416). Every layer and head keeps its own best tokens, the same number
everywhere, so that ordinary attention runs on the rest. Kept keys keep their encoded positions.
"""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from models.kv.prefix import as_cache, stacked

OBSERVED = "sharpwave_observed"
QUERIES_AT_ONCE = 256  # bounds the attention weights that are held


@torch.inference_mode()
def compacted(
    model: Any, head: Tensor, blocks: Sequence[Sequence[int]], repeat: Sequence[int], ratio: int
) -> list[Tensor]:
    """States of each block after the head, compacted to one in `ratio` slots (rounded up):
    `[layers, 2, kv_heads, slots, head_dim]` each. `repeat` are the ids between a block and its repetition."""
    start, longest = head.shape[3], max(map(len, blocks))
    ids, real, positions = _twice(blocks, repeat, start, model.device)
    scores: list[Tensor] = []
    cache = as_cache(head, model.config, batch=len(blocks))
    with _observed(model):
        model.get_decoder()(
            input_ids=ids,
            past_key_values=cache,
            position_ids=positions,
            attention_mask=_mask(real, start),
            observe=partial(_score, scores, real, start, longest),
        )
    states, received = stacked(cache), torch.stack(scores)
    return [
        _best(states[:, :, row, :, start : start + len(block)], received[:, row, :, : len(block)], ratio)
        for row, block in enumerate(blocks)
    ]


def _twice(
    blocks: Sequence[Sequence[int]], repeat: Sequence[int], start: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of block, padding, `repeat`, block, padding: ids, which are no padding, and positions without gaps."""
    longest = max(map(len, blocks))
    ids = torch.zeros(len(blocks), 2 * longest + len(repeat), dtype=torch.long, device=device)
    real = torch.zeros_like(ids, dtype=torch.bool)
    for row, block in enumerate(blocks):
        again = [*repeat, *block]
        ids[row, : len(block)] = torch.tensor(block)
        ids[row, longest : longest + len(again)] = torch.tensor(again)
        real[row, : len(block)] = real[row, longest : longest + len(again)] = True
    positions = start + (real.cumsum(1) - 1).clamp(min=0)
    return ids, real, positions


def _mask(real: Tensor, start: int) -> Tensor:
    """`[rows, 1, tokens, start + tokens]`: the head, and what came before and is no padding."""
    rows, tokens = real.shape
    before = torch.ones(tokens, tokens, dtype=torch.bool, device=real.device).tril()
    head = torch.ones(rows, tokens, start, dtype=torch.bool, device=real.device)
    return torch.cat((head, before & real[:, None]), dim=2)[:, None]


def _score(
    scores: list[Tensor],
    real: Tensor,
    start: int,
    longest: int,
    query: Tensor,
    keys: Tensor,
    mask: Tensor,
    scale: float,
) -> None:
    """Append this layer's `[rows, kv_heads, longest]`: the most weight that a key of the block receives from
    any query of the repetition, in any query head that shares it."""
    rows, kv_heads, _, _ = keys.shape
    groups = query.shape[1] // kv_heads
    best = torch.zeros(rows, kv_heads, longest, device=keys.device)
    for first in range(longest, query.shape[2], QUERIES_AT_ONCE):
        part = slice(first, first + QUERIES_AT_ONCE)
        logits = (query[:, :, part] @ repeat_kv(keys, groups).transpose(2, 3)).float() * scale
        weights = logits.masked_fill(~mask[:, :, part], -torch.inf).softmax(-1)[..., start : start + longest]
        weights = weights * real[:, None, part, None]  # padding asks nothing
        most = weights.amax(2).view(rows, kv_heads, groups, longest).amax(2)
        best = torch.maximum(best, most)
    scores.append(best)


def _best(states: Tensor, scores: Tensor, ratio: int) -> Tensor:
    """Of one block: `[layers, 2, kv_heads, slots, head_dim]` states, `[layers, kv_heads, slots]` scores."""
    kept = -(-states.shape[3] // ratio)
    chosen = scores.topk(kept, dim=-1).indices.sort(-1).values
    index = chosen[:, None, :, :, None].expand(-1, 2, -1, -1, states.shape[4])
    return states.gather(3, index).contiguous()


@contextlib.contextmanager
def _observed(model: Any) -> Iterator[None]:
    """Attention as it is, that also shows `observe` its queries and keys."""
    before = model.config._attn_implementation
    model.config._attn_implementation = OBSERVED
    try:
        yield
    finally:
        model.config._attn_implementation = before


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, observe: Any, **options: Any
) -> tuple[Tensor, None]:
    observe(query, key, mask, options["scaling"])
    return sdpa_attention_forward(module, query, key, value, mask, **options)


AttentionInterface.register(OBSERVED, _attention)
