"""Whatever takes a time takes ISO 8601 and seconds: every field of every request body that is named as one."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from common.errors import InvalidInput
from serve.api import app
from serve.schemas import requests, stores  # noqa: F401  # their classes are found as subclasses
from serve.schemas.requests import Body
from stores.memory.filters import compile_filter
from stores.memory.memory import TIME_FIELDS, parse_memory, parse_time

NAMES = {"time", "at", "valid_from", "valid_to", "since", "until", "before", "after", "began", "ended"}
ISO, SECONDS = "2026-03-01T10:00:00Z", datetime(2026, 3, 1, 10, tzinfo=UTC).timestamp()
BAD = ["yesterday", "", "2026-13-01", 1_700_000_000_000, True, [], float("nan")]


def bodies(cls: type[BaseModel] = Body) -> set[type[BaseModel]]:
    return {cls}.union(*(bodies(each) for each in cls.__subclasses__()))


FIELDS = [
    (body, name, field)
    for body in sorted(bodies(), key=lambda each: each.__name__)
    for name, field in body.model_fields.items()
    if name in NAMES or name.endswith("_at")
]


def test_the_walk_finds_the_fields():
    found = {(body.__name__, name) for body, name, _ in FIELDS}
    assert {("TurnBody", "time"), ("LineBody", "time"), ("CandidateBody", "time"), ("FactsBody", "at"),
            ("PlacesBody", "at"), ("UpdateBody", "valid_to")} <= found  # fmt: skip


@pytest.mark.parametrize(("body", "name", "field"), FIELDS, ids=lambda each: getattr(each, "__name__", None))
def test_every_time_of_a_body_is_iso_or_seconds(body, name, field):
    read = TypeAdapter(field.rebuild_annotation()).validate_python
    for given_as in (
        ISO,
        SECONDS,
        str(SECONDS),
        int(SECONDS),
        "2026-03-01T12:00:00+02:00",
        "2026-03-01 10:00",
    ):
        assert parse_time(read(given_as), name) == SECONDS
    for bad in BAD:
        with pytest.raises((ValidationError, InvalidInput), match=r"ISO 8601|milliseconds"):
            parse_time(read(bad), name)


def test_the_page_of_the_interface_says_so():
    schemas, told = app.openapi()["components"]["schemas"], 0
    bodies_told = {name for name in schemas if name.endswith("Body")} | {"MemoryField"}
    for name in bodies_told & schemas.keys():
        for field, shape in schemas[name].get("properties", {}).items():
            if field in NAMES:
                types = {each.get("type") for each in _all(shape)}
                assert {"string", "number"} <= types, (name, field, shape)
                told += 1
    assert told >= 8


def _all(shape):
    return [shape, *(inner for each in shape.get("anyOf", []) for inner in _all(each))]


@pytest.mark.parametrize("field", sorted(TIME_FIELDS))
def test_memories_and_filters_take_both(field):
    fact = {"kind": "relational", "subject": "Ada", "relation": "lives_in", "object": "Lisbon"}
    for given_as in (ISO, SECONDS, str(SECONDS)):
        memory = parse_memory({**fact, field: given_as}, namespace="n", now=0.0, max_text_bytes=999)
        assert SECONDS in (memory.time, memory.fields.get(field))
        matches = compile_filter({"field": field, "op": "eq", "value": given_as})
        assert matches({field: SECONDS}) and not matches({field: SECONDS + 1})


@given(st.integers(-62_135_596_800, 253_402_300_799))
def test_seconds_are_the_same_as_text_and_eight_digits_are_a_date(seconds):
    assert parse_time(seconds, "time") == seconds
    if len(str(seconds)) != 8:
        assert parse_time(str(seconds), "time") == seconds
    assert parse_time(datetime.fromtimestamp(seconds, UTC).isoformat(), "time") == seconds


def test_a_date_without_dashes_is_a_date():
    assert (
        parse_time("20260301", "time") == parse_time("2026-03-01", "time") == parse_time(1772323200, "time")
    )
