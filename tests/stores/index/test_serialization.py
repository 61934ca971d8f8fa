"""An index that comes back from its bytes answers as it did, and takes changes as it did."""

import numpy as np
import pytest

from stores.index.serialization import deserialize, serialize, structure_vectors
from stores.index.vector_index import IndexPlan, VectorIndex
from tests.support.stores import DIM


def vectors(count: int, seed: int = 0) -> np.ndarray:
    made = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_a_trained_index_comes_back_whole(kind: str) -> None:
    plan = IndexPlan(kind=kind, flat_max=50)  # type: ignore[arg-type]
    index = VectorIndex(DIM, plan)
    index.add([*range(1, 401)], vectors(400))
    index.settle()
    index.remove([3, 5, 7])
    assert index.kind == kind
    parts = serialize(index)
    rows = [row for row in range(1, 401) if row not in (3, 5, 7)]
    back = VectorIndex(DIM, plan, live=False)
    deserialize(back, {name: memoryview(data) for name, data in parts.items()}, rows)
    for each in (index, back):
        assert np.array_equal(each.vectors_of(rows), vectors(400)[[row - 1 for row in rows]])
    assert np.array_equal(structure_vectors(DIM, parts, rows), index.vectors_of(rows))
    for step in range(3):
        asked = vectors(20, seed=9 + step)
        for mine, its in zip(back.search(asked, 10), index.search(asked, 10), strict=True):
            assert np.array_equal(mine, its)
        for each in (index, back):
            each.remove([20 + step])
            each.add([900 + step], vectors(1, seed=50 + step))
    index.settle()


def test_a_flat_index_is_built_from_vectors() -> None:
    index = VectorIndex(DIM, IndexPlan(kind="flat"))
    index.add([1, 2], vectors(2))
    assert serialize(index) == {}


def test_parts_that_do_not_fit_are_refused() -> None:
    index = VectorIndex(DIM, IndexPlan(kind="ivf", flat_max=50))
    index.add([*range(100)], vectors(100))
    index.settle()
    with pytest.raises(ValueError, match="100 rows"):
        deserialize(VectorIndex(DIM), serialize(index), [*range(99)])
