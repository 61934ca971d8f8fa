"""What a chat request may ask of tools and formats, and what is refused by name."""

import json

import pytest

from common.errors import InvalidInput
from serve.schemas.requests import ChatBody, CompletionBody

SAID = [{"role": "user", "content": "Hello"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": CITY}} for name in ("weather", "time")]
NAMED = {"type": "function", "function": {"name": "time"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}


def body(**fields) -> ChatBody:
    return ChatBody(messages=SAID, **fields)


@pytest.mark.parametrize(
    ("fields", "names", "must_call", "several"),
    [
        ({}, ["weather", "time"], False, True),
        ({"tool_choice": "auto"}, ["weather", "time"], False, True),
        ({"tool_choice": "required", "parallel_tool_calls": False}, ["weather", "time"], True, False),
        ({"tool_choice": NAMED}, ["time"], True, True),
        ({"tool_choice": "none"}, [], False, True),
    ],
)
def test_a_choice_decides_which_tools_may_be_called(fields, names, must_call, several):
    asked = body(tools=TOOLS, **fields)
    grammar = asked.grammar
    assert [tool["function"]["name"] for tool in asked.shown_tools] == names
    if names:
        assert [name for name, _ in grammar.tools] == names
        assert (grammar.must_call, grammar.several, grammar.schema) == (must_call, several, None)
    else:
        assert grammar is None


def test_a_format_is_a_schema_also_beside_tools_and_of_completions():
    assert body(response_format={"type": "text"}).grammar is None
    assert json.loads(body(response_format={"type": "json_object"}).grammar.schema)["type"] == "object"
    for asked in (body(response_format=SCHEMA), CompletionBody(prompt="x", response_format=SCHEMA)):
        assert json.loads(asked.grammar.schema)["required"] == ["city"]
        assert asked.sampling(9)[0]["grammar"] == asked.grammar
    both = body(response_format=SCHEMA, tools=TOOLS).grammar
    assert both.schema and len(both.tools) == 2


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"tool_choice": "required"}, "tool_choice", "only together with tools"),
        ({"tools": TOOLS, "tool_choice": "always"}, "tool_choice", "'required'"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "time"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools", "two functions named 'weather'"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"minProperties": 2}}}]},
         "tools", "minProperties"),
        ({"response_format": {"type": "xml"}}, "response_format", "json_schema"),
        ({"response_format": "json"}, "response_format", "json_object"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "name"),
        ({"response_format": {**SCHEMA, "json_schema": {"name": "a", "schema": []}}}, "response_format", "object"),
        ({"functions": [], "function_call": "auto"}, "functions", "use tools"),
        ({"modalities": ["text", "audio"]}, "modalities", "text only"),
        ({"audio": {"voice": "x"}}, "audio", "text only"),
        ({"web_search_options": {}}, "web_search_options", "web"),
        ({"guided_json": {}}, "guided_json", "response_format"),
        ({"min_tokens": 10, "max_tokens": 9}, "min_tokens", "more than max_tokens"),
        ({"ignore_eos": True, "response_format": SCHEMA}, "ignore_eos", "response_format"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(fields, param, says):
    with pytest.raises(InvalidInput, match=says) as caught:
        body(**fields).sampling(20)
    assert caught.value.param == param


def test_harmless_parameters_need_no_warning():
    quiet = {"user": "me", "store": False, "metadata": {"a": "b"}, "service_tier": "auto", "modalities": ["text"],
             "presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {}, "response_format": {"type": "text"},
             "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}  # fmt: skip
    asked = body(**quiet)
    assert asked.sampling(9)[0]["grammar"] is None and asked.warnings() == []
    loud = body(store=True, service_tier="priority", reasoning_effort="high", top_k=3)
    assert [w.split("'")[1] for w in loud.warnings()] == [
        "reasoning_effort",
        "service_tier",
        "store",
        "top_k",
    ]


def test_calls_need_their_mark_where_json_is_an_answer_too():
    tool = {"type": "function", "function": {"name": "look"}}
    asked = {"model": "base", "messages": [{"role": "user", "content": "x"}], "tools": [tool]}
    for form, bare in [(None, ["look"]), ("text", ["look"]), ("json_object", [])]:
        body = ChatBody(**asked, **({"response_format": {"type": form}} if form else {}))
        assert [each["function"]["name"] for each in body.bare_tools] == bare
    assert ChatBody(**asked, tool_choice="none").bare_tools == []
