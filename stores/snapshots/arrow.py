"""Memories as columns of an Arrow table, and back.

Snapshots and exports are made of these tables. Every field of the API and every statistic has a column, so
that SQL can read it; nested values are JSON, and so are values without a column, in `memory_more` and
`state_more`. The round trip is exact.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import asdict, fields, is_dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa

from common.types import Json
from stores.index.vectors import Vectors
from stores.memory.memory import KIND_FIELDS
from stores.view.memory_state import FIELD_OF, OPTIONAL, STORED_AS, MemoryState, Version

ALWAYS = {
    "id": pa.string(),
    "namespace": pa.string(),
    "kind": pa.string(),
    "text": pa.string(),
    "conversation": pa.string(),
    "time": pa.float64(),
    "reward": pa.float64(),
    "pin": pa.bool_(),
}
NESTED = ("context", "cues")
OF_KIND = {
    "subject": pa.string(),
    "relation": pa.string(),
    "object": pa.string(),
    "confidence": pa.float64(),
    "valid_from": pa.float64(),
    "valid_to": pa.float64(),
    "place": pa.string(),
    "other": pa.string(),
    "x": pa.float64(),
    "y": pa.float64(),
}
STATE = {
    "seq": pa.int64(),
    "anchor": pa.string(),
    "written": pa.float64(),
    "novelty": pa.float64(),
    "usage": pa.int64(),
    "salience": pa.float64(),
    "last_used": pa.float64(),
    "last_scored": pa.float64(),
    "count": pa.int64(),
    "strength": pa.float64(),
    "closed": pa.float64(),
}
"""What an `MemoryState` holds beside the memory; its other fields go to `state_more`."""

SCHEMA = pa.schema(
    [
        *ALWAYS.items(),
        *((name, pa.string()) for name in NESTED),
        *OF_KIND.items(),
        *STATE.items(),
        ("memory_more", pa.string()),
        ("state_more", pa.string()),
    ]
)
_decode = json.JSONDecoder().raw_decode
_FIELDS = tuple(field.name for field in fields(MemoryState) if field.name != "memory")
_MORE = tuple(name for name in _FIELDS if name not in STATE)
_CARRIED: dict[str, Callable[[], Any]] = {  # statistics of a row that have no column
    "rivals": dict,
    "vigour": lambda: 1.0,
    "closings": dict,
    "tellings": list,
}
_read_entry = attrgetter("memory", *STATE, *_MORE)

Captured = tuple[Any, ...]  # of one entry: memory, the fields of STATE, the fields beside them


def captured(entries: Iterable[MemoryState]) -> list[Captured]:
    """The present state of the entries. Fast, since writers wait: contents never change, so references suffice; of the
    state only nested values are copied."""
    first_nested = 1 + len(STATE)
    return [
        (*found[:first_nested], *(copy(value) if value else None for value in found[first_nested:]))
        for found in map(_read_entry, entries)
    ]


def captured_table(found: Sequence[Captured]) -> pa.Table:
    """The output of `captured`, in its order, as a table of `SCHEMA`."""
    columns = [*zip(*found, strict=True)] if found else [()] * (1 + len(STATE) + len(_MORE))
    memories, state, more = columns[0], columns[1 : 1 + len(STATE)], columns[1 + len(STATE) :]
    nested = [
        {STORED_AS.get(name, name): _plain(value) for name, value in zip(_MORE, each, strict=True) if value}
        for each in zip(*more, strict=True)
    ]
    return table_of(memories, dict(zip(STATE, state, strict=True)), nested)


def _plain(value: Any) -> Any:
    """JSON of a nested field; `older` holds `Version`s."""
    return [asdict(each) for each in value] if isinstance(value, list) and is_dataclass(value[0]) else value


def table_of(memories: Sequence[Json], state: Mapping[str, Sequence[Any]], more: Sequence[Json]) -> pa.Table:
    """A table of `SCHEMA`: memories, a column for each name in `STATE`, and the nested rest of the state."""
    columns = {name: [memory[name] for memory in memories] for name in ALWAYS}
    columns |= {name: [_nested(memory[name]) for memory in memories] for name in NESTED}
    columns |= {name: [memory.get(name) for memory in memories] for name in OF_KIND}
    columns |= {name: [*state[name]] for name in STATE}
    columns["memory_more"] = [_more(memory) for memory in memories]
    columns["state_more"] = [_nested(each) for each in more]
    return pa.table(columns, schema=SCHEMA)


def _nested(value: Any) -> str | None:
    return _dump(value) if value else None  # empty is the common case, and fast to read


def _more(memory: Json) -> str | None:
    """Fields without a column, and those that a column cannot represent: an explicit null."""
    own = KIND_FIELDS[memory["kind"]]
    rest = {
        name: value
        for name, value in memory.items()
        if name not in ALWAYS
        and name not in NESTED
        and (name not in OF_KIND or value is None or name not in own)
    }
    return _dump(rest) if rest else None


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _load(text: str) -> Any:
    """The inverse of `_dump`. For a short text `json.loads` takes three times as long: it skips white space."""
    return _decode(text)[0]


def memories_of(table: pa.Table) -> list[Json]:
    """The memories of a table of `SCHEMA`, in its order."""
    read = _columns(table, (*ALWAYS, *NESTED, *OF_KIND, "memory_more"))
    head = ("id", "namespace", "kind", "text", "conversation", "time", *NESTED, "reward", "pin")
    kinds = {kind: [(name, read[name]) for name in names] for kind, names in KIND_FIELDS.items()}
    more = read["memory_more"]
    found = []
    for at, (id, namespace, kind, text, conversation, time, context, cues, reward, pin) in enumerate(
        zip(*(read[name] for name in head), strict=True)
    ):
        memory = {"id": id, "namespace": namespace, "kind": kind, "text": text}
        for name, column in kinds[kind]:
            if column[at] is not None:
                memory[name] = column[at]
        memory["conversation"] = conversation
        memory["time"] = time
        memory["context"] = _load(context) if context else {}
        memory["cues"] = _load(cues) if cues else []
        memory["reward"] = reward
        memory["pin"] = pin
        if more[at] is not None:
            memory |= _load(more[at])
        found.append(memory)
    return found


def entries_of(table: pa.Table) -> list[MemoryState]:
    """The entries of a table of `SCHEMA`, in its order."""
    read = _columns(table, (*STATE, "state_more"))
    more = read.pop("state_more")
    found = []
    for memory, state, nested in zip(memories_of(table), zip(*read.values(), strict=True), more, strict=True):
        entry = MemoryState(memory=memory, **dict(zip(STATE, state, strict=True)))
        if nested is not None:
            _set_nested(entry, _load(nested))
        found.append(entry)
    return found


def state_of(found: Captured) -> MemoryState:
    """An entry from one item of `captured`."""
    memory, *state = found
    known = {name: value for name, value in zip((*STATE, *_MORE), state, strict=True)}
    return MemoryState(memory=memory, **{n: v for n, v in known.items() if n in STATE or v is not None})


def carried_table(carried: Sequence[Json]) -> pa.Table:
    """Rows of `memory_state.row_of`, without their vectors, as a table of `SCHEMA`."""
    given = [{**row["statistics"], "novelty": row["novelty"], **_written(row)} for row in carried]
    state = {name: [each.get(name) for each in given] for name in STATE}
    more = [
        {
            name: value
            for name, value in (*row.items(), *row["statistics"].items())
            if FIELD_OF.get(name, name) in _MORE and value
        }
        for row in carried
    ]
    return table_of([row["memory"] for row in carried], state, more)


def _written(row: Json) -> Json:
    """Where and when the memory was first written, for readers of the file; also in `origin`."""
    return {name: row["origin"].get(name) for name in ("seq", "anchor", "written")}


def carried_of(table: pa.Table) -> Iterator[Json]:
    """The inverse of `carried_table`, without `vector`."""
    read = _columns(table, (*STATE, "state_more"))
    own = [name for name in STATE if name not in ("seq", "anchor", "written", "novelty")]
    for at, memory in enumerate(memories_of(table)):
        nested = _load(read["state_more"][at] or "{}")
        statistics = {name: read[name][at] for name in own}
        statistics |= {name: nested.get(name, empty()) for name, empty in _CARRIED.items()}
        statistics |= {name: nested[name] for name in OPTIONAL if name in nested}
        yield {
            "memory": memory,
            "novelty": read["novelty"][at],
            "statistics": statistics,
            "origin": nested["origin"],
            "older": nested.get("older", []),
        }


def _set_nested(entry: MemoryState, nested: Json) -> None:
    for name, value in nested.items():
        found = [Version(**each) for each in value] if name == "older" else value
        setattr(entry, FIELD_OF.get(name, name), found)


def _columns(table: pa.Table, names: Sequence[str]) -> dict[str, list[Any]]:
    """Columns as Python values; one that is all null costs nothing."""
    return {
        name: [None] * table.num_rows if table[name].null_count == table.num_rows else table[name].to_pylist()
        for name in names
    }


def vector_bytes(vectors: Vectors) -> pa.FixedSizeBinaryArray:
    """Vectors `[n, dim]` as one fixed run of bytes each (little-endian float32): Parquet reads them many
    times faster than lists, and they turn into either without a copy."""
    packed = np.ascontiguousarray(vectors, "<f4")
    width = pa.binary(packed.shape[1] * 4)
    return pa.FixedSizeBinaryArray.from_buffers(width, len(packed), [None, pa.py_buffer(packed)])


def vectors_from(data: bytes, dim: int) -> Vectors:
    """Raw little-endian float32 as `[n, dim]`, read-only."""
    return np.frombuffer(data, "<f4").reshape(-1, dim)


def vectors_of(column: pa.ChunkedArray, dim: int) -> Vectors:
    """The inverse of `vector_bytes`: `[n, dim]`, read-only."""
    parts = [
        np.frombuffer(chunk.buffers()[1], "<f4", count=len(chunk) * dim, offset=chunk.offset * dim * 4)
        for chunk in column.chunks
        if len(chunk)
    ]
    if not parts:
        return np.empty((0, dim), np.float32)
    return (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(-1, dim)
