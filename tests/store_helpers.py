"""Memories, vectors and shards for the tests of the stores."""

from pathlib import Path
from typing import Any

import numpy as np

from common.config import StoreConfig
from stores.index import Vectors
from stores.memory import Memory, parse_memory
from stores.shard import Shard

DIM = 8
NOW = 1_700_000_000.0


def memory(id: str | None = None, *, namespace: str = "acme", **fields: Any) -> Memory:
    """An episodic memory unless `fields` say otherwise."""
    given = {} if id is None else {"id": id, "text": f"this is {id}"}
    return parse_memory({**given, **fields}, namespace=namespace, now=NOW, max_text_bytes=10_000)


def unit(seed: int, dim: int = DIM) -> Vectors:
    vector = np.random.default_rng(seed).normal(size=dim).astype(np.float32)
    return vector / np.linalg.norm(vector)


def axis(number: int) -> Vectors:
    """A basis vector: cosine 1 to itself, 0 to every other."""
    return np.eye(DIM, dtype=np.float32)[number]


def open_shard(path: Path, **config: Any) -> Shard:
    return Shard(path, number=0, dim=DIM, config=StoreConfig.model_validate(config))
