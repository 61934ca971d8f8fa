"""One memory tier of KV blocks, with a byte budget and eviction of the least recently used."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from models.kv.prefix import KVBlock
from models.kv.quantised import Int8States

Key = tuple[str, str, str]  # namespace, memory id, fingerprint


class Tier:
    """Least-recently-used cache of blocks. Not thread-safe: the store's lock protects it."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.size_bytes = 0
        self.blocks: OrderedDict[Key, KVBlock] = OrderedDict()

    def get(self, key: Key) -> KVBlock | None:
        block = self.blocks.get(key)
        if block is not None:
            self.blocks.move_to_end(key)
        return block

    def hold(self, key: Key, block: KVBlock, place: Callable[[Tensor], Tensor]) -> None:
        """Keep a copy of the block whose tensors were moved by `place`, unless it is held already or exceeds the
        budget."""
        if key in self.blocks or block.size_bytes > self.budget_bytes:
            return
        self.blocks[key] = replace(block, states=_placed(block.states, place))
        self.size_bytes += block.size_bytes
        while self.size_bytes > self.budget_bytes:
            self.drop(next(iter(self.blocks)))

    def drop(self, key: Key) -> None:
        block = self.blocks.pop(key, None)
        if block is not None:
            self.size_bytes -= block.size_bytes


def _placed(states: Tensor | Int8States, place: Callable[[Tensor], Tensor]) -> Tensor | Int8States:
    if isinstance(states, Int8States):
        return Int8States(**{name: place(tensor) for name, tensor in states.tensors().items()})
    return place(states)
