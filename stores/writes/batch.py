"""A batch of memories with their embeddings, passed whole from the API to a shard's log."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from common.errors import InvalidInput
from stores.index.vectors import Vectors, check_vectors
from stores.memory.memory import Memory


@dataclass(frozen=True, slots=True)
class MemoryBatch:
    """`vectors[i]` is the embedding of `memories[i]`: float32 `[n, dim]`, unit norm; `passages[i]`, `[m, dim]`, are
    further ones of a long text."""

    memories: Sequence[Memory]
    vectors: Vectors
    passages: Mapping[int, Vectors] = field(default_factory=dict)

    @classmethod
    def of(cls, items: Iterable[tuple[Memory, Vectors]]) -> "MemoryBatch":
        """From pairs of a memory and its vector `[dim]`. Raises `InvalidInput` where vectors differ in shape."""
        pairs = [*items]
        if len({np.shape(vector) for _, vector in pairs}) > 1:
            raise InvalidInput("vector: every one must have the same shape", param="vector")
        vectors = np.stack([vector for _, vector in pairs]) if pairs else np.empty((0, 0), np.float32)
        return cls([memory for memory, _ in pairs], vectors)

    def __len__(self) -> int:
        return len(self.memories)

    def select(self, indices: Sequence[int]) -> "MemoryBatch":
        passages = {place: self.passages[i] for place, i in enumerate(indices) if i in self.passages}
        return MemoryBatch([self.memories[i] for i in indices], self.vectors[[*indices]], passages)

    def checked(self, dim: int) -> "MemoryBatch":
        """The batch with vectors of `dim` dimensions and unit norm; raises `InvalidInput` otherwise."""
        passages = {i: check_vectors(vectors, dim) for i, vectors in self.passages.items() if len(vectors)}
        return MemoryBatch(self.memories, check_vectors(self.vectors, dim), passages)

    @property
    def namespaces(self) -> list[str]:
        return [memory.namespace for memory in self.memories]
