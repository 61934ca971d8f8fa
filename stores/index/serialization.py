"""A trained vector index as bytes, and back: opening a large namespace must not train it again.

A flat index is not serialised: filling it from vectors is as fast as reading it.

    index        the structure as Faiss serialises it
    index.about  {structure, made_for, effort}: further state of `VectorIndex` and `faiss_structures`
    index.rows   of a graph: row numbers by position, and which positions are alive
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import faiss as _faiss
import numpy as np

from stores.index.faiss_structures import Flat, Graph, Structure, Tree
from stores.index.vector_index import VectorIndex
from stores.index.vectors import Vectors

faiss: Any = _faiss  # its stubs lack half of what is used here
Buffer = bytes | memoryview


def serialize(index: VectorIndex) -> dict[str, Buffer]:
    """The index as named parts; none if building it from vectors is as fast."""
    with index._changing:
        active = index._active
        if isinstance(active, Flat):
            return {}
        about = {"structure": active.kind, "made_for": index._made_for, "effort": _effort(active)}
        parts: dict[str, Buffer] = {
            "index": memoryview(faiss.serialize_index(active._index)),  # type: ignore[attr-defined]
            "index.about": json.dumps(about).encode(),
        }
        if isinstance(active, Graph):
            places = int(active._index.ntotal)
            alive = np.unpackbits(active._alive, count=places, bitorder="little")
            parts["index.rows"] = np.where(alive, active._rows[:places], -1).astype("<i8").tobytes()
        return parts


def deserialize(index: VectorIndex, parts: Mapping[str, Buffer], rows: Sequence[int]) -> None:
    """Fill an empty index from the parts of `serialize`, with these rows. Raises `KeyError` or `ValueError` if the
    parts do not fit together."""
    about = json.loads(bytes(parts["index.about"]))
    raw = faiss.deserialize_index(np.frombuffer(parts["index"], np.uint8))
    active = _tree(raw, about) if about["structure"] == Tree.kind else _graph(raw, about, parts["index.rows"])
    alive = active._index.ntotal - (active.tombstones if isinstance(active, Graph) else 0)
    if raw.d != index.dim or alive != len(rows):
        raise ValueError(f"index of {alive} rows of {raw.d}, not {len(rows)} of {index.dim}")
    with index._changing:
        index._active, index._made_for, index._rows = active, about["made_for"], {*rows}


def structure_vectors(dim: int, parts: Mapping[str, Buffer], rows: Sequence[int]) -> Vectors:
    """The vectors `[len(rows), dim]` in the parts of `serialize`."""
    index = VectorIndex(dim, live=False)
    deserialize(index, parts, rows)
    return index.vectors_of(rows)


def _effort(active: Structure) -> int:
    return active.probes if isinstance(active, Tree) else active.effort  # type: ignore[attr-defined]


def _tree(raw: Any, about: Mapping[str, Any]) -> Tree:
    tree = Tree.__new__(Tree)
    tree._index, tree.probes = raw, about["effort"]
    return tree


def _graph(raw: Any, about: Mapping[str, Any], rows: Buffer) -> Graph:
    graph = Graph.__new__(Graph)
    graph._index, graph.effort = raw, about["effort"]
    graph._rows = np.frombuffer(rows, "<i8").copy()
    bits = np.packbits(graph._rows >= 0, bitorder="little")
    graph._alive = np.concatenate([bits, np.zeros(1, np.uint8)])
    graph._positions = {row: place for place, row in enumerate(graph._rows.tolist()) if row >= 0}
    graph.find_copies()
    return graph
