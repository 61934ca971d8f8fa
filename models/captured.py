"""Forward passes of fixed shape, which a GPU records once as a graph and then replays.

A pass over a few tokens takes a GPU several times as long to be told of, kernel by kernel, as to do. A CUDA graph
tells it all at once, but always with the same shapes at the same addresses. So rows are filled up to a power of two,
tokens and slots to the next step of a few, and what changes from pass to pass lies in buffers: token ids, positions,
the slots that the new states go to, and the order of all slots, by which a token sees what is not after it.
Where shapes repeat, the second pass of a shape is recorded (the first one warms up) and the later ones replay it.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.injection import Prompt
from models.table import KVTable, shape_of

SLOTS_AT_ONCE = 128
FILL_TOKENS = (32, 64, 128, 256)  # of a prompt in one pass; longer parts keep a GPU busy by themselves
LONG_PROMPT = 2 * FILL_TOKENS[-1]  # tokens; beyond, launching kernels is not what takes the time
LEAST_SLOTS = 1024  # of the buffer that prompts are filled into
HIDDEN = torch.iinfo(torch.long).max  # the order of a slot that nobody sees
GRAPHS = 96  # kept at most, of a few MB each; the one used longest ago goes


def widened(slots: int) -> int:
    """At most a quarter more, so that rows which grow by a slot a pass come by few shapes."""
    step = max(SLOTS_AT_ONCE, 1 << max(0, (slots - 1).bit_length() - 3))
    return -(-slots // step) * step


@dataclass(frozen=True, kw_only=True)
class New:
    """What a pass is given, a row each of `[rows, tokens]`: ids, positions, and the slots of their states. `order`: of
    the slots, `[slots]`, and `orders` of the new tokens among them; None: as the slots stand. `last`: the token
    whose logits are wanted."""

    ids: Sequence[Sequence[int]]
    positions: Sequence[Sequence[int]]
    places: Sequence[Sequence[int]]
    order: Tensor | None = None
    last: int = 0


class Pass:
    """`tokens` new tokens for each of some rows, behind up to `slots` slots each. `states`: of these rows, `[layers, 2,
    rows, kv_heads, at least slots, head_dim]`; new states are written there. It is the model's cache meanwhile."""

    def __init__(self, states: Tensor, tokens: int, slots: int) -> None:
        rows, device = states.shape[2], states.device
        self._states, self._tokens, self._slots = states, tokens, slots
        self._given = torch.zeros(4, rows, tokens, dtype=torch.long, device=device)
        self._ids, self._positions, self._places, self._orders = self._given.unbind()
        self._order = torch.arange(slots, device=device)
        self._last = torch.zeros(1, dtype=torch.long, device=device)
        self._rows = torch.arange(rows, device=device)[:, None]

    def give(self, new: New) -> None:
        """Rows that are not given write to their first slot, which `KVTable.join` writes anew."""
        orders = new.places if new.order is None else new.positions
        given = torch.tensor([new.ids, new.positions, new.places, orders])
        self._given[:, : given.shape[1]].copy_(given)
        self._given[:, given.shape[1] :].zero_()
        if new.order is not None:
            self._order.copy_(new.order)
        if self._tokens > 1:
            self._last.fill_(new.last)

    def run(self, model: Any) -> Tensor:
        """Logits of the wanted token of each row, `[rows, vocabulary]`."""
        hidden = self._order > self._orders[..., None]  # [rows, tokens, slots]
        mask = torch.zeros(hidden.shape, dtype=self._states.dtype, device=hidden.device)
        out = model(
            input_ids=self._ids,
            position_ids=self._positions,
            attention_mask=mask.masked_fill_(hidden, -torch.inf)[:, None],
            past_key_values=self,
            logits_to_keep=self._last,
        )
        logits: Tensor = out.logits[:, 0]
        return logits

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """`keys`, `values`: `[rows, kv_heads, tokens, head_dim]`."""
        held = self._states[layer]
        held[0][self._rows, :, self._places] = keys.transpose(1, 2)
        held[1][self._rows, :, self._places] = values.transpose(1, 2)
        return held[0, :, :, : self._slots], held[1, :, :, : self._slots]


