"""Memories as a bias of the logits, or as a low-rank overlay of one projection, in place of or beside a prefix.

Of each recalled memory one vector is used: `v`, the mean over its tokens of the value states that the last layer keeps
in its KV block, `[heads * head_dim]` with the key/value heads repeated for their query heads. `W` is the last layer's
output projection (`o_proj`); `w` are weights of the memories, most relevant first, 1/place, summing to 1.

    bias     b = sum_i w_i W v_i / |sum_i w_i W v_i|   the normalised sum of value vectors (`stores.concert`), and
             logits += strength * z(U norm(b))         U the unembedding, z to mean 0 and deviation 1
    overlay  W' = W + strength * sum_i w_i (W v_i) v_i^T / |v_i|^2     of rank = number of memories

What attention would add, if it spread evenly over a memory's tokens, is `W v`: so the bias favours what the memories
would make the model answer, without their order, and the overlay strengthens what attention already finds of them.
Both are off by default; `benchmarks/session.py` measures them like modes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.kv.prefix import KVBlock


@dataclass(frozen=True)
class Values:
    """`vectors`: `[memories, heads * head_dim]`; `weights`: `[memories]`, summing to 1."""

    vectors: Tensor
    weights: Tensor


def values_of(blocks: Sequence[KVBlock], config: Any, device: torch.device) -> Values:
    """Of blocks in order of relevance, most relevant first."""
    groups = config.num_attention_heads // config.num_key_value_heads
    states = [block.dense(torch.empty(0, device=device))[-1, 1].float() for block in blocks]
    means = [values.mean(dim=1) for values in states]  # [kv_heads, head_dim] each
    vectors = torch.stack([mean.repeat_interleave(groups, dim=0).flatten() for mean in means])
    weights = 1.0 / torch.arange(1, len(blocks) + 1)
    return Values(vectors, (weights / weights.sum()).to(device))


@torch.inference_mode()
def logit_bias(model: Any, values: Values, strength: float) -> Tensor:
    """`[vocabulary]`, float32."""
    projection = model.model.layers[-1].self_attn.o_proj
    said = projection(values.vectors.to(model.dtype)).float()
    whole = torch.nn.functional.normalize(values.weights @ said, dim=0)
    scores = model.lm_head(model.model.norm(whole.to(model.dtype)[None]))[0].float()
    return strength * (scores - scores.mean()) / scores.std()


class Overlay:
    """The overlay of a batch: `rows` sets what each row of the current forward pass gets."""

    def __init__(self, model: Any, strength: float) -> None:
        self._strength = strength
        self._rows: Sequence[Values | None] = ()
        self._hook = model.model.layers[-1].self_attn.o_proj.register_forward_hook(self._add)

    @contextmanager
    def rows(self, rows: Sequence[Values | None]) -> Iterator[None]:
        self._rows = rows
        try:
            yield
        finally:
            self._rows = ()

    def remove(self) -> None:
        self._hook.remove()

    def _add(self, projection: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        """`inputs[0]`: `[rows, tokens, heads * head_dim]`."""
        if not any(values is not None for values in self._rows):
            return output
        given, output = inputs[0], output.clone()
        for row, values in enumerate(self._rows):
            if values is not None:
                vectors = values.vectors.to(given.dtype)
                shares = (
                    given[row] @ vectors.T * (values.weights / values.vectors.square().sum(1)).to(given.dtype)
                )
                written = torch.nn.functional.linear(
                    vectors, projection.weight
                )  # without the projection's own bias
                output[row] += self._strength * (shares @ written)
        return output
