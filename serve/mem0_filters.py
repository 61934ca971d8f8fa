"""mem0's filters as ours, and its shape of a memory.

    {"AND": [{"user_id": "anna"}, {"created_at": {"gte": "2026-01-01"}}, {"metadata": {"topic": "food"}}]}

`user_id`, `agent_id`, `app_id` and `run_id` are kept in a memory's `context`, mem0's `metadata` in `context.metadata`.
"""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from common.errors import InvalidInput
from common.types import Json

ENTITIES = ("user_id", "agent_id", "app_id", "run_id")
FIELDS = {
    **{name: f"context.{name}" for name in ENTITIES},
    "created_at": "time",
    "id": "id",
    "memory_ids": "id",
}
OPS = ("eq", "ne", "gt", "gte", "lt", "lte", "in", "nin", "contains")


def where_of(filters: Mapping[str, Any]) -> Json:
    """Raises `InvalidInput` for a field or an operator that has no equal here, and for no condition at all."""
    conditions = [condition for name, value in filters.items() for condition in _conditions(name, value)]
    if not conditions:
        raise InvalidInput(
            f"filters: say whose memories, as one of {', '.join(ENTITIES)}; '*' is anybody's", param="filters"
        )
    return conditions[0] if len(conditions) == 1 else {"and": conditions}


def _conditions(name: str, value: Any) -> list[Json]:
    if name in ("AND", "OR", "NOT"):
        inner = [where_of(each) for each in (value if isinstance(value, list) else [value])]
        return [{"not": {"or": inner}} if name == "NOT" else {name.lower(): inner}]
    if name == "metadata" and isinstance(value, Mapping):
        return [each for key, one in value.items() for each in _compared(f"context.metadata.{key}", one)]
    if name not in FIELDS:
        known = ", ".join([*FIELDS, "metadata", "AND", "OR", "NOT"])
        raise InvalidInput(f"filters: unknown field {name[:64]!r}; valid: {known}", param="filters")
    return _compared(FIELDS[name], value)


def _compared(field: str, value: Any) -> list[Json]:
    if value == "*":  # any text
        return [{"field": field, "op": "contains", "value": ""}]
    if isinstance(value, list):
        return [{"field": field, "op": "in", "value": value}]
    if not isinstance(value, Mapping):
        return [{"field": field, "op": "eq", "value": value}]
    for op in value:
        if op not in OPS:
            raise InvalidInput(
                f"filters: unknown operator {op[:64]!r}; valid: {', '.join(OPS)}", param="filters"
            )
    return [{"field": field, "op": op, "value": operand} for op, operand in value.items()]


def shown(memory: Json) -> Json:
    """A memory as mem0 shows it. The role before a message's text is in `context.role` already."""
    context = memory["context"]
    text = said(memory)
    written = memory.get("versions", [{}])[0].get("written", memory["time"])
    return {
        "id": memory["id"],
        "memory": text,
        "hash": hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(),
        **{name: context.get(name) for name in ENTITIES},
        "metadata": context.get("metadata"),
        "categories": [],
        "created_at": moment(memory["time"]),
        "updated_at": moment(written),
    }


def said(memory: Json) -> str:
    role = memory["context"].get("role")
    return str(memory["text"].removeprefix(f"{role}: ") if role else memory["text"])


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
