import json
import math
import uuid
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidInput, SharpwaveError, TooLarge
from stores.memory.memory import (
    content_digest,
    from_json,
    new_id,
    parse_memory,
    parse_time,
    same_content,
    stable_id,
    to_json,
)

NOW = 1_700_000_000.0


def parse(obj, now=NOW, max_text_bytes=1000):
    return parse_memory(obj, namespace="acme", now=now, max_text_bytes=max_text_bytes)


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)
finite = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12)
scalars = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | finite | words
contexts = st.dictionaries(words, scalars | st.lists(scalars, max_size=3), max_size=3)
common = {
    "id": st.from_regex(r"[A-Za-z0-9._:-]{3,128}", fullmatch=True).filter(lambda id: id.strip("."))
    | st.sampled_from(["anna@example.org", "a/b", "Zoë", "日 本"]),
    "conversation": st.none() | words,
    "time": st.floats(-1e10, 1e10),
    "context": contexts,
    "cues": st.lists(st.fixed_dictionaries({"question": words, "answer": words}), max_size=2),
    "reward": finite,
    "pin": st.booleans(),
}
experiences = (
    st.fixed_dictionaries({"text": words}, optional=common)
    | st.fixed_dictionaries(
        {"kind": st.just("relational"), "subject": words, "relation": words, "object": words},
        optional=common | {"text": words, "confidence": st.floats(0, 1), "valid_from": st.floats(0, 1e9)},
    )
    | st.fixed_dictionaries(
        {"kind": st.just("spatial"), "place": words, "x": finite, "y": finite},
        optional=common | {"text": words},
    )
    | st.fixed_dictionaries(
        {"kind": st.just("spatial"), "place": words, "relation": words, "other": words}, optional=common
    )
)


@given(experiences)
def test_json_round_trip(obj):
    memory = parse(obj, max_text_bytes=10_000)
    through_disk = json.loads(json.dumps(to_json(memory)))
    assert from_json(through_disk) == memory
    assert content_digest(from_json(through_disk)) == content_digest(memory)
    assert parse(through_disk, max_text_bytes=10_000) == memory, "what the API shows can be sent back"


