"""SQL over snapshots: DuckDB, read-only, in memory, shut off from files and network.

    memories      every memory: id, namespace, kind, text, conversation, time, context and cues (JSON),
                  reward, pin, the fields of its kind, statistics, shard, seq, anchor, written
    episodic, relational, spatial     those of one kind, with its own fields
    statistics    namespace, id, usage, salience, novelty, strength, ...
    history       every version of every memory: content, `written`, and `until` if a newer one came
    vectors       namespace, id, vector FLOAT[dim]
    memories_at(ts)   the versions current at that time
    facts_at(ts)      the relational memories that held at that time, as known today

Times are TIMESTAMP in UTC. Only the given namespaces are loaded into the database of the statement, so no
statement can read others.
"""

import json
import threading
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from common.errors import InvalidInput, NotFound, StoreCorrupt
from stores.snapshots import arrow, files
from stores.snapshots.files import Decryptor, LoadedSpace
from stores.snapshots.manifest import read_manifest

MAX_ROWS = 10_000
TIMEOUT_S = 30.0
LOCKED = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "python_enable_replacements": "false",
    "lock_configuration": "true",  # last: nothing can be set after it
}
_READS = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
_CONTENT = [name for name in arrow.SCHEMA.names if name not in arrow.STATE and not name.endswith("_more")]
_TIMES = ("time", "valid_from", "valid_to", "written", "until", "last_used", "last_scored")
_KIND_COLUMNS = {
    "episodic": "",
    "relational": "subject, relation, object, confidence, valid_from, valid_to,",
    "spatial": "place, relation, other, x, y,",
}


def query(
    snapshot_folders: Sequence[Path],
    sql: str,
    namespaces: Iterable[str] | None = None,
    *,
    limit: int = MAX_ROWS,
    timeout_s: float = TIMEOUT_S,
    memory_bytes: int = 1 << 30,
    encryptor: Decryptor | None = None,
) -> pa.Table:
    """The answer to one SELECT (or EXPLAIN) over snapshots, one folder a shard (see `newest`).

    At most `limit` rows; the table's metadata says `truncated` if there were more. `namespaces`: those
    readable; None: all. Raises `InvalidInput(param="sql")` if the statement is refused, wrong, too
    large for `memory_bytes` or slower than `timeout_s`; `StoreCorrupt` if a snapshot is damaged.
    """
    allowed = None if namespaces is None else frozenset(namespaces)
    with duckdb.connect(":memory:", config={"memory_limit": f"{memory_bytes}B", "temp_directory": ""}) as db:
        _check(db, sql)
        _define(db, *_read(snapshot_folders, allowed, encryptor))
        for name, value in LOCKED.items():
            db.execute(f"SET {name} = {value}")
        return _run(db, sql, limit, timeout_s)


def newest(shard_folders: Iterable[Path]) -> list[Path]:
    """The newest snapshot of each shard that has a readable one. Raises `NotFound` if none has."""
    found = []
    for shard in shard_folders:
        for folder in sorted((shard / "snapshots").glob("[0-9]*"), reverse=True):
            try:
                read_manifest(folder)
            except StoreCorrupt:
                continue
            found.append(folder)
            break
    if not found:
        raise NotFound("no shard has a snapshot yet; closing a store makes one, and so does asking for it")
    return found


def _check(db: duckdb.DuckDBPyConnection, sql: str) -> None:
    try:
        statements = db.extract_statements(sql)
    except duckdb.Error as error:
        raise _wrong(error) from error
    if len(statements) != 1 or statements[0].type not in _READS:
        kinds = ", ".join(statement.type.name for statement in statements) or "nothing"
        raise InvalidInput(f"sql must be one SELECT, got {kinds}: the store is read-only here", param="sql")


