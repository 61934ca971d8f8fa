"""OpenAI's client on `/v1/responses`: answers, streams, earlier responses, calls of functions."""

import json

import httpx
import openai
import pytest
from jsonschema import validate

SPACE = {"memory": {"namespace": "responses", "mode": "off"}}
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a town.",
    "parameters": {
        "type": "object",
        "properties": {"town": {"type": "string", "enum": ["Lisbon", "Graz"]}, "days": {"type": "integer"}},
        "required": ["town", "days"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def client(instance):
    with openai.OpenAI(base_url=f"{instance.url}/v1", api_key="none", max_retries=0, timeout=180) as made:
        yield made


def respond(client, given, **more):
    return client.responses.create(
        **{"model": "base", "input": given, "max_output_tokens": 12, "extra_body": SPACE, **more}
    )


def turns(instance, id, namespace="responses"):
    asked = {"namespace": namespace, "n": 100}
    return httpx.post(f"{instance.url}/v1/conversations/{id}/peek", json=asked).json()["turns"]


def test_an_answer_is_that_of_the_same_chat(client, instance):
    told = respond(client, "Name one fruit.", instructions="Be brief.", temperature=0)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name one fruit."}]
    chat = client.chat.completions.create(model="base", messages=messages, max_tokens=12, extra_body=SPACE)
    assert told.output_text == chat.choices[0].message.content
    assert (
        told.usage.input_tokens == chat.usage.prompt_tokens
        and told.usage.output_tokens == chat.usage.completion_tokens
    )
    assert told.status == ("incomplete" if chat.choices[0].finish_reason == "length" else "completed")
    said = [(turn["role"], turn["text"]) for turn in turns(instance, told.id)]
    assert said[1:] == [("user", "Name one fruit."), ("assistant", told.output_text)]


def test_a_stream_tells_the_same_in_pieces(client):
    whole = respond(client, "Name one fruit.")
    events = [*respond(client, "Name one fruit.", stream=True)]
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:-1] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
    ]
    assert [event.sequence_number for event in events] == [*range(len(events))]
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    last = events[-1].response
    assert (last.output_text, last.status, last.usage) == (whole.output_text, whole.status, whole.usage)


def test_earlier_responses_come_first_and_instructions_do_not(client):
    first = respond(client, "My name is Ada Quill.", instructions="Answer in capitals.")
    for stream in (False, True):
        told = respond(client, "What is my name?", previous_response_id=first.id, stream=stream)
        second = [*told][-1].response if stream else told
        assert second.previous_response_id == first.id
        messages = [
            {"role": "user", "content": "My name is Ada Quill."},
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "What is my name?"},
        ]
        chat = client.chat.completions.create(
            model="base", messages=messages, max_tokens=12, extra_body=SPACE
        )
        assert second.output_text == chat.choices[0].message.content
    third = respond(client, "Thank you.", previous_response_id=second.id)
    assert third.usage.input_tokens > second.usage.input_tokens


def test_an_erased_response_is_not_continued_nor_what_follows_it(client, instance):
    first = respond(client, "The code is 4711.")
    second = respond(client, "Thank you.", previous_response_id=first.id)
    gone = httpx.delete(f"{instance.url}/v1/conversations/{first.id}", params={"namespace": "responses"})
    assert gone.status_code == 200
    unstored = respond(client, "Name one fruit.", store=False)
    elsewhere = {"extra_body": {"memory": {"namespace": "other", "mode": "off"}}}
    third = respond(client, "Name one fruit.")
    for id, more in (
        (first.id, {}),
        (second.id, {}),
        (unstored.id, {}),
        ("resp_x", {}),
        (third.id, elsewhere),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            respond(client, "What is the code?", previous_response_id=id, **more)
        assert caught.value.code == "response_not_found"


@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_functions_and_their_results(client, stream):
    asked = {
        "tools": [WEATHER],
        "tool_choice": "required",
        "max_output_tokens": 80,
        "stream": stream,
        "parallel_tool_calls": False,
    }
    told = respond(client, "What is the weather in Graz for 2 days?", **asked)
    events = [*told] if stream else []
    told = events[-1].response if stream else told
    assert told.status == "completed"
    call = next(item for item in told.output if item.type == "function_call")
    assert call.name == "get_weather"
    validate(json.loads(call.arguments), WEATHER["parameters"])
    if stream:
        pieces = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
        calls = [e.arguments for e in events if e.type == "response.function_call_arguments.done"]
        assert "".join(pieces) == "".join(calls) and call.arguments in calls
    result = {"type": "function_call_output", "call_id": call.call_id, "output": '{"sky": "clear"}'}
    results = [result] + [
        {**result, "call_id": item.call_id}
        for item in told.output
        if item.type == "function_call" and item is not call
    ]
    after = respond(client, results, previous_response_id=told.id)
    by_hand = respond(
        client,
        [
            {
                "role": "user",
                "content": [{"type": "input_text", "text": "What is the weather in Graz for 2 days?"}],
            },
            *(
                {"type": "function_call", "call_id": c.call_id, "name": c.name, "arguments": c.arguments}
                for c in told.output
            ),
            *results,
        ],
    )
    assert after.output_text == by_hand.output_text and after.usage == by_hand.usage


def test_answers_in_a_format(client):
    schema = {
        "type": "object",
        "properties": {"fruit": {"enum": ["fig", "pear"]}},
        "required": ["fruit"],
        "additionalProperties": False,
    }
    wanted = {"format": {"type": "json_schema", "name": "fruit", "schema": schema, "strict": True}}
    told = respond(client, "Name one fruit.", text=wanted, max_output_tokens=40)
    validate(json.loads(told.output_text), schema)


@pytest.mark.parametrize(
    "bad, param",
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools"),
        ({"input": "x", "background": True}, "background"),
        ({"input": "x", "temperature": 3}, "temperature"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": [{"role": "bot", "content": "x"}]}, "messages"),
    ],
)
def test_what_cannot_be_honoured_is_named(client, bad, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="base", extra_body=SPACE, **bad)
    assert caught.value.param == param and caught.value.code
