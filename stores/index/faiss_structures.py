"""The Faiss structures behind `VectorIndex`: flat, spherical k-means tree, neighbour graph.

One interface: `add(rows, vectors)`, `remove(rows)`, `search(vectors, k)`, `exact(vectors, k, among)` and
`vectors(rows)`, over unit vectors by row number and by inner product. Searches may run side by side;
a change needs the structure alone. `k` is at most the number of rows, so every position is filled.

| structure | search of n rows | memory a row beside the vector | removing |
|---|---|---|---|
| `Flat` | all of them, exact | its number | O(n) copy |
| `Tree` | some of 4 sqrt(n) lists | its number and its position | O(1) |
| `Graph` | some of the neighbours | its number, 64 neighbours | tombstone, until the next rebuild |
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import faiss as _faiss
import numpy as np
from numpy.typing import NDArray

from stores.index.vectors import Vectors

faiss: Any = _faiss  # its stubs lack half of what is used here
Rows = NDArray[np.int64]
Found = tuple[Vectors, Rows]

GATHER = 4096  # up to so many selected rows are gathered and multiplied; more are filtered from a full scan
CALIBRATION = 64  # queries used to measure recall
RECALL_K = 10
SIDE_BY_SIDE = 32  # queries from which on one product of a flat index is quicker than Faiss's scans ...
FEW = 8  # ... as long as each wants no more than so many rows
CHUNK = 256  # queries of one product: at most 10 MB of cosines
WORN = 0.25  # tombstones of a graph, as a share of its rows, before it is built again


class Structure(Protocol):
    @property
    def kind(self) -> str: ...

    @property
    def worn(self) -> bool:
        """True if so much was removed that the structure should be rebuilt."""
        ...

    def add(self, rows: Rows, vectors: Vectors) -> None: ...

    def remove(self, rows: Rows) -> None: ...

    def search(self, vectors: Vectors, k: int) -> Found: ...

    def exact(self, vectors: Vectors, k: int, among: Rows) -> Found: ...

    def vectors(self, rows: Rows) -> Vectors: ...


class Flat:
    """An exact scan of all rows, for small namespaces."""

    kind = "flat"
    worn = False

    def __init__(self, dim: int) -> None:
        self._index = faiss.IndexIDMap2(faiss.IndexFlatIP(dim))

    def add(self, rows: Rows, vectors: Vectors) -> None:
        self._index.add_with_ids(vectors, rows)

    def remove(self, rows: Rows) -> None:
        self._index.remove_ids(faiss.IDSelectorBatch(rows))

    def search(self, vectors: Vectors, k: int) -> Found:
        if len(vectors) < SIDE_BY_SIDE or k > FEW:
            return self._index.search(vectors, k)
        stored, rows = stored_in(self._index.index), faiss.vector_to_array(self._index.id_map)
        chunks = [vectors[start : start + CHUNK] for start in range(0, len(vectors), CHUNK)]
        cosines, positions = zip(*(best_few(chunk @ stored.T, k) for chunk in chunks), strict=True)
        return np.concatenate(cosines), rows[np.concatenate(positions)]

    def exact(self, vectors: Vectors, k: int, among: Rows) -> Found:
        if len(among) <= GATHER:
            return best_of(vectors, self.vectors(among), among, k)
        chosen = faiss.SearchParameters(sel=faiss.IDSelectorBatch(among))
        return self._index.search(vectors, k, params=chosen)

    def vectors(self, rows: Rows) -> Vectors:
        return self._index.reconstruct_batch(rows)


class Tree:
    """Spherical k-means: rows lie in lists around unit centroids, and a search reads the nearest lists.

    The number of lists read is measured: see `calibrate`.
    """

    kind = "ivf"

    def __init__(self, sample: Vectors, size: int) -> None:
        """Train on `sample` `[m, dim]` for about `size` rows. 4 sqrt(n) lists balance the two scans of a
        search, of centroids and of rows."""
        dim = sample.shape[1]
        lists = max(1, min(lists_for(size), len(sample)))
        self._index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
        self._index.cp.spherical = True
        self._index.cp.min_points_per_centroid = 1
        self._index.cp.niter = 8
        self._index.train(sample)
        # O(1) removal, and vectors by row
        self._index.set_direct_map_type(faiss.DirectMap.Hashtable)
        self.probes = lists

    @property
    def worn(self) -> bool:
        return False

    @property
    def lists(self) -> int:
        return int(self._index.nlist)

    def add(self, rows: Rows, vectors: Vectors) -> None:
        self._index.add_with_ids(vectors, rows)

    def remove(self, rows: Rows) -> None:
        self._index.remove_ids(faiss.IDSelectorArray(rows))

    def search(self, vectors: Vectors, k: int) -> Found:
        probes = min(self.lists, self.probes * max(1, k // 64))
        while True:
            chosen = faiss.SearchParametersIVF(nprobe=probes)
            cosines, rows = self._index.search(vectors, k, params=chosen)
            if probes >= self.lists or (rows >= 0).all():
                return cosines, rows
            probes = min(self.lists, 4 * probes)

    def exact(self, vectors: Vectors, k: int, among: Rows) -> Found:
        if len(among) <= GATHER:
            return best_of(vectors, self.vectors(among), among, k)
        chosen = faiss.SearchParametersIVF(sel=faiss.IDSelectorBatch(among), nprobe=self.lists)
        return self._index.search(vectors, k, params=chosen)

    def vectors(self, rows: Rows) -> Vectors:
        return self._index.reconstruct_batch(rows)

    def calibrate(self, queries: Vectors, recall: float) -> None:
        """Read the fewest lists, in doublings, that find `recall` of what all lists hold."""

        def tried(probes: int) -> Rows:
            chosen = faiss.SearchParametersIVF(nprobe=probes)
            return self._index.search(queries, RECALL_K, params=chosen)[1]

        self.probes = _least(tried, tried(self.lists), recall, start=4, limit=self.lists)


class Graph:
    """HNSW: the fewest vectors read by a search, and the most memory and time to build.

    Faiss cannot remove from it, so a removed row becomes a tombstone: searches pass through it and never return it.
    Its vector is overwritten at once by that of its nearest living neighbour, so nothing of the removed content
    stays and the graph keeps its paths. The number of `tombstones` decides when it is rebuilt.
    """

    kind = "hnsw"
    LINKS = 32

    def __init__(self, dim: int) -> None:
        self._index = faiss.IndexHNSWFlat(dim, self.LINKS, faiss.METRIC_INNER_PRODUCT)
        self._index.hnsw.efConstruction = 80
        self._rows = np.empty(0, np.int64)  # by position in the graph
        self._positions: dict[int, int] = {}
        self._alive = np.empty(0, np.uint8)  # a bit a position
        self._copies: dict[int, list[int]] = {}  # living position -> tombstones that hold its vector
        self.effort = 64

    @property
    def worn(self) -> bool:
        return self.tombstones > WORN * len(self._positions)

    @property
    def tombstones(self) -> int:
        return int(self._index.ntotal) - len(self._positions)

    def add(self, rows: Rows, vectors: Vectors) -> None:
        start = int(self._index.ntotal)
        self._index.add(vectors)
        if len(self._rows) < start + len(rows):
            room = max(1024, 2 * (start + len(rows)))
            self._rows = np.resize(self._rows, room)
            self._alive = np.concatenate([self._alive, np.zeros(room // 8 + 1 - len(self._alive), np.uint8)])
        self._rows[start : start + len(rows)] = rows
        for position, row in enumerate(rows.tolist(), start):
            self._positions[row] = position
            self._alive[position >> 3] |= 1 << (position & 7)

    def remove(self, rows: Rows) -> None:
        positions = [
            position for row in rows.tolist() if (position := self._positions.pop(row, None)) is not None
        ]
        for position in positions:
            self._alive[position >> 3] &= 0xFF ^ (1 << (position & 7))
        positions += [copy for position in positions for copy in self._copies.pop(position, ())]
        stored = self._stored()
        if not self._positions:
            stored[positions] = 0.0
        elif positions:
            _, nearest = self._search(stored[positions], 1, 16)
            stored[positions] = stored[np.maximum(nearest[:, 0], 0)]
            for position, near in zip(positions, nearest[:, 0].tolist(), strict=True):
                if near < 0:
                    stored[position] = 0.0
                else:
                    self._copies.setdefault(near, []).append(position)

    def find_copies(self) -> None:
        """Recompute, after the graph was read from a file, which tombstones hold the vector of which living
        position."""
        stored = self._stored()
        dead: dict[int, list[int]] = {}
        self._copies = {}
        for position in np.flatnonzero(self._rows[: len(stored)] < 0).tolist():
            dead.setdefault(hash(stored[position].tobytes()), []).append(position)
        for position in self._positions.values() if dead else ():
            if copies := dead.pop(hash(stored[position].tobytes()), None):
                self._copies[position] = copies

    def search(self, vectors: Vectors, k: int) -> Found:
        effort = max(self.effort, 2 * k)
        cosines, positions = self._search(vectors, k, effort)
        if (positions < 0).any():  # a search may end among tombstones: then scan all living rows
            chosen = faiss.SearchParameters(sel=self._living())
            cosines, positions = self._index.storage.search(vectors, k, params=chosen)
        return cosines, self._rows[positions]

    def exact(self, vectors: Vectors, k: int, among: Rows) -> Found:
        if len(among) <= GATHER:
            return best_of(vectors, self.vectors(among), among, k)
        positions = np.array([self._positions[row] for row in among.tolist()], np.int64)
        chosen = faiss.SearchParameters(sel=faiss.IDSelectorBatch(positions))
        cosines, found = self._index.storage.search(vectors, k, params=chosen)
        return cosines, self._rows[found]

    def vectors(self, rows: Rows) -> Vectors:
        return self._stored()[[self._positions[row] for row in rows.tolist()]]

    def calibrate(self, queries: Vectors, recall: float) -> None:
        """Follow the fewest neighbours, in doublings, that find `recall` of what a scan finds."""
        chosen = faiss.SearchParameters(sel=self._living())
        truth = self._index.storage.search(queries, RECALL_K, params=chosen)[1]
        limit = min(4096, int(self._index.ntotal))
        tried: Callable[[int], Rows] = lambda effort: self._search(queries, RECALL_K, effort)[1]  # noqa: E731
        self.effort = _least(tried, truth, recall, start=16, limit=limit)

    def _search(self, vectors: Vectors, k: int, effort: int) -> Found:
        chosen = faiss.SearchParametersHNSW(sel=self._living(), efSearch=effort)
        return self._index.search(vectors, k, params=chosen)

    def _living(self) -> Any:
        return faiss.IDSelectorBitmap(self._alive)

    def _stored(self) -> Vectors:
        """The graph's own vectors `[positions, dim]`, not a copy."""
        return stored_in(self._index.storage)


