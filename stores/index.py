"""Exact cosine search over the vectors of one namespace: a Faiss flat index, rebuilt from the log."""

from collections.abc import Sequence

import faiss
import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]


class VectorIndex:
    """Unit vectors by row number. Many threads may search; adding and removing need the index alone."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._index = faiss.IndexIDMap2(faiss.IndexFlatIP(dim))
        self._rows: set[int] = set()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, rows: Sequence[int], vectors: Vectors) -> None:
        """`vectors`: `[len(rows), dim]`, unit norm. Faiss would take a row twice and answer it twice."""
        fresh = set(rows)
        assert len(fresh) == len(rows) and not fresh & self._rows, "a row is added once"
        if rows:
            self._index.add_with_ids(np.ascontiguousarray(vectors), np.asarray(rows, np.int64))
            self._rows |= fresh

    def remove(self, rows: Sequence[int]) -> int:
        """Forget rows; those not there are passed over. Returns how many went."""
        if not rows:
            return 0
        self._rows.difference_update(rows)
        return int(self._index.remove_ids(faiss.IDSelectorBatch(np.asarray(rows, np.int64))))

    def vectors(self, rows: Sequence[int]) -> Vectors:
        """A copy of the vectors of these rows, `[len(rows), dim]`; every row must be there."""
        if not rows:
            return np.empty((0, self.dim), np.float32)
        found: Vectors = self._index.reconstruct_batch(np.asarray(rows, np.int64))
        return found

    def dump(self) -> bytes | None:
        """The index as bytes, for `load`; None where building it from vectors is as quick."""
        return None

    @classmethod
    def load(cls, dim: int, data: bytes) -> "VectorIndex":
        """The inverse of `dump`."""
        raise NotImplementedError("a flat index is built from its vectors")

    def search(self, vectors: Vectors, k: int, among: Sequence[int] | None = None) -> tuple[Vectors, Rows]:
        """Cosines and rows, `[len(vectors), k]`, best first, of all rows or of those in `among`.

        `k` is cut to the number of rows searched, so every place holds a real row.
        """
        k = min(k, len(self) if among is None else len(among))
        if k <= 0 or not len(vectors):
            return np.empty((len(vectors), 0), np.float32), np.empty((len(vectors), 0), np.int64)
        chosen = None
        if among is not None:
            chosen = faiss.SearchParameters(sel=faiss.IDSelectorBatch(np.asarray(among, np.int64)))  # type: ignore[call-arg]
        return self._index.search(np.ascontiguousarray(vectors), k, params=chosen)
