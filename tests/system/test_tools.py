"""Tools and formats over HTTP, with the official client of OpenAI: whole, streamed, with several choices."""

import json
import threading
import time
from pathlib import Path

import httpx
import jsonschema
import openai
import pytest
from transformers import AutoTokenizer

from models.weights.load import dequantised, resolve

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "description": f"the {name} of a city", "parameters": CITY},
    }
    for name in ("weather", "time")
]
ASKED = [{"role": "user", "content": "How is the weather in Lisbon?"}]
FORMAT = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
OFF = {"memory": {"mode": "off"}}


@pytest.fixture(scope="module")
def client(instance):
    with openai.OpenAI(base_url=f"{instance.url}/v1", api_key="none", max_retries=0, timeout=180) as made:
        yield made


def chat(client, **more):
    return client.chat.completions.create(
        **{"model": "base", "messages": ASKED, "max_tokens": 60, "extra_body": OFF, **more}
    )


def check(call, names=("weather", "time")):
    assert call.type == "function" and call.id.startswith("call_") and call.function.name in names
    jsonschema.validate(json.loads(call.function.arguments), CITY)


@pytest.mark.parametrize(
    ("choice", "names"),
    [("required", ("weather", "time")), ({"type": "function", "function": {"name": "time"}}, ("time",))],
)
def test_a_tool_that_must_be_called_is(client, choice, names):
    asked = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False}
    reply = chat(client, **asked)
    [told] = reply.choices
    assert told.finish_reason == "tool_calls" and told.message.content is None
    [call] = told.message.tool_calls
    check(call, names)
    assert reply.model_extra.get("warnings") is None
    chunks = [chunk.choices[0] for chunk in chat(client, stream=True, **asked)]
    assert chunks[-1].finish_reason == "tool_calls" and not any(chunk.delta.content for chunk in chunks)
    deltas = [delta for chunk in chunks for delta in chunk.delta.tool_calls or []]
    assert deltas[0].id and deltas[0].function.name in names and deltas[0].function.arguments == ""
    assert all(delta.index == 0 for delta in deltas) and not any(delta.id for delta in deltas[1:])
    arguments = "".join(delta.function.arguments for delta in deltas)
    jsonschema.validate(json.loads(arguments), CITY)
    assert len(deltas) > 3


def test_the_model_is_free_to_call_and_continues_behind_results(client):
    free = chat(client, tools=TOOLS, max_tokens=12).choices[0]
    assert free.finish_reason == "length" and free.message.content and not free.message.tool_calls
    none = chat(client, tools=TOOLS, tool_choice="none", max_tokens=12)
    assert none.usage.prompt_tokens == chat(client, max_tokens=1).usage.prompt_tokens
    called = chat(client, tools=TOOLS, tool_choice="required", parallel_tool_calls=False).choices[0].message
    said = [
        {"role": "developer", "content": "Be brief."},
        *ASKED,
        called.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": "17 degrees, sunny"},
    ]
    reply = chat(client, messages=said, tools=TOOLS, max_tokens=12)
    assert reply.choices[0].message.content


def test_a_model_that_may_call_and_does_is_held_to_the_schema(client):
    """A bias against every token that begins an object leaves it the call; within that no other token is allowed."""
    tokenizer = AutoTokenizer.from_pretrained(dequantised(Path(resolve("smollm2-135m"))))
    objects = {str(id): -100 for id in range(len(tokenizer)) if tokenizer.decode([id]).startswith("{")}
    asked = {"tools": TOOLS, "tool_choice": "auto", "response_format": FORMAT, "logit_bias": objects}
    told = chat(client, parallel_tool_calls=False, stop=["city", "}"], **asked).choices[0]
    assert told.finish_reason == "tool_calls" and told.message.content is None  # stop is of the text
    check(told.message.tool_calls[0])


