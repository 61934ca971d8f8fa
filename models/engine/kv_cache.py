"""KV cache of the requests that decode together (one row each, padded on the right), and forward passes over it.

    states   [layers, 2, rows, kv_heads, slots, head_dim]

Rows in use are contiguous from row 0: `join` takes the next row, `leave` moves the last row into the gap, so a pass
reads one slice without copying. Unused slots are zero: the mask gives them weight 0, but 0 times uninitialised memory,
or what a broken adapter wrote, may be NaN.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SLOTS_AT_ONCE = 128  # a row grows by this many, so that answers of like length do not reallocate


def shape_of(config: Any, rows: int, slots: int) -> tuple[int, ...]:
    """Shape of the states of a model with this configuration."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, 2, rows, config.num_key_value_heads, slots, head_dim


class KVCache:
    """KV cache that grows with demand up to `budget_bytes`. Not thread-safe: the engine's lock protects it."""

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

    @property
    def slots(self) -> int:
        """Slots that each row has memory for."""
        return 0 if self._states is None else self._states.shape[4]

    def row(self, row: int) -> Tensor:
        """The states of a row's slots in use, in place: `[layers, 2, kv_heads, slots, head_dim]`."""
        assert self._states is not None
        return self._states[:, :, row, :, : self._lengths[row]]

    @staticmethod
    def bytes_for(slots: int, config: Any, dtype: torch.dtype) -> int:
        """Bytes of `slots` in one row, for a model with this configuration."""
        slots = -(-slots // SLOTS_AT_ONCE) * SLOTS_AT_ONCE
        return math.prod(shape_of(config, 1, slots)) * dtype.itemsize

    def fits(self, slots: int, config: Any, dtype: torch.dtype) -> bool:
        """Whether one more row of `slots` fits the budget."""
        rows, widest = self._shape_with(slots)
        return rows * self.bytes_for(widest, config, dtype) <= self._budget

    def join(self, states: Tensor, slots: int) -> int:
        """Add a row initialised with `states` (`[layers, 2, kv_heads, n, head_dim]`) that may grow to `slots` slots.
        Returns its number."""
        row, length = len(self), states.shape[3]
        self._make_room(states, slots)
        assert self._states is not None
        self._states[:, :, row, :, :length] = states
        self._lengths.append(length)
        self._reserved.append(slots)
        return row

    def leave(self, row: int) -> None:
        """Free a row; the last row moves to its place and takes its number."""
        assert self._states is not None
        last, length, gone = len(self) - 1, self._lengths[-1], self._lengths[row]
        if row != last:
            self._states[:, :, row, :, :length] = self._states[:, :, last, :, :length]
            self._states[:, :, row, :, length:gone].zero_()
            self._lengths[row], self._reserved[row] = length, self._reserved[last]
        self._states[:, :, last, :, :length].zero_()
        self._lengths.pop()
        self._reserved.pop()

    def clear(self) -> None:
        self._states, self._lengths, self._reserved = None, [], []

    def begin_pass(self, ids: Sequence[int], positions: Sequence[int]) -> tuple[Tensor, "New"]:
        """Reserve a slot in each row for one new token. Returns all states and the inputs of the pass."""
        assert self._states is not None
        new = New(ids=_column(ids), positions=_column(positions), places=_column(self._lengths))
        self._lengths = [length + 1 for length in self._lengths]
        return self._states, new

    def _shape_with(self, slots: int) -> tuple[int, int]:
        """Rows and slots of the table after one more row of `slots` joins."""
        rows, widest = len(self) + 1, max([slots, *self._reserved])
        if self._states is not None:
            _, _, has_rows, _, has_slots, _ = self._states.shape
            if rows <= has_rows and widest <= has_slots:
                return has_rows, has_slots
            # What is there may be wide for a row that has left: count again.
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
        fresh = states.new_zeros(layers, two, rows, heads, widest, head_dim)
        if old is not None:
            used = max(self._lengths)
            fresh[:, :, : len(self), :, :used] = old[:, :, : len(self), :, :used]
        self._states = fresh


@dataclass(frozen=True, kw_only=True)
class New:
    """Inputs of a pass, `[rows, tokens]` each: ids, positions, and destination slots (`places`). `order`: position
    of each slot, `[slots]`; None: slots are in order. `last`: index of the token whose logits are returned."""

    ids: Sequence[Sequence[int]]
    positions: Sequence[Sequence[int]]
    places: Sequence[Sequence[int]]
    order: Tensor | None = None
    last: int = 0

    @property
    def slots(self) -> int:
        """Minimum number of slots that the pass must cover."""
        return 1 + max(map(max, self.places))


class Pass:
    """A forward pass of `tokens` new tokens in each of `rows` rows over `slots` slots, the new ones included. It is
    passed to the model as its cache: `update` writes new states to their slots and returns all states."""

    def __init__(self, rows: int, tokens: int, slots: int, device: torch.device) -> None:
        self._slots = slots
        self._given = torch.zeros(4, rows, tokens, dtype=torch.long, device=device)
        self._order = torch.arange(slots, device=device)
        self._last = torch.zeros(1, dtype=torch.long, device=device)
        self._rows = torch.arange(rows, device=device)[:, None]
        self._states: Tensor | None = None

    def give(self, new: New) -> None:
        """Set the inputs. Unused rows write to their first slot, which the next request in that row overwrites."""
        orders = new.places if new.order is None else new.positions
        given = torch.tensor([new.ids, new.positions, new.places, orders])
        self._given[:, : given.shape[1]].copy_(given)
        self._given[:, given.shape[1] :].zero_()
        if new.order is not None:
            self._order.copy_(new.order)
        self._last.fill_(new.last)

    def run(self, model: Any, states: Tensor) -> Tensor:
        """Logits of the token `last` of each row, `[rows, vocabulary]`. `states`: `[layers, 2, at least rows, kv_heads,
        at least slots, head_dim]`."""
        ids, positions, _, orders = self._given.unbind()
        hidden = self._order > orders[..., None]  # [rows, tokens, slots]
        mask = torch.zeros(hidden.shape, dtype=states.dtype, device=hidden.device)
        self._states = states[:, :, : len(self._rows)]
        try:
            out = model(
                input_ids=ids,
                position_ids=positions,
                attention_mask=mask.masked_fill_(hidden, -torch.inf)[:, None],
                past_key_values=self,
                logits_to_keep=self._last,
            )
        finally:
            self._states = None
        logits: Tensor = out.logits[:, 0]
        return logits

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """`keys`, `values`: `[rows, kv_heads, tokens, head_dim]`."""
        assert self._states is not None
        held, places = self._states[layer], self._given[2]
        held[0][self._rows, :, places] = keys.transpose(1, 2)
        held[1][self._rows, :, places] = values.transpose(1, 2)
        return held[0, :, :, : self._slots], held[1, :, :, : self._slots]


def _column(numbers: Sequence[int]) -> list[list[int]]:
    return [[number] for number in numbers]
