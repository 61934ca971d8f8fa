"""`sharpwave sql`: a SELECT over the newest snapshots of a store's shards. Works without an instance; a running one
writes fresh snapshots first."""

import csv
import io
import json
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.config import Config
from common.errors import Forbidden, NotFound, NotReady, Overloaded, Unauthorized
from common.files import read_json
from jobs.commands.client import Client
from jobs.commands.options import DEFAULT_STORE, Json, Key, Store, config_of, named
from jobs.commands.output import note
from jobs.instance import instance as instances

if TYPE_CHECKING:
    import pyarrow as pa


def sql(
    statement: Annotated[str, typer.Argument(help="one SELECT")],
    namespaces: Annotated[
        list[str] | None, typer.Option("--namespace", "-n", help="namespace; repeatable [default: all]")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="rows at most")] = 10_000,
    timeout_s: Annotated[float, typer.Option("--timeout-s", min=0.1, help="time limit of the query")] = 30.0,
    as_csv: Annotated[bool, typer.Option("--csv", help="comma-separated values on stdout")] = False,
    as_is: Annotated[
        bool,
        typer.Option(
            "--as-is", help="use the existing snapshots; do not ask a running instance for new ones"
        ),
    ] = False,
    store: Store = DEFAULT_STORE,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Ask the store's snapshots in SQL (DuckDB), read-only; says on stderr how old they are.

    Where an instance runs on the store, it writes fresh snapshots first, for which it wants a key of all namespaces
    if it wants any. An encrypted store is opened with the master key that its configuration names.

    \b
    sharpwave sql "SELECT kind, count(*) FROM memories GROUP BY kind"
    sharpwave sql "SELECT subject, object FROM facts_at('2026-03-01') WHERE relation = 'lives_in'"
    sharpwave sql "SELECT id, text FROM memories_at('2026-03-01 12:00')" -n acme --json
    sharpwave sql "SELECT e.text, s.x, s.y FROM episodic e JOIN spatial s ON contains(e.text, s.place)" --csv

    \b
    Views: memories, episodic, relational, spatial, statistics, history, vectors;
    facts_at(time), memories_at(time). Times are in UTC.
    """
    from stores.crypto.keyrings import read_keyrings
    from stores.snapshots import manifest, sql  # they take half a second, which other commands do without

    store = store.expanduser().resolve()
    config = config_of(store)
    config = config.model_copy(update={"store": config.store.model_copy(update={"dir": str(store)})})
    if not as_is:
        _refresh(store, api_key)
    folders = sql.newest(shard_folders(config))
    found = sql.query(
        folders,
        statement,
        None if namespaces is None else [*map(named, namespaces)],
        limit=limit,
        timeout_s=timeout_s,
        encryptor=read_keyrings(config.store),
    )
    _print(found, as_json, as_csv)
    for folder in folders:
        covers = manifest.read_manifest(folder)
        made = datetime.fromtimestamp(covers["made"], UTC).strftime("%Y-%m-%d %H:%M:%S")
        note(f"shard {covers['shard']} as of record {covers['seq']}, {made} UTC")
    if found.schema.metadata[b"truncated"] == b"true":
        note(f"the first {limit} rows; there are more (--limit)")


def _refresh(store: Path, api_key: str | None) -> None:
    """Let the instance, if one runs, write a snapshot of every shard."""
    instance = instances.read(store)
    if instance is None or not instance.alive():
        return
    try:
        with Client(instance.url, api_key=api_key, patience_s=5.0) as client:
            client.post("/v1/snapshot", {}, safe=True)
    except (Unauthorized, Forbidden) as error:
        error.message += "; give --api-key, or --as-is to ask for no fresh snapshots"
        raise
    except (NotReady, Overloaded) as error:
        note(f"no fresh snapshots: {error.message}")


def shard_folders(config: Config) -> list[Path]:
    """Folders of the shards of the current layout; a reshard leaves older ones beside them. Raises `NotFound` if the
    store has no shards."""
    store, folder = config.store_dir, config.store_dir / "shards"
    if config.store.backend == "redis":
        from actors.layout.records import layout_record  # with Ray, which a local store does without

        found = layout_record(config).read()
        layout = None if found is None else found.to_json()
    else:
        layout = read_json(folder / "layout.json") if (folder / "layout.json").is_file() else None
    if layout is None:
        raise NotFound(f"store {str(store)!r} holds no shards yet; give another --store, or teach it first")
    generation = layout.get("generation", 1)
    inner = folder if generation == 1 else folder / f"g{generation}"
    return [inner / f"{number:04d}" for number in range(layout["shards"])]


def _print(found: "pa.Table", as_json: bool, as_csv: bool) -> None:
    columns = [map(_shown, column.to_pylist()) for column in found.columns]  # a join may name two alike
    names, rows = found.column_names, [[*row] for row in zip(*columns, strict=True)]
    if as_json:
        print(json.dumps({"columns": names, "rows": rows}, indent=2, ensure_ascii=False))
    elif as_csv:
        text = io.StringIO()
        csv.writer(text).writerows([names, *rows])
        sys.stdout.write(text.getvalue())
    else:
        print(_aligned([names, *rows]))


def _shown(value: Any) -> Any:
    """The value as JSON can represent it."""
    if isinstance(value, datetime):
        return value.isoformat() + ("Z" if value.tzinfo is None else "")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, list):
        return [_shown(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _aligned(rows: list[list[Any]]) -> str:
    text = [["" if value is None else str(value).replace("\n", " ") for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*text, strict=True)]
    lines = ("  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)) for row in text)
    return "\n".join(line.rstrip() for line in lines)
