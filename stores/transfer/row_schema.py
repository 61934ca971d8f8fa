"""Validation of an imported row: it must be one that `memory_state.row_of` could have made.

A log is replayed at every open, so a row on which the view fails would disable its shard permanently, for all its
tenants; and a row may refer to its own memory only. So a row is rebuilt here from known fields of the right type.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from common.errors import InvalidInput
from common.types import Json
from stores.memory.memory import check_name, parse_memory, to_json

Remake = Callable[[Any], Json]

MOST = 1 << 62  # of an integer: the columns of a snapshot have 64 bits
MAX_LABEL = 512  # characters of an anchor, or of the id of a rival or a fact


def check_row(row: Any, *, max_text_bytes: int, into: str | None) -> Json:
    """The validated row, its vector unchanged; `into`: another namespace than its own. Raises `InvalidInput`."""
    given = _object(row, "row")
    remake = partial(_memory, max_text_bytes=max_text_bytes, into=into)
    memory = remake(given.get("memory"))
    return {
        "memory": memory,
        "novelty": _number(given.get("novelty"), "novelty"),
        "statistics": _statistics(given.get("statistics"), remake),
        "origin": _origin(given.get("origin"), "origin"),
        "older": [_version(each, memory["id"], remake) for each in _list(given.get("older"), "older")],
        "vector": given.get("vector"),
    }


def _memory(content: Any, *, max_text_bytes: int, into: str | None) -> Json:
    given = _object(content, "memory")
    space = check_name(into or given.get("namespace"), "namespace")
    time = _number(given.get("time"), "time")
    moved = {**given, "namespace": space}
    return to_json(parse_memory(moved, namespace=space, now=time, max_text_bytes=max_text_bytes))


def _version(version: Any, id: str, remake: Remake) -> Json:
    """An earlier version of the memory `id`."""
    given = _object(version, "older")
    return {
        "seq": _count(given.get("seq"), "older.seq"),
        "anchor": _label(given.get("anchor"), "older.anchor"),
        "written": _number(given.get("written"), "older.written"),
        "memory": remake({**_object(given.get("memory"), "older.memory"), "id": id}),
        "foreign": True,
    }


def _origin(value: Any, name: str) -> Json:
    given = _object(value, name)
    return {
        "shard": _count(given.get("shard"), f"{name}.shard"),
        "seq": _count(given.get("seq"), f"{name}.seq"),
        "anchor": _label(given.get("anchor"), f"{name}.anchor"),
        "written": _number(given.get("written"), f"{name}.written"),
    }


def _statistics(value: Any, remake: Remake) -> Json:
    given = _object(value, "statistics")
    valid = (*_CHECKS, "tellings")
    if unknown := [str(name)[:64] for name in given if name not in valid]:
        raise InvalidInput(f"statistics.{unknown[0]}: unknown; valid: {', '.join(valid)}", param="statistics")

    def assertion(content: Any) -> Json:
        told = remake(content)
        if told["kind"] != "relational":
            raise InvalidInput("statistics.assertions: every one must be relational", param="statistics")
        return told

    return {
        name: [assertion(each) for each in _list(found, "statistics.tellings")]
        if name == "tellings"
        else _CHECKS[name](found, f"statistics.{name}")
        for name, found in given.items()
    }


def _object(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{name} must be an object", param=name)
    return value


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidInput(f"{name} must be a list", param=name)
    return value


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidInput(f"{name} = {str(value)[:64]}: must be a finite number", param=name)
    return value


def _moment(value: Any, name: str) -> float | None:
    return None if value is None else _number(value, name)


def _share(value: Any, name: str) -> float:
    if not 0.0 <= _number(value, name) <= 1.0:
        raise InvalidInput(f"{name} = {value}: must be 0 to 1", param=name)
    return float(value)


def _count(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MOST:
        raise InvalidInput(f"{name} = {str(value)[:64]}: must be a whole number, 0 or more", param=name)
    return value


def _label(value: Any, name: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_LABEL:
        raise InvalidInput(f"{name}: must be text of at most {MAX_LABEL} characters", param=name)
    return value


def _numbers(value: Any, name: str, check: Callable[[Any, str], float] = _number) -> dict[str, float]:
    """Numbers by id."""
    return {_label(id, name): check(found, name) for id, found in _object(value, name).items()}


_CHECKS: dict[str, Callable[[Any, str], Any]] = {
    "usage": _count,
    "salience": _number,
    "last_used": _moment,
    "last_scored": _moment,
    "count": _count,
    "strength": _share,
    "rivals": partial(_numbers, check=_share),
    "vigour": _share,
    "closed": _moment,
    "closings": _numbers,
    "written": _number,
}
