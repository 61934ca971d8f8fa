"""Key/value states quantised to int8 for storage.

Keys are scaled by head and channel over the block's tokens, since a few channels of a key are much larger than the
rest; values by head and token. Symmetric, rounded to nearest: the error is at most half a scale.
KIVI (arXiv 2402.02750) has the measurements behind that choice of axes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Int8States:
    """`numbers`: `[layers, 2, kv_heads, slots, head_dim]`, int8; `key_scales`: `[layers, kv_heads, 1, head_dim]`;
    `value_scales`: `[layers, kv_heads, slots, 1]`, both float16."""

    numbers: Tensor
    key_scales: Tensor
    value_scales: Tensor

    @classmethod
    def of(cls, states: Tensor) -> "Int8States":
        keys, values = states[:, 0].float(), states[:, 1].float()
        key_scales, value_scales = _scales(keys, axis=2), _scales(values, axis=3)
        numbers = torch.stack((_rounded(keys, key_scales), _rounded(values, value_scales)), dim=1)
        return cls(numbers, key_scales, value_scales)

    @property
    def shape(self) -> torch.Size:
        return self.numbers.shape

    def dense(self) -> Tensor:
        """The states in float32."""
        keys = self.numbers[:, 0] * self.key_scales.float()
        values = self.numbers[:, 1] * self.value_scales.float()
        return torch.stack((keys, values), dim=1)

    def to(self, device: torch.device) -> "Int8States":
        return Int8States(*(tensor.to(device) for tensor in self.tensors().values()))

    def tensors(self) -> dict[str, Tensor]:
        return {
            "numbers": self.numbers,
            "key_scales": self.key_scales,
            "value_scales": self.value_scales,
        }


def _scales(values: Tensor, axis: int) -> Tensor:
    # Not below float16's smallest normal number: a channel of zeros would divide by zero.
    return (values.abs().amax(dim=axis, keepdim=True) / 127).clamp(min=2.0**-14).to(torch.float16)


def _rounded(values: Tensor, scales: Tensor) -> Tensor:
    return (values / scales.float()).round().clamp(-127, 127).to(torch.int8)