def lists_for(size: int) -> int:
    return max(1, round(4 * math.sqrt(size)))


def stored_in(flat: Any) -> Vectors:
    """A flat Faiss index's own vectors `[rows, dim]`, not a copy."""
    index = faiss.downcast_index(flat)
    return faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(index.ntotal, index.d)


def best_few(cosines: Vectors, k: int) -> Found:
    """The best `k` of each row of `cosines` `[n, m]`, with their positions, both `[n, k]`, best first; equal
    ones in order. Overwrites the found cosines: a few passes are faster than sorting."""
    each = np.arange(len(cosines))
    best, positions = np.empty((len(cosines), k), np.float32), np.empty((len(cosines), k), np.int64)
    for turn in range(k):
        positions[:, turn] = cosines.argmax(axis=1)
        best[:, turn] = cosines[each, positions[:, turn]]
        cosines[each, positions[:, turn]] = -np.inf
    return best, positions


def best_of(queries: Vectors, vectors: Vectors, rows: Rows, k: int) -> Found:
    """The best `k` of a few rows, by one product."""
    cosines = queries @ vectors.T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(cosines, order, axis=1), rows[order]


def asking(vectors: Vectors, seed: int = 1337) -> Vectors:
    """Queries as far from stored vectors `[n, dim]` as questions are from their answers: cosine 0.7."""
    noise = np.random.default_rng(seed).normal(size=vectors.shape).astype(np.float32)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    mixed = vectors + noise
    return mixed / np.linalg.norm(mixed, axis=1, keepdims=True)


def recall_of(found: Rows, truth: Rows) -> float:
    """Share of `truth` `[n, k]` that `found` `[n, k]` holds."""
    hits = [len(np.intersect1d(a, b)) for a, b in zip(found, truth, strict=True)]
    return sum(hits) / max(1, truth.size)


def _least(tried: Callable[[int], Rows], truth: Rows, recall: float, *, start: int, limit: int) -> int:
    effort = min(start, limit)
    while effort < limit and recall_of(tried(effort), truth) < recall:
        effort = min(limit, 2 * effort)
    return effort


def as_rows(rows: Sequence[int]) -> Rows:
    return np.asarray(rows, np.int64)
