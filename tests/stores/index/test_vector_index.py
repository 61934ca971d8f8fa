"""Dense indexes of every kind against the exact oracle, while they grow, lose rows and are rebuilt."""

import threading

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stores.index import gpu_ivf
from stores.index import vector_index as module
from stores.index.faiss_structures import CHUNK, FEW, Graph, Tree, asking, best_few, recall_of
from stores.index.serialization import deserialize, serialize
from stores.index.vector_index import IndexPlan, VectorIndex
from tests.support.stores import DIM

SMALL = 40  # rows from which on the tests grow beyond flat


def clustered(n: int, dim: int = 64, seed: int = 0) -> np.ndarray:
    """Unit vectors as texts give: topics of unequal size, each with a few directions of its own."""
    rng = np.random.default_rng(seed)
    topics, directions = 60, 12
    sizes = 1.0 / np.arange(1, topics + 1)
    topic = rng.choice(topics, n, p=sizes / sizes.sum())
    centres = rng.normal(size=(topics, dim))
    spans = rng.normal(size=(topics, directions, dim))
    rows = centres[topic] + np.einsum("nk,nkd->nd", 0.4 * rng.normal(size=(n, directions)), spans[topic])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def exact(vectors: dict[int, np.ndarray], query: np.ndarray, k: int) -> list[float]:
    return sorted((float(vector @ query) for vector in vectors.values()), reverse=True)[:k]


