"""A store that is opened with another backend is refused: it would look empty."""

import pytest

from common.config import StoreConfig
from common.errors import Conflict
from common.files import write_json
from stores.log.backend_marker import check_shards
from stores.log.open import open_log
from stores.writes.batch import MemoryBatch
from tests.support.log_backends import BACKENDS, append
from tests.support.stores import NOW, axis, memory, open_shard


@pytest.fixture
def opened(tmp_path, redis_server):
    """`opened("jsonl")` -> the log in the one folder, with that backend."""
    logs = []

    def opened(backend, path=tmp_path / "shards" / "0000"):
        config = StoreConfig(
            backend=backend, dir=str(tmp_path), redis_url=redis_server.url, redis_prefix=tmp_path.name
        )
        logs.append(open_log(path, config=config, identity={"shard": 0}))
        return logs[-1]

    yield opened
    for log in logs:
        log.close()


@pytest.mark.parametrize("first", BACKENDS)
@pytest.mark.parametrize("second", BACKENDS)
def test_a_log_opens_with_the_backend_that_made_it_only(opened, first, second, tmp_path):
    log = opened(first)
    written = append(log, 1)
    log.close()
    before = sorted(tmp_path.rglob("*"))
    if second != first:
        with pytest.raises(Conflict, match=f"made with {first}; .*export") as caught:
            opened(second)
        assert (caught.value.param, caught.value.code) == ("store.backend", "other_backend")
        assert sorted(tmp_path.rglob("*")) == before
    assert [*opened(first).records()] == [written]


def test_a_shard_says_so_too(tmp_path):
    shard = open_shard(tmp_path / "shard")
    shard.memories.put(MemoryBatch.of([(memory("a"), axis(0))]), op_id="1", now=NOW)
    shard.close()
    with pytest.raises(Conflict, match=r"store\.backend = 'jsonl'"):
        open_shard(tmp_path / "shard", backend="jsonl")


@pytest.mark.parametrize("folder", ["0001", "g3/0000"])
def test_a_whole_store_is_checked_before_anything_is_made_in_it(opened, folder, tmp_path):
    shards = tmp_path / "shards"
    check_shards(shards, "lmdb")
    check_shards(shards, "redis")
    opened("redis", shards / folder)
    check_shards(shards, "redis")
    for local in ("lmdb", "jsonl"):
        with pytest.raises(Conflict, match="made with redis"):
            check_shards(shards, local)


def test_a_local_store_is_not_taken_for_an_empty_one_in_redis(opened, tmp_path):
    opened("lmdb", tmp_path / "shards" / "g2" / "0000")
    write_json(tmp_path / "shards" / "layout.json", {"version": 2, "generation": 2, "shards": 1, "spread": 1})
    check_shards(tmp_path / "shards", "lmdb")
    with pytest.raises(Conflict, match="made with lmdb"):
        check_shards(tmp_path / "shards", "redis")
