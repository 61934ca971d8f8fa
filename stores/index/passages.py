"""Further vectors of long texts: an embedder reads the beginning of a text, so what follows has vectors of its own.

A memory is found by the best of its vectors. Most memories have one, so the others lie in a small index beside the main
one, rebuilt from the memories' states.
"""

import base64
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from stores.index.vector_index import IndexPlan, VectorIndex
from stores.index.vectors import Vectors

WIDE = 4  # passages looked at for each memory wanted, since several may be of one memory


class Stored(Protocol):
    """A memory as the view holds it; `seq` is its row, `passages` its further vectors."""

    seq: int
    passages: list[str]


class Passages:
    """The further vectors of a namespace's memories. A search excludes writers by the lock of the view."""

    def __init__(self, dim: int, plan: IndexPlan | None = None) -> None:
        self._index = VectorIndex(dim, plan)
        self._row_of: dict[int, int] = {}  # passage -> row of its memory
        self._of: dict[int, list[int]] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._row_of)

    def add(self, entry: Stored, vector: Any = None) -> None:
        if entry.passages:
            own = [*range(self._next, self._next + len(entry.passages))]
            self._next += len(own)
            self._index.add(own, np.stack([decode(passage) for passage in entry.passages]))
            self._row_of.update(dict.fromkeys(own, entry.seq))
            self._of[entry.seq] = own

    def remove(self, entry: Stored) -> None:
        own = self._of.pop(entry.seq, [])
        self._index.remove(own)
        for passage in own:
            del self._row_of[passage]

    def search(self, vector: Vectors, k: int, among: Collection[int] | None = None) -> dict[int, float]:
        """Row -> best cosine of its passages to `vector` `[1, dim]`, of about the `k` best rows (of all, or exactly of
        those in `among`)."""
        chosen = None if among is None else [passage for row in among for passage in self._of.get(row, ())]
        cosines, found = self._index.search(vector, WIDE * k if chosen is None else len(chosen), chosen)
        best: dict[int, float] = {}
        for cosine, passage in zip(cosines[0].tolist(), found[0].tolist(), strict=True):
            best.setdefault(self._row_of[passage], cosine)
        return best


def encode(vectors: Iterable[Vectors]) -> list[str]:
    """Base64 of float32 vectors, little endian, as a memory's state and its record keep them."""
    return [base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode() for vector in vectors]


def decode(passage: str) -> Vectors:
    return np.frombuffer(base64.b64decode(passage), "<f4")


def merged(dense: dict[int, float], passages: dict[int, float], k: int) -> dict[int, float]:
    """The `k` best rows, best first, each with the best of its cosines."""
    best = dict(dense)
    for row, cosine in passages.items():
        best[row] = max(cosine, best.get(row, -1.0))
    chosen: Sequence[int] = sorted(best, key=lambda row: (-best[row], row))[:k]
    return {row: best[row] for row in chosen}