class Passes:
    """The passes over one buffer of states at a time; `record` them as graphs, or just run them. Not thread-safe."""

    def __init__(self, *, record: bool) -> None:
        self.recorded = self.replayed = 0
        self.failures = 0
        self.error: Exception | None = None  # of a recording; from then on passes run as they are
        self._record = record
        self._states: Tensor | None = None
        self._passes: OrderedDict[Hashable, Pass] = OrderedDict()
        self._graphs: dict[Hashable, tuple[Any, Tensor]] = {}
        self._pool: Any = None

    @torch.inference_mode()
    def run(
        self, forward: Callable[[Pass], Tensor], version: Hashable, states: Tensor, slots: int, new: New
    ) -> Tensor:
        """Logits `[rows given, vocabulary]`, which stand until the next pass. `forward` runs one with the weights of
        `version`, which stands for their addresses too; `states`: all rows of the buffer."""
        if states is not self._states:  # a new buffer: the old one goes with all that was recorded over it
            self.clear()
            self._states = states
        count = len(new.ids)
        rows = min(1 << (count - 1).bit_length(), states.shape[2])
        tokens = len(new.ids[0])
        key = (version, rows, tokens, slots)
        known = key in self._passes
        if not known:
            self._passes[key] = Pass(states[:, :, :rows], tokens, slots)
        self._passes.move_to_end(key)
        chosen = self._passes[key]
        chosen.give(new)
        if known and self._record and key not in self._graphs:
            self._try_to_record(forward, key, chosen)
        if key in self._graphs:
            graph, logits = self._graphs[key]
            graph.replay()
            self.replayed += 1
        else:
            logits = forward(chosen)
        while len(self._passes) > GRAPHS:
            oldest, _ = self._passes.popitem(last=False)
            self._graphs.pop(oldest, None)
        return logits[:count]

    def clear(self) -> None:
        self._states = None
        self._passes.clear()
        self._graphs.clear()
        self._pool = None  # it ends with the last graph in it

    def status(self) -> dict[str, Any]:
        return {
            "recorded": self.recorded,
            "replayed": self.replayed,
            "failures": self.failures,
            "error": None if self.error is None else str(self.error),
        }

    def _try_to_record(self, forward: Callable[[Pass], Tensor], key: Hashable, chosen: Pass) -> None:
        try:
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            # Other threads (an embedder's) may allocate meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                logits = forward(chosen)
        except Exception as error:
            self._record, self.error = False, error
            self.failures += 1
            return
        self._graphs[key] = graph, logits
        self.recorded += 1


class Filling:
    """A prompt being run behind its prefix, as `models.prefix.Prefill` does it, in passes of fixed shape over a buffer
    of one row, which is its alone meanwhile."""

    def __init__(self, prompt: Prompt, passes: Passes, buffer: Tensor, version: Hashable) -> None:
        prefix = prompt.prefix
        self.logits = torch.empty(0)
        self.position = prompt.length
        again = prefix.again if prefix else ()
        start = prefix.length if prefix else 0
        self._tokens = [token for token, _ in again] + prompt.ids
        self._positions = [place for _, place in again] + [*range(start, self.position)]
        self._passes, self._buffer, self._version = passes, buffer, version
        self._next = 0
        self._used = prefix.slots if prefix else 0  # slots
        self._order = torch.full((buffer.shape[4],), HIDDEN)
        if prefix:
            buffer[:, :, 0, :, : self._used] = prefix.lay()
            self._order[: self._used] = prefix.positions

    @property
    def done(self) -> bool:
        return self._next >= len(self._tokens)

    @property
    def states(self) -> Tensor:
        """`[layers, 2, kv_heads, slots, head_dim]` of what has run, in the buffer."""
        return self._buffer[:, :, 0, :, : self._used]

    def advance(self, model: Any, limit: int) -> int:
        """Run up to `limit` more tokens. Returns how many."""
        count = min(len(self._tokens) - self._next, FILL_TOKENS[-1], limit)
        size = next(size for size in FILL_TOKENS if size >= count)
        # Padding goes to the slots behind, where nobody sees it and the next part overwrites it.
        padding = [0] * (size - count)
        positions = self._positions[self._next : self._next + count]
        self._order[self._used : self._used + count] = torch.tensor(positions)
        slots = widened(self._used + size)
        new = New(
            ids=[self._tokens[self._next : self._next + count] + padding],
            positions=[positions + padding],
            places=[[*range(self._used, self._used + size)]],
            order=self._order[:slots],
            last=count - 1,
        )
        logits = self._passes.run(lambda chosen: chosen.run(model), self._version, self._buffer, slots, new)
        self._next += count
        self._used += count
        if self.done:
            self.logits = logits[0].clone()
        return count


class FixedShapes:
    """An engine's passes of fixed shape: prompts that are filled in, and tokens that are decoded."""

    def __init__(self, model: Any, *, record: bool) -> None:
        self.decodes, self.fills = Passes(record=record), Passes(record=record)
        self.long = self.mixed = 0  # prompts and passes that are run without
        self._model = model
        self._buffer: Tensor | None = None

    def filling(self, prompt: Prompt, version: Hashable) -> Filling | None:
        """None for a long prompt, which is better run in large parts."""
        if prompt.tokens > LONG_PROMPT:
            self.long += 1
            return None
        slots = widened(prompt.slots + FILL_TOKENS[-1])
        if self._buffer is None or self._buffer.shape[4] < slots:
            self.fills.clear()
            self._buffer = None  # freed before the new one is made
            self._buffer = torch.zeros(
                shape_of(self._model.config, 1, max(slots, LEAST_SLOTS)),
                dtype=self._model.dtype,
                device=self._model.device,
            )
        return Filling(prompt, self.fills, self._buffer, version)

    def decode(
        self,
        forward: Callable[[Pass], Tensor],
        version: Hashable,
        table: KVTable,
        tokens: Sequence[int],
        positions: Sequence[int],
    ) -> Tensor:
        """Logits behind one more token of each row of the table, `[rows, vocabulary]`, which stand until the next
        pass."""
        states, places = table.begin_pass()
        slots = min(widened(max(places) + 1), states.shape[4])
        new = New(ids=_column(tokens), positions=_column(positions), places=_column(places))
        return self.decodes.run(forward, version, states, slots, new)

    def status(self) -> dict[str, Any]:
        return {
            "decoding": self.decodes.status(),
            "filling": self.fills.status(),
            "long_prompts": self.long,
            "mixed_passes": self.mixed,
        }


def _column(numbers: Sequence[int]) -> list[list[int]]:
    return [[number] for number in numbers]