json_values = st.recursive(
    scalars | st.just(math.nan) | st.just(10**400) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
fields = [
    *("id", "kind", "text", "conversation", "time", "context", "cues", "reward", "pin", "namespace", "extra"),
    *("subject", "relation", "object", "confidence", "valid_from", "valid_to", "place", "other", "x", "y"),
]


@given(st.dictionaries(st.sampled_from(fields), json_values, max_size=6), st.data())
def test_any_json_is_a_memory_or_a_named_error(obj, data):
    obj["kind"] = data.draw(st.sampled_from(["episodic", "relational", "spatial", "odd", None, 3]))
    try:
        memory = parse(obj)
    except SharpwaveError as error:
        assert error.status in (400, 413) and error.param and len(error.message) < 600
    else:
        assert memory.text.strip() and json.dumps(to_json(memory), allow_nan=False)


RELATIONAL = {"kind": "relational", "subject": "Ada", "relation": "lives_in", "object": "Lisbon"}
SPATIAL = {"kind": "spatial", "place": "museum", "x": 3.0, "y": 4.0}


@pytest.mark.parametrize(
    ("obj", "param"),
    [
        ({}, "text"),
        ({"text": ""}, "text"),
        ({"text": " \n"}, "text"),
        ({"text": 5}, "text"),
        ({"text": "\ud800"}, "text"),
        ({"text": "a", "kind": "dream"}, "kind"),
        ({"text": "a", "kind": ["episodic"]}, "kind"),
        ({"text": "a", "mood": "good"}, "mood"),
        ({"text": "a", "subject": "Ada"}, "subject"),
        ({"text": "a", "namespace": "other"}, "namespace"),
        ({"text": "a", "id": "a "}, "id"),
        ({"text": "a", "id": ".."}, "id"),
        ({"text": "a", "id": "weakest"}, "id"),
        ({"text": "a", "id": ""}, "id"),
        ({"text": "a", "id": "a" * 129}, "id"),
        ({"text": "a", "id": "a\n"}, "id"),
        ({"text": "a", "time": "yesterday"}, "time"),
        ({"text": "a", "time": 1_700_000_000_000}, "time"),
        ({"text": "a", "time": math.nan}, "time"),
        ({"text": "a", "time": True}, "time"),
        ({"text": "a", "reward": math.inf}, "reward"),
        ({"text": "a", "reward": 10**400}, "reward"),
        ({"text": "a", "pin": 1}, "pin"),
        ({"text": "a", "context": []}, "context"),
        ({"text": "a", "context": {"deep": {"x": math.nan}}}, "context"),
        ({"text": "a", "conversation": ""}, "conversation"),
        ({"text": "a", "cues": {}}, "cues"),
        ({"text": "a", "cues": [{"question": "q"}]}, "cues"),
        ({"text": "a", "cues": [{"question": "q", "answer": "a", "mood": "b"}]}, "cues"),
        ({**RELATIONAL, "object": ""}, "object"),
        ({**RELATIONAL, "confidence": 1.5}, "confidence"),
        ({**RELATIONAL, "valid_from": 10, "valid_to": 5}, "valid_to"),
        ({**RELATIONAL, "text": ""}, "text"),
        ({**SPATIAL, "x": math.nan}, "x"),
        ({**SPATIAL, "y": "far"}, "y"),
        ({"kind": "spatial", "place": "museum"}, "place"),
        ({**SPATIAL, "relation": "left_of", "other": "cafe"}, "place"),
    ],
)
def test_bad_input_names_its_field(obj, param):
    with pytest.raises(InvalidInput) as caught:
        parse(obj)
    assert caught.value.param == param


def test_deeply_nested_context_is_refused_not_a_crash():
    nested: dict = {}
    for _ in range(100_000):
        nested = {"a": nested}
    with pytest.raises(InvalidInput) as caught:
        parse({"text": "a", "context": nested})
    assert caught.value.param == "context"
    while nested:  # taken apart by hand: freeing it in one go recurses too
        nested = nested.pop("a")


def test_sizes_are_bounded_and_the_message_stays_short():
    assert len(parse({"text": "é" * 500}).text) == 500, "exactly at the limit"
    for obj, param in [
        ({"text": "é" * 501}, "text"),
        ({"text": "x" * 10_000_000}, "text"),
        ({"text": "a", "context": {"note": "x" * 3000}}, "context"),
        ({**RELATIONAL, "text": "a", "object": "x" * 3000}, "object"),
    ]:
        with pytest.raises(TooLarge) as caught:
            parse(obj)
        assert caught.value.param == param and len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("obj", "text"),
    [
        (RELATIONAL, "Ada lives in Lisbon."),
        (SPATIAL, "museum is at (3, 4)."),
        ({"kind": "spatial", "place": "library", "relation": "left_of", "other": "cafe"}, None),
        ({**RELATIONAL, "text": "Lisbon is Ada's home."}, "Lisbon is Ada's home."),
    ],
)
def test_text_is_made_from_fields_where_it_is_absent(obj, text):
    assert parse(obj).text == (text or "library is left of cafe.")


def test_times_are_iso_or_seconds_in_utc():
    assert parse_time("2026-03-01T10:00:00Z", "time") == parse_time("2026-03-01T12:00:00+02:00", "time")
    assert parse_time("2026-03-01", "time") == parse_time(1772323200, "time")
    assert parse({**RELATIONAL, "valid_from": "2026-03-01"}).fields["valid_from"] == 1772323200.0


def test_ids_have_the_layout_of_uuid7_and_new_ones_sort_by_time():
    ids = [new_id(NOW + i) for i in range(100)]
    assert ids == sorted(ids) and len(set(ids)) == 100
    for id in (*ids, stable_id(parse({"text": "a"}))):
        assert uuid.UUID(id).version == 7 and uuid.UUID(id).variant == uuid.RFC_4122


def test_stable_id_depends_on_content_and_on_a_given_time_only():
    first = stable_id(parse({"text": "a"}))
    assert first == stable_id(parse({"text": "a"}, now=NOW + 5))
    others = [{"text": "b"}, {"text": "a", "time": 5}, {"text": "a", "time": 6}, {"text": "a", "pin": True}]
    assert len({first, *(stable_id(parse(obj)) for obj in others)}) == 5


def test_a_retried_write_is_the_same_content_though_the_clock_moved_on():
    stored = parse({"id": "m", "text": "a"})
    assert same_content(parse({"id": "m", "text": "a"}, now=NOW + 60), stored)
    assert not same_content(parse({"id": "m", "text": "a", "time": NOW + 60}), stored)
    assert not same_content(parse({"id": "m", "text": "b"}), stored)
    assert not same_content(replace(stored, context={"a": True}), replace(stored, context={"a": 1}))
