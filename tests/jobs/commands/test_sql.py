"""`sharpwave sql` over the folder of a store: rows on stdout, how old they are on stderr."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.layout.layout import ShardLayout
from actors.layout.records import layout_record
from common.config import Config, StoreConfig
from common.errors import NotFound
from common.files import write_json
from jobs import cli
from jobs.commands.sql import shard_folders
from stores.shard.shard import Shard
from stores.writes.batch import MemoryBatch
from tests.support.redis_server import RedisServer
from tests.support.stores import DIM, NOW, memory, unit

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("SELECT ...")` -> (exit code, stdout, stderr), on a store of two shards and two namespaces."""
    write_json(tmp_path / "shards" / "layout.json", {"shards": 2})
    for number, namespace in enumerate(("acme", "globex")):
        shard = Shard(
            tmp_path / "shards" / f"{number:04d}",
            number=number,
            dim=DIM,
            config=StoreConfig(snapshot_every=1),
        )
        shard.memories.put(
            MemoryBatch.of([(memory(f"m{number}", namespace=namespace), unit(number))]), op_id="put", now=NOW
        )
        shard.close()

    def call(*arguments: str, store: Path = tmp_path) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["sharpwave", "sql", *arguments, "--store", str(store)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return int(caught.value.code or 0), out, err

    return call


def test_rows_as_table_json_and_csv(run: Run) -> None:
    sql = "SELECT id, namespace, time FROM memories ORDER BY id"
    code, out, err = run(sql)
    assert code == cli.OK
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["id", "namespace"],
        ["m0", "acme"],
        ["m1", "globex"],
    ]
    assert "shard 0 as of record 1" in err and "shard 1 as of record 1" in err

    _, out, _ = run(sql, "--json")
    assert json.loads(out) == {
        "columns": ["id", "namespace", "time"],
        "rows": [["m0", "acme", "2023-11-14T22:13:20Z"], ["m1", "globex", "2023-11-14T22:13:20Z"]],
    }
    _, out, _ = run(sql, "--csv")
    assert [*csv.reader(io.StringIO(out))][1] == ["m0", "acme", "2023-11-14T22:13:20Z"]
    _, out, _ = run("SELECT a.id, b.id FROM memories a, memories b WHERE a.id < b.id", "--json")
    assert json.loads(out)["rows"] == [["m0", "m1"]]


def test_namespaces_and_limit(run: Run) -> None:
    _, out, _ = run("SELECT id FROM memories", "-n", "globex")
    assert out.split() == ["id", "m1"]
    _, out, err = run("SELECT id FROM memories ORDER BY id", "--limit", "1")
    assert out.split() == ["id", "m0"] and "there are more" in err
    code, out, _ = run("SELECT id FROM memories", "-n", "unknown")
    assert (code, out.split()) == (cli.OK, ["id"])


def test_what_is_refused(run: Run, tmp_path: Path) -> None:
    code, out, err = run("DROP VIEW memories")
    assert (code, out) == (cli.USAGE, "") and "read-only" in err
    code, out, _ = run("SELECT nothing FROM memories", "--json")
    assert code == cli.USAGE and json.loads(out)["error"]["param"] == "sql"
    code, _, err = run("SELECT 1", store=tmp_path / "empty")
    assert code == cli.FAILED and "no shards" in err


def test_of_a_store_in_redis_the_layout_is_asked_for_there(tmp_path: Path, redis_server: RedisServer) -> None:
    store = StoreConfig(
        dir=str(tmp_path), backend="redis", redis_url=redis_server.url, redis_prefix=tmp_path.name
    )
    config = Config(store=store)
    with pytest.raises(NotFound, match="no shards"):
        shard_folders(config)
    assert layout_record(config).swap(None, ShardLayout(shards=2, spread=1, generation=2))
    assert shard_folders(config) == [tmp_path / "shards" / "g2" / name for name in ("0000", "0001")]


def test_shards_of_the_layout_that_holds(tmp_path: Path) -> None:
    write_json(tmp_path / "shards" / "layout.json", {"version": 2, "generation": 3, "shards": 2, "spread": 1})
    folder = tmp_path / "shards" / "g3"
    config = Config(store=StoreConfig(dir=str(tmp_path)))
    assert shard_folders(config) == [folder / "0000", folder / "0001"]
