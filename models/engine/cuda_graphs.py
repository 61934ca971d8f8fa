"""Forward passes of fixed shape, recorded as CUDA graphs and replayed.

Kernel launches dominate a pass over a few tokens. A CUDA graph launches all kernels at once, but always with the same
shapes at the same addresses. So rows are padded to a power of two, tokens and slots to one of a few sizes, and the
inputs of each pass are copied into the buffers of a `models.engine.kv_cache.Pass`. The first pass of
a shape warms up, the second is recorded, later ones replay the graph.
"""

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from models.engine.injection import Prompt
from models.engine.kv_cache import SLOTS_AT_ONCE, KVCache, New, Pass, shape_of
from models.kv.prefix import to_run

FILL_TOKENS = (32, 64, 128, 256)  # of a prompt in one pass
LONG_PROMPT = 2 * FILL_TOKENS[-1]  # tokens; beyond, launching kernels is not what takes the time
LEAST_SLOTS, MOST_SLOTS = 1024, 4096  # of the buffer that prompts are filled into
HIDDEN = torch.iinfo(torch.long).max  # the order of a slot that no token attends to
PASSES = (
    96  # shapes kept, with a graph of a few MB each where one was recorded; the one used longest ago goes
)

Forward = Callable[[Pass, Tensor], Tensor]  # runs a pass over states by some version of the weights
Replay = Callable[[], Tensor]
Record = Callable[[Replay, Any], tuple[Replay, Any]]  # as `cuda_graph`

logger = logging.getLogger(__name__)


