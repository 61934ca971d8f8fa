"""Cosine search over the vectors of one namespace, rebuilt from the log. The structures are in
`faiss_structures.py`.

`auto` searches up to `index_flat_max` rows exactly and more through the k-means tree: against the
graph it builds about five times faster, removes in place and needs no neighbour lists, at a few times its
search time. A larger structure is built in the background while this one answers:

    copy the rows, a chunk at a time -> train, fill, calibrate -> catch up with what changed -> swap

Searches use whichever structure was whole when they began. Writers wait for one chunk (`COPY` rows) or
for the last `LAST` changes, never for a build.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stores.index import gpu_ivf
from stores.index.faiss_structures import (
    CALIBRATION,
    Flat,
    Graph,
    Rows,
    Structure,
    Tree,
    as_rows,
    asking,
    lists_for,
)
from stores.index.vectors import Vectors

COPY = 2048  # rows copied while writers wait
LAST = 64  # changes applied while writers wait
SAMPLE_A_LIST = 32  # training vectors a centroid
GROWN = 4  # a tree is rebuilt when it holds so many times the rows it was built for

Kind = Literal["auto", "flat", "ivf", "hnsw"]
_one_build_at_a_time = threading.Semaphore(1)  # in the process: builds compete with searches for cores


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexPlan:
    """Which structure to use from how many rows on, and the recall it is calibrated to on its own vectors."""

    kind: Kind = "auto"
    flat_max: int = 10_000
    recall: float = 0.98


class VectorIndex:
    """Unit vectors by row number. Many threads may search; adding and removing need exclusive access.

    While `live` is false nothing is built: opening a log sets it at the end, by `grow`.
    """

    def __init__(self, dim: int, plan: IndexPlan | None = None, *, live: bool = True) -> None:
        self.dim = dim
        self.plan = plan or IndexPlan()
        self.live = live
        self.builds = 0
        self.failure: str | None = None
        self._rows: set[int] = set()
        self._active: Structure = Flat(dim)
        self._made_for = self._not_before = 0  # rows of the last build; rows before the next after a failure
        self._changing = threading.Lock()  # between writers and the builder; searches never take it
        self._journal: list[tuple[Rows, Vectors | None]] | None = None
        self._builder: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def kind(self) -> str:
        """The structure in use: flat, ivf, ivf-gpu or hnsw."""
        return self._active.kind

    def add(self, rows: Sequence[int], vectors: Vectors) -> None:
        """Add `vectors` `[len(rows), dim]`, unit norm. A row must be added once only: Faiss would return it twice."""
        fresh = set(rows)
        assert len(fresh) == len(rows) and self._rows.isdisjoint(fresh), "a row is added once"
        if not rows:
            return
        change = as_rows(rows), np.ascontiguousarray(vectors, np.float32)
        with self._changing:
            self._active.add(*change)
            self._rows |= fresh
            if self._journal is not None:
                self._journal.append(change)
        self.grow()

    def remove(self, rows: Sequence[int]) -> int:
        """Remove rows; unknown ones are ignored. Returns how many were removed."""
        gone = self._rows.intersection(rows)
        if not gone:
            return 0
        with self._changing:
            self._active.remove(as_rows([*gone]))
            self._rows -= gone
            if self._journal is not None:
                self._journal.append((as_rows([*gone]), None))
        self.grow()
        return len(gone)

    def search(self, vectors: Vectors, k: int, among: Sequence[int] | None = None) -> tuple[Vectors, Rows]:
        """Cosines and rows, `[len(vectors), k]`, best first, of all rows or of those in `among`, exactly.

        `k` is cut to the number of rows searched, so every position holds a real row. Rows of `among` must
        be in the index.
        """
        k = min(k, len(self) if among is None else len(among))
        if k <= 0 or not len(vectors):
            return np.empty((len(vectors), 0), np.float32), np.empty((len(vectors), 0), np.int64)
        queries = np.ascontiguousarray(vectors, np.float32)
        active = self._active
        if among is None:
            return active.search(queries, k)
        return active.exact(queries, k, as_rows(among))

    def vectors_of(self, rows: Sequence[int]) -> Vectors:
        """A copy of the vectors of these rows, `[len(rows), dim]`; every row must be in the index."""
        with self._changing:
            return self._active.vectors(as_rows(rows)) if rows else np.empty((0, self.dim), np.float32)

    def grow(self) -> None:
        """Start building the structure for the present size, unless it exists or is being built."""
        if self.plan.kind == "flat" or len(self) <= self.plan.flat_max:
            return
        with self._changing:
            if self.live and self._builder is None and (wanted := self._wanted()):
                self._builder = threading.Thread(target=self._build, args=(wanted,), daemon=True)
                self._builder.start()

    def settle(self) -> None:
        """Wait until nothing is being built."""
        while (builder := self._builder) is not None:
            builder.join()

    def _wanted(self) -> str | None:
        size = len(self)
        if size < self._not_before:
            return None
        kind = "ivf" if self.plan.kind == "auto" else self.plan.kind
        active = self._active
        is_there = isinstance(active, Graph if kind == "hnsw" else Tree)
        outgrown = kind == "ivf" and size > GROWN * self._made_for
        return kind if not is_there or active.worn or outgrown else None

    def _build(self, kind: str) -> None:
        try:
            with _one_build_at_a_time:
                with self._changing:
                    self._journal = []
                    rows = as_rows([*self._rows])
                made = self._made(kind, np.random.default_rng(len(rows)).permutation(rows))
                self._catch_up(made, len(rows))
                self.builds += 1
        except (RuntimeError, MemoryError) as error:  # Faiss raises RuntimeError; the old structure stays
            self.failure = f"{kind} of {len(self)} rows: {error}"
            self._not_before = 2 * len(self)
        finally:
            with self._changing:
                self._journal = self._builder = None
        self.grow()

    def _made(self, kind: str, rows: Rows) -> Structure:
        """The new structure, filled with those of `rows` that still exist."""
        made: Tree | Graph
        if kind == "ivf":
            wanted = SAMPLE_A_LIST * lists_for(len(rows))
            sample = [self._copy(chunk)[1] for chunk in _chunks(rows[:wanted])]
            made = (gpu_ivf.GpuTree if gpu_ivf.available() else Tree)(np.concatenate(sample), len(rows))
        else:
            made = Graph(self.dim)
        for chunk in _chunks(rows):
            there, vectors = self._copy(chunk)
            if len(there):
                made.add(there, vectors)
        _, vectors = self._copy(rows[-CALIBRATION:])
        if len(vectors):
            made.calibrate(asking(vectors), self.plan.recall)
        return made

    def _copy(self, rows: Rows) -> tuple[Rows, Vectors]:
        with self._changing:
            there = as_rows([row for row in rows.tolist() if row in self._rows])
            vectors = self._active.vectors(there) if len(there) else np.empty((0, self.dim), np.float32)
        time.sleep(0.0005)  # locks are not fair: give a waiting writer a chance
        return there, vectors

    def _catch_up(self, made: Structure, made_for: int) -> None:
        for _ in range(8):  # each turn has less to do than the one before, unless writers outrun it
            with self._changing:
                journal, self._journal = self._journal or [], []
                if sum(len(rows) for rows, _ in journal) <= LAST:
                    self._swap(made, journal, made_for)
                    return
            _replay(made, journal)
        with self._changing:
            self._swap(made, self._journal or [], made_for)

    def _swap(self, made: Structure, journal: list[tuple[Rows, Vectors | None]], made_for: int) -> None:
        _replay(made, journal)
        self._active, self._made_for = made, made_for


def _replay(made: Structure, journal: list[tuple[Rows, Vectors | None]]) -> None:
    for rows, vectors in journal:
        if vectors is None:
            made.remove(rows)
        else:
            made.add(rows, vectors)


def _chunks(rows: Rows) -> list[Rows]:
    return [rows[start : start + COPY] for start in range(0, len(rows), COPY)]