def _read(
    folders: Sequence[Path], allowed: Container[str] | None, encryptor: Decryptor | None
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Tables of memories, their vectors, and all their versions."""
    memories: list[pa.Table] = []
    vectors: list[pa.Table] = []
    versions: list[pa.Table] = []
    dim = 1
    for folder in folders:
        manifest, spaces = files.load(folder, encryptor=encryptor, only=allowed)
        dim = manifest["dim"]
        for space in spaces:
            shard = pa.array([manifest["shard"]] * space.table.num_rows, pa.int32())
            table = space.table.append_column("shard", shard)
            memories.append(table)
            vectors.append(_vectors(space, dim))
            versions.extend(_versions(table))
    schema = arrow.SCHEMA.append(pa.field("shard", pa.int32()))
    history = pa.schema([(name, schema.field(name).type) for name in _HISTORY] + [("until", pa.float64())])
    vector = pa.schema(
        [("namespace", pa.string()), ("id", pa.string()), ("vector", pa.list_(pa.float32(), dim))]
    )
    return (
        pa.concat_tables(memories or [schema.empty_table()]),
        pa.concat_tables(vectors or [vector.empty_table()]),
        pa.concat_tables(versions or [history.empty_table()]),
    )


_HISTORY = [*_CONTENT, "shard", "seq", "anchor", "written"]


def _vectors(space: LoadedSpace, dim: int) -> pa.Table:
    flat = pa.array(space.vectors().reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(flat, dim)
    return space.table.select(["namespace", "id"]).append_column("vector", column)


def _versions(table: pa.Table) -> Iterator[pa.Table]:
    """The current versions, then those that were superseded."""
    none = pa.nulls(table.num_rows, pa.float64())
    yield table.select(_HISTORY).append_column("until", none)
    for at in pc.indices_nonzero(table["state_more"].is_valid()).to_pylist():
        older = json.loads(table["state_more"][at].as_py()).get("older", [])
        if older:
            state = {name: [version.get(name) for version in older] for name in arrow.STATE}
            past = arrow.table_of([version["memory"] for version in older], state, [{}] * len(older))
            until = [*state["written"][1:], table["written"][at].as_py()]
            shard = pa.array([table["shard"][at].as_py()] * len(older), pa.int32())
            yield (
                past.append_column("shard", shard)
                .select(_HISTORY)
                .append_column("until", pa.array(until, pa.float64()))
            )


def _define(db: duckdb.DuckDBPyConnection, *tables: pa.Table) -> None:
    for name, table in zip(("memories", "vectors", "history"), tables, strict=True):
        db.register(f"raw_{name}", table)
    state = [name for name in arrow.STATE if name != "closed"]
    shown = {name: _shown(name) for name in (*_HISTORY, "until", *state)}
    columns = [shown[name] for name in (*_CONTENT, *state, "shard")]
    ended = _time("coalesce(closed, valid_to)", "valid_to")  # a contradicted fact ends at its closing
    memories = [ended if name == shown["valid_to"] else name for name in columns]
    db.execute(f"CREATE VIEW memories AS SELECT {', '.join(memories)} FROM raw_memories")
    common = "id, namespace, text, conversation, time, context, cues, reward, pin"
    for kind, own in _KIND_COLUMNS.items():
        db.execute(
            f"CREATE VIEW {kind} AS SELECT {own} {common}, usage, salience, novelty, seq, anchor, written, "
            f"shard FROM memories WHERE kind = '{kind}'"
        )
    db.execute(
        f"CREATE VIEW statistics AS SELECT namespace, id, kind, {', '.join(state)}, shard FROM memories"
    )
    db.execute("CREATE VIEW vectors AS SELECT * FROM raw_vectors")
    past = [shown[name] for name in (*_HISTORY, "until")]
    db.execute(f"CREATE VIEW history AS SELECT {', '.join(past)} FROM raw_history")
    db.execute(
        "CREATE MACRO memories_at(ts) AS TABLE SELECT * FROM history "
        "WHERE written <= ts::TIMESTAMP AND (until IS NULL OR until > ts::TIMESTAMP)"
    )
    db.execute(
        "CREATE MACRO facts_at(ts) AS TABLE SELECT * FROM relational "
        "WHERE (valid_from IS NULL OR valid_from <= ts::TIMESTAMP) "
        "AND (valid_to IS NULL OR valid_to > ts::TIMESTAMP)"
    )


def _shown(name: str) -> str:
    """A column as shown in SQL: times as TIMESTAMP, empty JSON written out."""
    if name in _TIMES:
        return _time(name, name)
    if name in arrow.NESTED:
        return f"coalesce({name}, '{'{}' if name == 'context' else '[]'}')::JSON AS {name}"
    return name


def _time(seconds: str, name: str) -> str:
    return f"make_timestamp(round({seconds} * 1e6)::BIGINT) AS {name}"


def _run(db: duckdb.DuckDBPyConnection, sql: str, limit: int, timeout_s: float) -> pa.Table:
    """Run the statement batch by batch, so that an endless one costs no more than its limit."""
    timer = threading.Timer(timeout_s, db.interrupt)
    timer.start()
    try:
        reader = db.sql(sql).to_arrow_reader(min(limit + 1, 8192))
        batches: list[pa.RecordBatch] = []
        while sum(batch.num_rows for batch in batches) <= limit:
            batch = next(reader, None)
            if batch is None:
                break
            batches.append(batch)
        found = pa.Table.from_batches(batches, schema=reader.schema)
    except duckdb.InterruptException as error:
        raise InvalidInput(
            f"sql ran longer than {timeout_s:g} s; ask for less", param="sql", code="sql_timeout"
        ) from error
    except (duckdb.Error, pa.ArrowException) as error:
        raise _wrong(error) from error
    finally:
        timer.cancel()
    truncated = b"true" if found.num_rows > limit else b"false"
    return found.slice(0, limit).replace_schema_metadata({b"truncated": truncated})


def _wrong(error: Exception) -> InvalidInput:
    return InvalidInput(f"sql: {str(error).strip()}", param="sql", code="sql_error")