def test_several_choices_each_call(client):
    asked = {
        "tools": TOOLS,
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "n": 3,
        "temperature": 1.2,
    }
    reply = chat(client, seed=3, max_tokens=100, **asked)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    for choice in reply.choices:
        if choice.finish_reason == "tool_calls":
            check(choice.message.tool_calls[0])
    found, ends = {}, {}
    for chunk in chat(client, seed=3, max_tokens=100, stream=True, **asked):
        for choice in chunk.choices:
            ends[choice.index] = choice.finish_reason or ends.get(choice.index)
            for delta in choice.delta.tool_calls or []:
                found[choice.index] = found.get(choice.index, "") + delta.function.arguments
    assert found.keys() == ends.keys() == {0, 1, 2}
    for index, arguments in found.items():
        if ends[index] == "tool_calls":
            jsonschema.validate(json.loads(arguments), CITY)
    assert "tool_calls" in ends.values()


def test_formats_of_chat_and_completions(client):
    told = chat(client, response_format=FORMAT).choices[0]
    assert told.finish_reason == "stop"
    jsonschema.validate(json.loads(told.message.content), CITY)
    streamed = chat(client, response_format=FORMAT, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == told.message.content
    free = chat(client, response_format={"type": "json_object"}, max_tokens=60).choices[0]
    assert free.finish_reason == "length" or isinstance(json.loads(free.message.content), dict)
    cut = chat(client, response_format=FORMAT, max_tokens=4).choices[0]
    assert cut.finish_reason == "length"
    extra = {**OFF, "response_format": FORMAT}
    text = client.completions.create(model="base", prompt="Lisbon:", max_tokens=60, extra_body=extra).choices[
        0
    ]
    jsonschema.validate(json.loads(text.text), CITY)
    both = chat(client, tools=TOOLS, response_format=FORMAT).choices[0]
    assert both.message.tool_calls or jsonschema.validate(json.loads(both.message.content), CITY) is None


@pytest.mark.parametrize(
    ("bad", "param", "says"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}},
         "response_format", "not"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"uniqueItems": True}}}]}, "tools",
         "uniqueItems"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", "pattern"),
        ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools.0.type", "function"),
        ({"tool_choice": "required"}, "tool_choice", "tools"),
        ({"functions": [{"name": "f"}]}, "functions", "tools"),
        ({"modalities": ["audio"]}, "modalities", "text"),
        ({"logit_bias": {"999999": 1}}, "logit_bias", "999999"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "100"),
        ({"presence_penalty": 2.5}, "presence_penalty", "2"),
        ({"frequency_penalty": -3}, "frequency_penalty", "2"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "a"}]}, "messages", "tool_call_id"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages", "input_audio"),
    ],
)  # fmt: skip
def test_bad_requests_say_which_parameter(client, bad, param, says):
    with pytest.raises(openai.BadRequestError, match=says) as caught:
        chat(client, **bad)
    assert caught.value.param == param and caught.value.code


def test_penalties_and_vllms_limits_are_built(client):
    extra = {**OFF, "ignore_eos": True, "min_tokens": 3}
    reply = chat(
        client,
        max_tokens=20,
        presence_penalty=1.0,
        frequency_penalty=1.0,
        logit_bias={"5": -100},
        extra_body=extra,
    )
    assert reply.usage.completion_tokens == 20 and reply.model_extra.get("warnings") is None


def test_large_schemas_of_others_keep_no_request_waiting(client, instance):
    """While schemas of the largest size compile, a running answer goes on."""
    body = {"messages": ASKED, "max_tokens": 1, **OFF}
    names = [{f"key {k} {i}": {"type": "string"} for i in range(1500)} for k in range(3)]
    formats = [
        {
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": {"type": "object", "properties": each}},
        }
        for each in names
    ]
    threads = [
        threading.Thread(
            target=httpx.post,
            args=(f"{instance.url}/v1/chat/completions",),
            kwargs={"json": {**body, "response_format": each}, "timeout": 180},
        )
        for each in formats
    ]
    gaps, last = [], None
    for n, _ in enumerate(chat(client, stream=True, max_tokens=60)):
        now = time.monotonic()
        gaps.append(now - (last or now))
        last = now
        if n == 2:
            for thread in threads:
                thread.start()
    for thread in threads:
        thread.join()
    assert (
        len(gaps) > 5 and max(gaps) < 15.0
    )  # a shared machine; compiled in the engine's thread they would add up
