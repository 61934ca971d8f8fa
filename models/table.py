"""Key/value states of the requests that decode together: a row each, padded on the right.

    states   [layers, 2, rows, kv_heads, slots, head_dim]

Rows in use are packed at the front: `join` takes the next one, `leave` moves the last into the gap. So a step
reads one slice, and copies nothing. What a row does not use is zero or a former row's; the mask hides it.
"""

import math
from typing import Any

import torch
from torch import Tensor

SLOTS_AT_ONCE = 128  # a row grows by this many, so that answers of like length do not reallocate


def shape_of(config: Any, rows: int, slots: int) -> tuple[int, ...]:
    """Of the states of a model with this configuration."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, 2, rows, config.num_key_value_heads, slots, head_dim


class KVTable:
    """Grows with what runs, up to `budget_bytes`. Not thread-safe: the engine's lock holds it."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._states: Tensor | None = None
        self._lengths: list[int] = []  # slots in use, by row
        self._reserved: list[int] = []  # slots that a row may come to use

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def size_bytes(self) -> int:
        return 0 if self._states is None else self._states.numel() * self._states.element_size()

    @staticmethod
    def bytes_for(slots: int, config: Any, dtype: torch.dtype) -> int:
        """Of `slots` in one row of a model with this configuration."""
        slots = -(-slots // SLOTS_AT_ONCE) * SLOTS_AT_ONCE
        return math.prod(shape_of(config, 1, slots)) * dtype.itemsize

    def fits(self, slots: int, config: Any, dtype: torch.dtype) -> bool:
        """Is there room for one more row of `slots`?"""
        rows, widest = self._shape_with(slots)
        return rows * self.bytes_for(widest, config, dtype) <= self._budget

    def join(self, states: Tensor, slots: int) -> int:
        """Take in a row that starts with `states` (`[layers, 2, kv_heads, n, head_dim]`) and may come to use
        `slots`. Returns its number."""
        row, length = len(self), states.shape[3]
        self._make_room(states, slots)
        assert self._states is not None
        self._states[:, :, row, :, :length] = states
        self._lengths.append(length)
        self._reserved.append(slots)
        return row

    def leave(self, row: int) -> None:
        """Give a row up; the last one takes its number."""
        last, length = len(self) - 1, self._lengths[-1]
        if row != last:
            assert self._states is not None
            self._states[:, :, row, :, :length] = self._states[:, :, last, :, :length]
            self._lengths[row], self._reserved[row] = self._lengths[last], self._reserved[last]
        self._lengths.pop()
        self._reserved.pop()

    def clear(self) -> None:
        self._states, self._lengths, self._reserved = None, [], []

    def begin_pass(self) -> tuple[Tensor, list[int]]:
        """For a forward pass with one new token a row: all states, and the slots that the rows' new ones go to."""
        assert self._states is not None
        places = self._lengths
        self._lengths = [length + 1 for length in places]
        return self._states, places

    def begin_step(self) -> "Step":
        """The cache and the mask of such a pass as it is, without a slot too many."""
        return Step(*self.begin_pass())

    def _shape_with(self, slots: int) -> tuple[int, int]:
        """Rows and slots of the table after one more row of `slots` joins."""
        rows, widest = len(self) + 1, max([slots, *self._reserved])
        if self._states is not None:
            _, _, has_rows, _, has_slots, _ = self._states.shape
            if rows <= has_rows and widest <= has_slots:
                return has_rows, has_slots
            # What is there may be wide for a row that has left: count anew.
            rows = max(rows, has_rows if len(self) else 0)
        return 1 << (rows - 1).bit_length(), -(-widest // SLOTS_AT_ONCE) * SLOTS_AT_ONCE

    def _make_room(self, states: Tensor, slots: int) -> None:
        rows, widest = self._shape_with(slots)
        old = self._states
        if old is not None and (old.shape[2], old.shape[4]) == (rows, widest):
            return
        if not len(self):
            self._states = old = None  # freed before the new one is made
        layers, two, heads, _, head_dim = states.shape
        # Zeros: a hidden slot has weight 0, but 0 times what happens to be in memory may be NaN.
        fresh = states.new_zeros(layers, two, rows, heads, widest, head_dim)
        if old is not None:
            used = max(self._lengths)
            fresh[:, :, : len(self), :, :used] = old[:, :, : len(self), :, :used]
        self._states = fresh


class Step:
    """What the model's forward pass takes as its cache: `update` writes each row's new state behind its last
    and gives back all rows up to the longest."""

    def __init__(self, states: Tensor, lengths: list[int]) -> None:
        self._states = states
        self._places = torch.tensor(lengths, device=states.device)
        self._rows = torch.arange(len(lengths), device=states.device)
        self._end = max(lengths) + 1
        slots = torch.arange(self._end, device=states.device)
        self.mask = (slots[None] <= self._places[:, None])[:, None, None]  # [rows, 1, 1, slots]

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """`keys`, `values`: `[rows, kv_heads, 1, head_dim]`."""
        held = self._states[layer]
        held[0][self._rows, :, self._places] = keys[:, :, 0]
        held[1][self._rows, :, self._places] = values[:, :, 0]
        rows = len(self._rows)
        return held[0, :rows, :, : self._end], held[1, :rows, :, : self._end]
