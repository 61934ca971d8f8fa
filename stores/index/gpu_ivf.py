"""The k-means tree on a GPU, where faiss-gpu is installed and sees one.

The tree in host memory is authoritative: it receives every change, answers exact searches, and answers when the copy
cannot. A GPU index is not safe for two threads, not even for reading, so its searches wait for each other; and it
cannot remove, so removed rows are dropped from its answers until the tree is rebuilt.
"""

import threading
from typing import Any

import faiss as _faiss
import numpy as np

from stores.index.faiss_structures import Found, Rows, Tree
from stores.index.vectors import Vectors

faiss: Any = _faiss
MAX_K = 1024  # of a search on the GPU
MAX_GONE = 256  # removed rows that a search allows for; with more the host answers


def available() -> bool:
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


class GpuTree(Tree):
    """A `Tree` with a copy on the GPU. `searches` counts those that the GPU answered."""

    kind = "ivf-gpu"

    def __init__(self, sample: Vectors, size: int) -> None:
        super().__init__(sample, size)
        self._resources: Any = None
        self._copy: Any = None
        self._gone: set[int] = set()
        self._searching = threading.Lock()
        self.searches = 0

    @property
    def worn(self) -> bool:
        return len(self._gone) > MAX_GONE

    def calibrate(self, queries: Vectors, recall: float) -> None:
        """As `Tree.calibrate`; then copies the complete tree to the GPU."""
        super().calibrate(queries, recall)
        self._resources = faiss.StandardGpuResources()
        self._copy = faiss.index_cpu_to_gpu(self._resources, 0, self._index)
        self._copy.nprobe = self.probes

    def add(self, rows: Rows, vectors: Vectors) -> None:
        super().add(rows, vectors)
        if self._copy is not None:
            with self._searching:
                self._copy.add_with_ids(vectors, rows)

    def remove(self, rows: Rows) -> None:
        super().remove(rows)
        if self._copy is not None:
            self._gone.update(rows.tolist())

    def search(self, vectors: Vectors, k: int) -> Found:
        wide = k + len(self._gone)
        if self._copy is None or self.worn or wide > MAX_K:
            return super().search(vectors, k)
        with self._searching:
            cosines, rows = self._copy.search(vectors, wide)
            self.searches += 1
        kept = (rows >= 0) & ~np.isin(rows, np.fromiter(self._gone, np.int64, len(self._gone)))
        if (kept.sum(axis=1) < k).any():
            return super().search(vectors, k)
        first = np.argsort(~kept, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(cosines, first, axis=1), np.take_along_axis(rows, first, axis=1)
