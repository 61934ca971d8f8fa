"""SQL over snapshots says what plain Python says, for the namespaces given and no others; nothing else is
within its reach."""

import math
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from common.errors import InvalidInput, NotFound, StoreCorrupt
from stores.snapshots import sql
from stores.snapshots.sql import query
from stores.writes.batch import MemoryBatch
from tests.support.snapshots import IDS, NAMESPACES, experiences, made, times
from tests.support.stores import NOW, memory, open_shard, unit

Folders = list[Path]
contents = st.dictionaries(st.tuples(st.sampled_from(NAMESPACES), st.sampled_from(IDS)), experiences)


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


def rounded(seconds: float) -> datetime:
    return datetime.fromisoformat(moment(seconds))


@settings(max_examples=6, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(contents, times, st.floats(-1e6, 1e6), st.sampled_from([None, ["acme"], ["globex"], [], ["other"]]))
def test_sql_equals_plain_filters(
    given_contents: dict[tuple[str, str], dict[str, Any]], at: float, bound: float, asked: list[str] | None
) -> None:
    with tempfile.TemporaryDirectory() as name:
        shard = open_shard(Path(name), snapshot_every=0)
        for number, ((namespace, id), fields) in enumerate(given_contents.items()):
            shard.memories.put(
                MemoryBatch.of([(made(id, namespace, fields), unit(number))]),
                op_id=f"put-{number}",
                now=NOW + number,
            )
        folder = shard.snapshot()
        folders = [] if folder is None else [folder]
        chosen = [
            each
            for namespace in NAMESPACES
            if asked is None or namespace in asked
            for each in shard.memories.list(namespace, limit=1000)
        ]
        shard.close()

        def rows(sql: str) -> list[tuple[Any, ...]]:
            return sorted(tuple(row.values()) for row in query(folders, sql, asked).to_pylist())

        def expected(keep: Callable[[dict[str, Any]], bool]) -> list[tuple[Any, ...]]:
            return sorted((each["namespace"], each["id"]) for each in chosen if keep(each))

        def whole(each: dict[str, Any]) -> tuple[Any, ...]:
            return (each["namespace"], each["id"], each["kind"], each["text"], each["reward"], each["pin"])

        columns = "namespace, id, kind, text, reward, pin"
        assert rows(f"SELECT {columns} FROM memories") == sorted(map(whole, chosen))
        for kind in ("episodic", "relational", "spatial"):
            assert rows(f"SELECT namespace, id FROM {kind}") == expected(lambda m, k=kind: m["kind"] == k)
        assert rows(f"SELECT namespace, id FROM memories WHERE reward > {bound!r} AND NOT pin") == expected(
            lambda m: m["reward"] > bound and not m["pin"]
        )
        assert rows("SELECT namespace, id FROM spatial WHERE x IS NOT NULL AND x <= y") == expected(
            lambda m: m.get("x", math.inf) <= m.get("y", -math.inf)
        )
        assert rows(f"SELECT namespace, id FROM memories WHERE time <= TIMESTAMP '{moment(at)}'") == expected(
            lambda m: rounded(m["time"]) <= rounded(at)
        )
        assert rows(f"SELECT namespace, id FROM facts_at('{moment(at)}')") == expected(
            lambda m: (
                m["kind"] == "relational"
                and rounded(m.get("valid_from", 0.0)) <= rounded(at)
                and ("valid_to" not in m or rounded(m["valid_to"]) > rounded(at))
            )
        )
        assert rows("SELECT namespace, id FROM memories WHERE json_array_length(cues) = 2") == expected(
            lambda m: len(m["cues"]) == 2
        )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folders]:
    """Two shards; one memory has two versions, one was used."""
    path = tmp_path_factory.mktemp("analytics")
    shards = [open_shard(path / "0", snapshot_every=0), open_shard(path / "1", snapshot_every=0)]
    ada = {"kind": "relational", "subject": "Ada", "relation": "lives_in"}
    items = [
        memory("e1", kind="episodic", text="Ada saw the library", context={"source": "chat"}, time=NOW),
        memory("r1", **ada, object="Lisbon", valid_from="2026-01-01", valid_to="2026-03-01"),
        memory("r2", **ada, object="Porto", valid_from="2026-03-01"),
        memory("s1", kind="spatial", place="library", x=3.0, y=4.0),
    ]
    for number, item in enumerate(items):
        shards[number % 2].memories.put(
            MemoryBatch.of([(item, unit(number))]), op_id=f"put-{number}", now=NOW
        )
    shards[0].memories.put(
        MemoryBatch.of([(memory("g1", namespace="globex"), unit(9))]), op_id="globex", now=NOW
    )
    shards[0].memories.touch("acme", ["e1"], op_id="touch", now=NOW + 5)
    found = shards[0].memories.get("acme", "e1")
    assert found is not None
    new = memory("e1", kind="episodic", text="Ada saw the museum", time=NOW)
    generation = found["statistics"]["generation"]
    shards[0].memories.supersede(new, unit(20), generation=generation, op_id="new", now=NOW + 100)
    made_here = [shard.snapshot() for shard in shards]
    for shard in shards:
        shard.close()
    yield [folder for folder in made_here if folder is not None]


def values(folders: Folders, sql: str, *args: Any, **options: Any) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in query(folders, sql, *args, **options).to_pylist()]


