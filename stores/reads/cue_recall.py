"""Recall of an episode from a partial cue.

Writes pay nothing for it: sparse keys are made only for the candidates that the dense index returns for a cue.
"""

from common.config import StoreConfig
from common.types import Page
from stores.locks import ReadWriteLock
from stores.reads import search
from stores.reads.sparse_keys import SparseKeys
from stores.view.memory_state import unshared
from stores.view.view import View

WIDE = 256  # candidates of the dense index that keys are made of


def complete(
    view_lock: ReadWriteLock, view: View, wanted: search.Ask, k: int, shard: int, config: StoreConfig
) -> Page:
    """The memory to which the cue `wanted.vector` (`[1, dim]`) is completed, then those nearest to the cue as given,
    `k` in all: `{memory, score, scores: {dense, completed, overlap}}`. See `SparseKeys.recall`."""
    near = {
        hit["memory"]["seq"]: hit["memory"] for hit in search.find(view_lock, view, wanted, shard)["hits"]
    }
    with view_lock.read():
        space = view.spaces.get(wanted.namespace)
        rows = [row for row in near if space and row in space.by_row]  # some may have been forgotten since
        if space is None or not rows:
            return []
        vectors = space.index.vectors_of(rows)
    keys = SparseKeys(
        vectors.shape[1],
        width=config.key_width,
        winners=min(config.key_winners, config.key_width),
        beta=config.completion_beta,
    )
    for row, vector in zip(rows, vectors, strict=True):
        keys.add(row, vector)
    index_of = {row: i for i, row in enumerate(rows)}
    recalled = keys.recall(wanted.vector[0], k, lambda some: vectors[[index_of[row] for row in some]])
    return [
        {
            "memory": unshared(near[each.row]),
            "score": each.cosine,
            "scores": {"dense": each.cosine, "completed": each.completed, "overlap": each.overlap},
        }
        for each in recalled
    ]
