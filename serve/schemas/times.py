"""The type of every time in a request: ISO 8601 or seconds since the epoch, parsed to seconds."""

from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from stores.memory.memory import seconds_of


def _parse(value: Any) -> float:
    try:
        return seconds_of(value)
    except ValueError as error:
        raise PydanticCustomError("time", "{rule}", {"rule": str(error)}) from None


_SCHEMA = WithJsonSchema(
    {"anyOf": [{"type": "string"}, {"type": "number"}], "description": "ISO 8601, or seconds, UTC"}
)
Time = Annotated[float, BeforeValidator(_parse), _SCHEMA]
UncheckedTime = Annotated[Any, _SCHEMA]
"""Left to `parse_memory`, which names the memory that a bad time belongs to."""