def test_time_travel(folders: Folders) -> None:
    lives = "SELECT object FROM facts_at('{}') WHERE subject = 'Ada'"
    assert values(folders, lives.format("2026-02-01")) == [("Lisbon",)]
    assert values(folders, lives.format("2026-03-01")) == [("Porto",)]
    assert values(folders, lives.format("2025-12-31")) == []
    known = "SELECT text FROM memories_at('{}') WHERE id = 'e1'"
    assert values(folders, known.format(moment(NOW - 1))) == []
    assert values(folders, known.format(moment(NOW + 50))) == [("Ada saw the library",)]
    assert values(folders, known.format(moment(NOW + 100))) == [("Ada saw the museum",)]
    assert values(folders, "SELECT count(*) FROM history WHERE id = 'e1'") == [(2,)]


def test_joins_across_kinds_and_shards(folders: Folders) -> None:
    sql = """
        SELECT f.object, s.x FROM history h
        JOIN relational f ON contains(h.text, f.subject)
        JOIN spatial s ON contains(h.text, s.place)
        WHERE f.valid_to IS NULL AND h.namespace = 'acme'
    """
    assert values(folders, sql) == [("Porto", 3.0)]
    assert values(folders, "SELECT DISTINCT shard FROM memories ORDER BY ALL") == [(0,)]


def test_statistics_json_and_vectors(folders: Folders) -> None:
    assert values(folders, "SELECT usage, count FROM statistics WHERE id = 'e1'") == [(1, 1)]
    source = "SELECT context->>'source' FROM history WHERE until IS NOT NULL"
    assert values(folders, source) == [("chat",)]
    [(vector,)] = values(folders, "SELECT vector FROM vectors WHERE id = 's1'")
    assert np.array_equal(np.asarray(vector, np.float32), unit(3))


def test_other_namespaces_are_not_there(folders: Folders) -> None:
    for view in ("memories", "episodic", "statistics", "history", "vectors", "memories_at('2100-01-01')"):
        spaces = values(folders, f"SELECT DISTINCT namespace FROM {view} ORDER BY ALL", ["globex"])
        assert spaces == [("globex",)]
    tables = "SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY ALL"
    for (name,) in values(folders, tables):
        assert values(folders, f"SELECT count(*) FROM {name} WHERE namespace <> 'globex'", ["globex"]) == [
            (0,)
        ]


@pytest.mark.parametrize(
    "sql",
    [
        "COPY memories TO '{out}/out.csv'",
        "ATTACH '{out}/out.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "PRAGMA database_list",
        "CREATE TABLE mine AS SELECT 1",
        "DROP VIEW memories",
        "DELETE FROM memories",
        "INSERT INTO memories SELECT * FROM memories",
        "EXPORT DATABASE '{out}/out'",
        "CALL pragma_version()",
        "SELECT 1; SELECT 2",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_blob('/etc/passwd')",
        "SELECT * FROM read_json('/etc/passwd')",
        "SELECT * FROM read_parquet('http://127.0.0.1:1/x.parquet')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM sniff_csv('/etc/passwd')",
        "SELECT * FROM query('COPY memories TO ''{out}/out.csv''')",
        "EXPLAIN ANALYZE COPY memories TO '{out}/out.csv'",
        "SELECT getenv('HOME')",
        "SELECT * FROM found",  # a variable of the caller
        "",
        "no sql at all",
    ],
)
def test_everything_but_reading_is_refused(folders: Folders, sql: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InvalidInput) as caught:
        query(folders, sql.replace("{out}", str(out)))
    assert caught.value.param == "sql"
    assert not [*out.iterdir()]


def test_more_rows_than_the_limit_are_said_to_be_there(folders: Folders) -> None:
    found = query(folders, "SELECT * FROM range(100) ORDER BY range DESC", limit=7)
    assert found["range"].to_pylist() == [*range(99, 92, -1)]
    assert found.schema.metadata == {b"truncated": b"true"}
    whole = query(folders, "SELECT * FROM range(7)", limit=7)
    assert (whole.num_rows, whole.schema.metadata) == (7, {b"truncated": b"false"})


def test_a_statement_that_does_not_end_is_stopped(folders: Folders) -> None:
    with pytest.raises(InvalidInput) as caught:
        query(folders, "SELECT count(*) FROM range(10000000000) a, range(10000000000) b", timeout_s=0.2)
    assert caught.value.code == "sql_timeout"


def test_a_statement_that_takes_too_much_memory_is_stopped(folders: Folders) -> None:
    with pytest.raises(InvalidInput, match="Out of Memory"):
        query(folders, "SELECT list(range) FROM range(100000000)", memory_bytes=32 << 20, timeout_s=60)


def test_names_of_what_is_wrong(folders: Folders) -> None:
    with pytest.raises(InvalidInput, match="colour"):
        query(folders, "SELECT colour FROM memories")


def test_newest_snapshot_of_each_shard(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        sql.newest([tmp_path / "0000"])
    shard = open_shard(tmp_path / "0000", snapshot_every=0)
    for number in range(2):
        shard.memories.put(
            MemoryBatch.of([(memory(f"m{number}"), unit(number))]), op_id=f"put-{number}", now=NOW
        )
        shard.snapshot()
    shard.close()
    [folder] = sql.newest([tmp_path / "0000", tmp_path / "0001"])
    assert query([folder], "SELECT count(*) FROM memories").to_pylist() == [{"count_star()": 2}]
    (folder / "memories.parquet").write_bytes(b"damaged")
    with pytest.raises(StoreCorrupt):
        query([folder], "SELECT count(*) FROM memories")