class IndexAgainstDict(RuleBasedStateMachine):
    """Calibrated to recall 1.0, every kind must answer as the dict does, at any moment of a rebuild."""

    kind = "auto"

    @initialize(seed=st.integers(0, 1000))
    def start(self, seed):
        self.rng = np.random.default_rng(seed)
        self.index = VectorIndex(DIM, IndexPlan(kind=self.kind, flat_max=SMALL, recall=1.0))
        self.model: dict[int, np.ndarray] = {}
        self.next = 0

    @rule(n=st.integers(1, 60))
    def add(self, n):
        vectors = self.rng.normal(size=(n, DIM)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        rows = [*range(self.next, self.next + n)]
        self.next += n
        self.index.add(rows, vectors)
        self.model.update(zip(rows, vectors, strict=True))

    @precondition(lambda self: self.model)
    @rule(share=st.floats(0.0, 1.0), strangers=st.integers(0, 3))
    def remove(self, share, strangers):
        gone = [row for row in self.model if self.rng.random() < share]
        assert self.index.remove([*gone, *range(-strangers, 0)]) == len(gone)
        for row in gone:
            del self.model[row]

    @rule()
    def settle(self):
        self.index.settle()
        assert self.index.failure is None
        if self.kind != "flat" and len(self.model) > SMALL:
            assert self.index.kind == ("ivf" if self.kind == "auto" else self.kind)

    @rule(k=st.integers(1, 12))
    def search(self, k):
        query = self.rng.normal(size=DIM).astype(np.float32)
        query /= np.linalg.norm(query)
        cosines, rows = self.index.search(query[None], k)
        wanted = exact(self.model, query, k)
        assert len(set(rows[0].tolist())) == len(wanted)
        for cosine, row in zip(cosines[0], rows[0], strict=True):
            assert cosine == pytest.approx(float(self.model[row] @ query), abs=1e-5)
        found = sum(cosine >= limit - 1e-5 for cosine, limit in zip(cosines[0], wanted, strict=True))
        assert found >= (len(wanted) if self.index.kind == "flat" else 0.5 * len(wanted))

    @rule(k=st.integers(1, 12), share=st.floats(0.0, 1.0))
    def search_among(self, k, share):
        query = self.rng.normal(size=DIM).astype(np.float32)
        query /= np.linalg.norm(query)
        among = [row for row in self.model if self.rng.random() < share]
        cosines, rows = self.index.search(query[None], k, among)
        assert set(rows[0].tolist()) <= set(among)
        wanted = exact({row: self.model[row] for row in among}, query, k)
        assert cosines[0] == pytest.approx(wanted, abs=1e-5)

    @invariant()
    def same_size(self):
        if hasattr(self, "model"):
            assert len(self.index) == len(self.model)

    def teardown(self):
        if hasattr(self, "index"):
            self.index.settle()


def _machine(kind: str) -> type:
    case = type(f"Index_{kind}", (IndexAgainstDict,), {"kind": kind}).TestCase
    case.settings = settings(
        max_examples=15, stateful_step_count=20, deadline=None, suppress_health_check=[*HealthCheck]
    )
    return case


TestFlat, TestTree, TestGraph = _machine("flat"), _machine("auto"), _machine("hnsw")


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_recall_of_clustered_vectors(kind):
    vectors = clustered(6000)
    index = VectorIndex(64, IndexPlan(kind=kind, flat_max=1000))
    index.add([*range(6000)], vectors)
    index.settle()
    assert index.kind == kind and index.builds >= 1
    queries = asking(vectors[::60], seed=5)
    truth = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    assert recall_of(index.search(queries, 10)[1], truth) >= 0.95


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_large_selections_are_searched_exactly(kind, monkeypatch):
    monkeypatch.setattr("stores.index.faiss_structures.GATHER", 100)
    vectors = clustered(2000)
    index = VectorIndex(64, IndexPlan(kind=kind, flat_max=100))
    index.add([*range(2000)], vectors)
    index.settle()
    among = [*range(0, 2000, 3)]
    [cosines], _ = index.search(vectors[5:6], 20, among)
    assert cosines == pytest.approx(np.sort(vectors[among] @ vectors[5])[::-1][:20], abs=1e-5)


def test_a_tombstone_keeps_nothing_of_what_stood_in_for_it_either():
    """Its vector is that of its nearest neighbour, which may be removed later, also after the graph was read
    from a snapshot."""
    plan = IndexPlan(kind="hnsw", flat_max=100)
    index, back = VectorIndex(16, plan), VectorIndex(16, plan, live=False)
    vectors = np.random.default_rng(5).normal(size=(200, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[1] = vectors[0] + np.float32(1e-3) * vectors[2]
    vectors[1] /= np.linalg.norm(vectors[1])
    index.add([*range(200)], vectors)
    index.settle()
    index.remove([0])
    assert (index._active._stored() == vectors[1]).all(axis=1).sum() == 2
    deserialize(back, serialize(index), [*range(1, 200)])
    for each in (index, back):
        each.remove([1])
        held = each._active._stored()
        assert not (held == vectors[0]).all(axis=1).any() and not (held == vectors[1]).all(axis=1).any()


def test_a_tombstone_keeps_nothing_of_what_was_removed():
    vectors = clustered(500)
    graph = Graph(64)
    graph.add(np.arange(500), vectors)
    graph.remove(np.arange(0, 500, 10))
    kept = graph._stored()
    for gone in range(0, 500, 10):
        assert not (np.abs(kept - vectors[gone]).max(axis=1) < 1e-6).any()
    assert graph.tombstones == 50
    assert not set(graph.search(vectors[:1], 450)[1][0].tolist()) & set(range(0, 500, 10))


def test_a_worn_graph_is_built_again():
    index = VectorIndex(64, IndexPlan(kind="hnsw", flat_max=100))
    index.add([*range(600)], clustered(600))
    index.settle()
    index.remove([*range(200)])
    index.settle()
    assert index._active.tombstones == 0 and len(index) == 400


def test_a_tree_that_has_grown_is_made_again():
    vectors = clustered(3000)
    index = VectorIndex(64, IndexPlan(flat_max=400))
    index.add([*range(500)], vectors[:500])
    index.settle()
    assert isinstance(index._active, Tree)
    before = index._active.lists
    for start in range(500, 3000, 50):
        index.add([*range(start, start + 50)], vectors[start : start + 50])
    index.settle()
    assert index._active.lists > before


def test_searches_beside_a_build_see_every_row(monkeypatch):
    """Writers and searchers share a lock, as in a shard; the builder does not take it."""
    monkeypatch.setattr(module, "COPY", 16)
    vectors = clustered(2500)
    index = VectorIndex(64, IndexPlan(flat_max=300))
    lock, stop, short = threading.Lock(), threading.Event(), []

    def search():
        while not stop.is_set():
            with lock:
                size, found = len(index), index.search(vectors[:1], 5)[1][0]
            if size and (found < 0).any():
                short.append(size)

    searching = threading.Thread(target=search)
    searching.start()
    try:
        for row in range(2500):
            with lock:
                index.add([row], vectors[row : row + 1])
                if row % 5 == 4:
                    index.remove([row - 2])
    finally:
        stop.set()
        searching.join()
    index.settle()
    kept = [row for row in range(2500) if row % 5 != 2]
    assert not short and len(index) == len(kept) and index.kind == "ivf"
    [found] = index.search(vectors[:1], len(kept))[1]
    assert sorted(found.tolist()) == kept


def test_a_failed_build_leaves_the_old_structure(monkeypatch):
    def fail(self, sample, size):
        raise RuntimeError("no memory for centroids")

    monkeypatch.setattr(Tree, "__init__", fail)
    vectors = clustered(200)
    index = VectorIndex(64, IndexPlan(flat_max=100))
    index.add([*range(200)], vectors)
    index.settle()
    assert "no memory" in index.failure and index.kind == "flat"
    assert index.search(vectors[:1], 1)[1][0, 0] == 0


@pytest.mark.parametrize("k", [1, 4, FEW])
def test_many_queries_of_a_flat_index_are_answered_as_one_by_one(k):
    rng = np.random.default_rng(k)
    index = VectorIndex(DIM, IndexPlan(kind="flat"))
    vectors = rng.normal(size=(300, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index.add([*range(1000, 1300)], vectors)
    index.remove([*range(1050, 1100)])
    queries = rng.permutation(vectors)[: CHUNK + 9]
    cosines, rows = index.search(queries, k)
    for query, cosine, row in zip(queries, cosines, rows, strict=True):
        alone, which = index.search(query[None], k)
        np.testing.assert_allclose(cosine, alone[0], atol=1e-6)
        assert row.tolist() == which[0].tolist()


def test_the_best_few_are_the_first_of_a_stable_sort():
    cosines = np.random.default_rng(0).integers(0, 5, size=(50, 12)).astype(np.float32)
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :6]
    best, places = best_few(cosines.copy(), 6)
    assert places.tolist() == order.tolist()
    assert best.tolist() == np.take_along_axis(cosines, order, axis=1).tolist()


def test_a_row_is_added_once():
    index = VectorIndex(64)
    index.add([1], clustered(1))
    with pytest.raises(AssertionError):
        index.add([1], clustered(1))


def test_rows_removed_since_the_gpu_copy_are_dropped_from_its_answers():
    """With a copy in host memory in the GPU's place: what is tested is how its answers are used."""
    vectors = clustered(1000)
    tree = gpu_ivf.GpuTree(vectors, 1000)
    tree.add(np.arange(900), vectors[:900])
    tree._copy = faiss.clone_index(tree._index)
    tree._copy.nprobe = tree.lists
    tree.add(np.arange(900, 1000), vectors[900:])
    tree.remove(np.arange(0, 1000, 20))
    kept = np.array([row for row in range(1000) if row % 20])
    for query in vectors[:40]:
        cosines, rows = tree.search(query[None], 10)
        assert cosines[0] == pytest.approx(np.sort(vectors[kept] @ query)[::-1][:10], abs=1e-5)
        assert not (rows % 20 == 0).any()
    assert tree.searches == 40 and not tree.worn
    tree.remove(np.arange(1, 1000, 3))
    assert tree.worn and not np.isin(tree.search(vectors[:5], 10)[1], np.arange(1, 1000, 3)).any()
    assert tree.searches == 40


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_ivf.available(), reason="faiss-gpu is not installed, or sees no GPU")
def test_the_tree_on_a_gpu_answers_as_the_one_in_memory():
    vectors = clustered(6000)
    index = VectorIndex(64, IndexPlan(flat_max=1000))
    index.add([*range(5000)], vectors[:5000])
    index.settle()
    index.add([*range(5000, 6000)], vectors[5000:])
    index.remove([*range(0, 100)])
    queries = asking(vectors[::60], seed=5)
    kept = np.arange(100, 6000)
    truth = kept[np.argsort(-(queries @ vectors[100:].T), axis=1)[:, :10]]
    assert index.kind == "ivf-gpu" and recall_of(index.search(queries, 10)[1], truth) >= 0.95
    assert index._active.searches == 1