def widened(slots: int) -> int:
    """Round up so that lengths share few shapes: at most 25% of waste, or 127 slots below 512."""
    step = max(SLOTS_AT_ONCE, 1 << max(0, (slots - 1).bit_length() - 3))
    return -(-slots // step) * step


def cuda_graph(run: Replay, pool: Any) -> tuple[Replay, Any]:
    """Record the kernels that `run` launches. Returns a function that launches them again and writes the logits to the
    same place, and the memory pool, which ends with the last graph in it."""
    pool = pool or torch.cuda.graph_pool_handle()
    graph = torch.cuda.CUDAGraph()
    # The outer context leads back to this thread's stream also where a recording cannot begin or end.
    with (
        torch.cuda.stream(torch.cuda.current_stream()),
        torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"),
    ):
        logits = run()

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay, pool


class Passes:
    """Passes over one buffer of states at a time, recorded with `record` unless it is None. Not thread-safe."""

    def __init__(self, record: Record | None) -> None:
        self.recorded = self.replayed = self.failures = 0
        self.error: Exception | None = None  # of the last recording that failed
        self.record = record
        self._recording = record is not None  # until one fails; then again with the next buffer
        self._buffer: Callable[[], Tensor | None] = lambda: None
        self._passes: OrderedDict[Hashable, Pass] = OrderedDict()
        self._replays: dict[Hashable, Replay] = {}
        self._pool: Any = None

    @torch.inference_mode()
    def run(self, forward: Forward, version: Hashable, states: Tensor, slots: int, new: New) -> Tensor:
        """Logits `[rows given, vocabulary]`, which stand until the next pass. `version` stands for the weights that
        `forward` runs with, and for their addresses; `states`: all rows of the buffer."""
        if self._buffer() is not states:
            self.clear()
            self._buffer = weakref.ref(states)
        count, tokens = len(new.ids), len(new.ids[0])
        rows = min(1 << (count - 1).bit_length(), states.shape[2])
        key = (version, rows, tokens, slots)
        known = key in self._passes
        if not known:
            self._passes[key] = Pass(rows, tokens, slots, states.device)
        self._passes.move_to_end(key)
        chosen = self._passes[key]
        chosen.give(new)
        if known and self._recording and key not in self._replays:
            self._try_to_record(key, lambda: forward(chosen, states))
        if key in self._replays:
            logits = self._replays[key]()
            self.replayed += 1
        else:
            logits = forward(chosen, states)
        if len(self._passes) > PASSES:
            oldest, _ = self._passes.popitem(last=False)
            self._replays.pop(oldest, None)
            self._end_pool()
        return logits[:count]

    def clear(self) -> None:
        """Drop the buffer and all graphs recorded over it."""
        self._buffer = lambda: None
        self._passes.clear()
        self._replays.clear()
        self._end_pool()
        self._recording = self.record is not None

    @property
    def num_kept(self) -> tuple[int, int]:
        """Number of shapes kept, and how many of them have a graph."""
        return len(self._passes), len(self._replays)

    @property
    def has_pool(self) -> bool:
        """Whether memory is held for graphs."""
        return self._pool is not None

    def status(self) -> dict[str, Any]:
        return {
            "recorded": self.recorded,
            "replayed": self.replayed,
            "failures": self.failures,
            "error": None if self.error is None else str(self.error),
        }

    def _try_to_record(self, key: Hashable, run: Replay) -> None:
        assert self.record is not None
        try:
            self._replays[key], self._pool = self.record(run, self._pool)
            self.recorded += 1
        except Exception as error:
            self.failures += 1
            self.error, self._recording = error, False
            logger.warning("a CUDA graph could not be recorded, passes run kernel by kernel: %s", error)

    def _end_pool(self) -> None:
        if not self._replays:
            self._pool = None


class Filling:
    """Prefill of one prompt behind its prefix, as `models.kv.prefix.Prefill` does it, in passes of fixed shape over a
    buffer of one row, which no other prompt uses meanwhile."""

    def __init__(self, prompt: Prompt, passes: Passes, buffer: Tensor, version: Hashable) -> None:
        prefix = prompt.prefix
        self.logits = torch.empty(0)
        self.position = prompt.length
        self._tokens, self._positions = to_run(prefix, prompt.ids)
        self._passes, self._buffer, self._version = passes, buffer, version
        self._next = 0
        self._used = prefix.slots if prefix else 0  # slots
        self._order = torch.full((buffer.shape[4],), HIDDEN)
        if prefix:
            buffer[:, :, 0, :, : self._used] = prefix.lay()
            self._order[: self._used] = prefix.positions
        buffer[:, :, 0, :, self._used :].zero_()  # as `models.engine.kv_cache` requires

    @property
    def done(self) -> bool:
        return self._next >= len(self._tokens)

    @property
    def states(self) -> Tensor:
        """`[layers, 2, kv_heads, slots, head_dim]` of what has run, in the buffer."""
        return self._buffer[:, :, 0, :, : self._used]

    def advance(self, model: Any, limit: int) -> int:
        """Run up to `limit` more tokens, at most one pass. Returns the number run."""
        count = min(len(self._tokens) - self._next, FILL_TOKENS[-1], limit)
        size = next(size for size in FILL_TOKENS if size >= count)
        # Padding goes to the slots behind, where no token attends to it and the next part overwrites it.
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
        logits = self._passes.run(
            lambda chosen, states: chosen.run(model, states), self._version, self._buffer, slots, new
        )
        self._next += count
        self._used += count
        if self.done:
            self.logits = logits[0].clone()
        return count


class FixedShapes:
    """An engine's fixed-shape passes, for prefill and for decoding."""

    def __init__(self, model: Any, record: Record | None = None) -> None:
        self.decodes, self.fills = Passes(record), Passes(record)
        self.long = self.mixed = 0  # prompts and passes that are run without
        self._model = model
        self.buffer: Tensor | None = None

    def filling(self, prompt: Prompt, version: Hashable) -> Filling | None:
        """Start a fixed-shape prefill. None for a prompt of many tokens, which runs faster in large chunks, or of many
        slots, whose large buffer would be kept."""
        slots = widened(prompt.slots + FILL_TOKENS[-1])
        if prompt.tokens > LONG_PROMPT or slots > MOST_SLOTS:
            self.long += 1
            return None
        if self.buffer is None or self.buffer.shape[4] < slots:
            self.fills.clear()
            self.buffer = torch.zeros(
                shape_of(self._model.config, 1, max(slots, LEAST_SLOTS)),
                dtype=self._model.dtype,
                device=self._model.device,
            )
        return Filling(prompt, self.fills, self.buffer, version)

    def decode(
        self,
        forward: Forward,
        version: Hashable,
        table: KVCache,
        ids: Sequence[int],
        positions: Sequence[int],
    ) -> Tensor:
        """Logits behind one more token of each row of the table, `[rows, vocabulary]`, which stand until the next
        pass."""
        states, new = table.begin_pass(ids, positions)
        slots = min(widened(new.slots), states.shape[4])
        return self.decodes.run(forward, version, states, slots, new)

    def status(self) -> dict[str, Any]:
        return {
            "decoding": self.decodes.status(),
            "filling": self.fills.status(),
            "buffer_bytes": 0 if self.buffer is None else self.buffer.numel() * self.buffer.element_size(),
            "long_prompts": self.long,
            "mixed_passes": self.mixed,
        }
