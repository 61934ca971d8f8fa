"""However the text of an answer comes in pieces, the deltas add up to the same calls."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.text.tools import AFTER_ARGUMENTS, call_text
from serve.tool_calls import CallReader

VALUES = st.recursive(
    st.none()
    | st.integers()
    | st.text(max_size=12)
    | st.sampled_from(["}", AFTER_ARGUMENTS, "<tool_call>", '"}']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(
    st.tuples(
        st.sampled_from(["look", "get_time"]), st.dictionaries(st.text(max_size=5), VALUES, max_size=3)
    ),
    max_size=3,
)
TEXT = st.text(max_size=20).map(str.rstrip).filter(lambda text: "<" not in text)


def written(text, calls) -> str:
    made = [{"function": {"name": name, "arguments": json.dumps(given)}} for name, given in calls]
    return "\n".join([*([text] if text else []), *map(call_text, made)])


def read(text: str, cuts: list[int], tools=()):
    """The reader, and the sums of its deltas: content, and names and arguments by index."""
    reader, content, calls = CallReader(tools), "", []
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    pieces = [text[a:b] for a, b in itertools.pairwise(places)]
    for delta in [delta for piece in pieces for delta in reader.push(piece)] + reader.finish():
        assert delta and delta.keys() <= {"content", "tool_calls"}
        content += delta.get("content", "")
        for told in delta.get("tool_calls", []):
            if told["index"] == len(calls):
                assert told["id"].startswith("call_") and told["type"] == "function"
                calls.append({"name": told["function"]["name"], "arguments": ""})
            assert told["index"] == len(calls) - 1
            calls[-1]["arguments"] += told["function"]["arguments"]
    assert [call["function"] for call in reader.calls] == calls and reader.content == content
    assert len({call["id"] for call in reader.calls}) == len(calls)
    return reader, content, calls


@given(text=TEXT, calls=CALLS, cuts=st.lists(st.integers(0, 500), max_size=12))
def test_pieces_add_up_to_the_calls(text, calls, cuts):
    reader, content, found = read(written(text, calls), cuts)
    assert content == text
    assert [(call["name"], json.loads(call["arguments"])) for call in found] == calls
    message = reader.message()
    assert message["content"] == (None if calls and not text else text) and ("tool_calls" in message) == bool(
        calls
    )


@given(text=TEXT, calls=CALLS, cut=st.integers(0, 500), cuts=st.lists(st.integers(0, 500), max_size=12))
def test_an_answer_that_is_cut_has_what_came_and_the_same_however_it_came(text, calls, cut, cuts):
    whole = written(text, calls)
    whole = whole[: cut % (len(whole) + 1)]
    _, content, found = read(whole, cuts)
    assert (content, found) == read(whole, [])[1:]
    for (name, arguments), call in zip(calls, found, strict=False):
        assert call["name"] == name and json.dumps(arguments, ensure_ascii=False).startswith(
            call["arguments"]
        )


OFFERED = [{"function": {"name": name}} for name in ("look", "get_time")]
BARE = [
    '{"name": "look", "arguments": {"at": "{{}}"}}',
    '{{"name": "look", "arguments": {"at": "{{}}"}}}',
    ' {\n  "name": "look",\n  "arguments": {"at": "{{}}"}\n}\n',
    '```json\n{"name": "look", "arguments": {"at": "{{}}"}}\n```',
]


@pytest.mark.parametrize("text", BARE)
@given(cuts=st.lists(st.integers(0, 500), max_size=12))
def test_json_that_is_a_call_and_nothing_else_is_that_call(text, cuts):
    _, content, calls = read(text, cuts, OFFERED)
    assert not content and calls == [{"name": "look", "arguments": '{"at": "{{}}"}'}]
    assert read(text, cuts)[2] == [], "where no tool is offered it is text"


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "walk", "arguments": {}}',
        '{"name": "look", "arguments": "x"}',
        '{"name": "look"}',
        '{"name": "look", "arguments": {"a',
        '{"name": "look", "arguments": {}} is how to call it.',
        '{"names": ["look"]}',
        '```json\n{"name": "look", "arguments": {}}\n``` is how.',
        "```",
        "{",
        '{"name": "look", "arguments": ' + '{"a":' * 5000,
    ],
)
@given(cuts=st.lists(st.integers(0, 500), max_size=12))
def test_any_other_json_is_text(text, cuts):
    assert read(text, cuts, OFFERED)[1:] == (text, [])


@given(text=TEXT, calls=CALLS, cuts=st.lists(st.integers(0, 500), max_size=12))
def test_marked_calls_are_read_alike_whatever_is_offered(text, calls, cuts):
    whole = written(text, calls)
    assert read(whole, cuts, OFFERED)[1:] == read(whole, cuts)[1:]
