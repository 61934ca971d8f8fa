"""Starts that fail for real: what is said meanwhile, what of the cause is named, and that nothing is left running."""

from pathlib import Path

import psutil
import pytest

from common import config
from common.config import StoreConfig
from common.errors import NotReady
from jobs.instance import instance as instances
from stores.shard.shard import Shard
from stores.writes.batch import MemoryBatch
from tests.support.stores import NOW, memory, unit

DIM = 384  # of the embedder


def start(store: Path, limit_s: float, **settings):
    overrides = {"store.dir": str(store), "serve.port": 0, **settings}
    said: list[str] = []
    with pytest.raises(NotReady) as caught:
        instances.up(config.load(env={}, overrides=overrides), say=said.append, deadline_s=limit_s)
    assert instances.read(store) is None
    left = [p for p in psutil.process_iter(["cmdline"]) if str(store) in " ".join(p.info["cmdline"] or ())]
    assert not left
    return str(caught.value), said


def test_too_short_a_limit_says_what_it_was_waiting_for(tmp_path):
    error, said = start(tmp_path / "store", 12.0)
    assert any(line.startswith("waiting for: Ray") for line in said)
    assert "in time" in error and ("Ray" in error or "waiting for" in error)


@pytest.mark.slow  # a start of its own; the others cover the way the cause is found
def test_a_damaged_log_is_named(tmp_path):
    """One record of a shard is not what was written; the model and the embedder are well."""
    folder = tmp_path / "store" / "shards" / "0000"
    shard = Shard(folder, number=0, dim=DIM, config=StoreConfig(backend="jsonl"))
    items = [(memory(f"m{i}"), unit(i, DIM)) for i in range(3)]
    for i, item in enumerate(items):
        shard.memories.put(MemoryBatch.of([item]), op_id=str(i), now=NOW)
    shard.close()
    log = folder / "log.jsonl"
    data = log.read_bytes()
    assert data.count(b"this is m1") == 1
    log.write_bytes(data.replace(b"this is m1", b"this is M1"))
    settings = {"store.backend": "jsonl", "store.shards": 1}
    error, said = start(tmp_path / "store", 400.0, **settings)
    parts = [line.removeprefix("waiting for: ").partition(" (")[0] for line in said if "waiting" in line]
    assert parts[0] == "Ray" and "the shards, which open their logs" in parts
    assert any(part.startswith("the model") for part in parts)
    assert str(folder) in error and "checksum" in error, error
