"""Filters of the API: trees of and / or / not over comparisons, compiled once into a predicate.

    {"and": [{"field": "time", "op": "gte", "value": "2026-01-01"},
             {"not": {"field": "context.source", "op": "eq", "value": "test"}}]}

`context.a.b` is the key `b` in the object `a`, else the key `a.b`. A comparison with a field that the memory lacks, or
of another type, is false; `ne` and `nin` are the negations of `eq` and `in`, so they are true then.
"""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from common.errors import InvalidInput
from stores.memory.memory import COMMON_FIELDS, KIND_FIELDS, TIME_FIELDS, parse_time

Predicate = Callable[[dict[str, Any]], bool]

FIELDS = sorted({*COMMON_FIELDS, *KIND_FIELDS["relational"], *KIND_FIELDS["spatial"]} - {"context", "cues"})
_ORDERED = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}
OPS = ("eq", "ne", *_ORDERED, "in", "nin", "contains")
MAX_DEPTH = 32


def compile_filter(spec: Mapping[str, Any] | None) -> Predicate:
    """A predicate over `to_json` dicts; None admits everything. Raises `InvalidInput(param="filter")`."""
    return _always if spec is None else _compile(spec, 0)


def _always(memory: dict[str, Any]) -> bool:
    return True


def _compile(spec: Any, depth: int) -> Predicate:
    if depth > MAX_DEPTH:
        raise _invalid(f"is nested deeper than {MAX_DEPTH}")
    if not isinstance(spec, Mapping):
        raise _invalid(f"holds {_short(spec)} where an object must stand")
    if set(spec) == {"field", "op", "value"}:
        return _compare(spec["field"], spec["op"], spec["value"])
    if len(spec) != 1 or not set(spec) <= {"and", "or", "not"}:
        keys = _short(sorted(map(str, spec)))
        raise _invalid(f"has keys {keys}: give field, op and value, or one of and, or, not")
    joint, inner = next(iter(spec.items()))
    if joint == "not":
        negated = _compile(inner, depth + 1)
        return lambda memory: not negated(memory)
    if not isinstance(inner, list | tuple) or not inner:
        raise _invalid(f"{joint!r} must hold a list that is not empty")
    parts = [_compile(part, depth + 1) for part in inner]
    if joint == "and":
        return lambda memory: all(part(memory) for part in parts)
    return lambda memory: any(part(memory) for part in parts)


def _compare(field: Any, op: Any, value: Any) -> Predicate:
    if op not in OPS:
        raise _invalid(f"has op {_short(op)}; valid: {', '.join(OPS)}")
    read = _reader(field)
    if op in ("in", "nin"):
        if not isinstance(value, list | tuple):
            raise _invalid(f"op {op!r} of {field!r} needs a list of values")
        values = [_operand(field, item) for item in value]
        wanted = op == "in"
        return lambda memory: any(_equal(read(memory), item) for item in values) == wanted
    operand = _operand(field, value)
    if op == "eq":
        return lambda memory: _equal(read(memory), operand)
    if op == "ne":
        return lambda memory: not _equal(read(memory), operand)
    if op == "contains":
        return lambda memory: _contains(read(memory), operand)
    if isinstance(operand, bool) or not isinstance(operand, int | float | str):
        raise _invalid(f"op {op!r} of {field!r} needs a number, a time or text, got {_short(value)}")
    ordered = _ORDERED[op]
    return lambda memory: _comparable(found := read(memory), operand) and ordered(found, operand)


def _reader(field: Any) -> Callable[[dict[str, Any]], Any]:
    """A function that reads `field` of a memory; None if it is absent."""
    if isinstance(field, str) and field.startswith("context.") and (path := field.split(".")[1:]) != [""]:
        if len(path) > MAX_DEPTH:
            raise _invalid(f"has field {_short(field)} with more than {MAX_DEPTH} keys")
        if len(path) == 1:
            return lambda memory: memory["context"].get(path[0])
        return lambda memory: _walk(memory["context"], path)
    if not isinstance(field, str) or field not in FIELDS:
        raise _invalid(f"has field {_short(field)}; valid: {', '.join(FIELDS)}, context.<key>")
    return lambda memory: memory.get(field)


def _walk(value: Any, path: list[str]) -> Any:
    """What lies below `value` at the path. A key may hold dots itself: where the nested keys lead nowhere, longer keys
    are tried."""
    if not path:
        return value
    if not isinstance(value, dict):
        return None
    for length in range(1, len(path) + 1):
        key = ".".join(path[:length])
        if key in value and (found := _walk(value[key], path[length:])) is not None:
            return found
    return None


def _operand(field: str, value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise _invalid(f"compares {field!r} with {value}, which no memory can hold")
    if field in TIME_FIELDS and value is not None:
        try:
            return parse_time(value, field)
        except InvalidInput as error:
            raise _invalid(error.message) from None
    return value


def _equal(found: Any, operand: Any) -> bool:
    """As in JSON: 1 equals 1.0, but true is not 1."""
    return bool(found == operand) and isinstance(found, bool) == isinstance(operand, bool)


def _comparable(found: Any, operand: Any) -> bool:
    if isinstance(operand, str):
        return isinstance(found, str)
    return isinstance(found, int | float) and not isinstance(found, bool)


def _contains(found: Any, operand: Any) -> bool:
    if isinstance(found, str):
        return isinstance(operand, str) and operand in found
    return isinstance(found, list) and any(_equal(item, operand) for item in found)


def _invalid(what: str) -> InvalidInput:
    return InvalidInput(f"filter {what}", param="filter")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 64 else f"{text[:61]}..."
