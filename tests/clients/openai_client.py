"""OpenAI's Python client."""

import json
from typing import Literal

from openai import OpenAI
from pydantic import BaseModel, Field
from steps import ASK, EMBEDDER, MESSAGES, TIMEOUT_S, run


class Visit(BaseModel):
    city: Literal["Lisbon", "Porto"]
    days: int = Field(ge=1, le=9)


TOOLS = [
    {
        "type": "function",
        "function": {"name": "plan_visit", "description": "Plan it", "parameters": Visit.model_json_schema()},
    }
]


def made(url: str, key: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key=key, timeout=TIMEOUT_S, max_retries=0)


def chat(url: str, key: str) -> None:
    reply = made(url, key).chat.completions.create(model="base", messages=MESSAGES, max_tokens=12)
    assert reply.choices[0].message.content and reply.usage.completion_tokens <= 12, reply


def stream(url: str, key: str) -> None:
    more = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = [*made(url, key).chat.completions.create(model="base", messages=MESSAGES, max_tokens=12, **more)]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text and chunks[-1].usage.total_tokens > 0, chunks


def tools_required(url: str, key: str) -> None:
    client = made(url, key)
    asked = {"model": "base", "tools": TOOLS, "max_tokens": 80, "parallel_tool_calls": False}
    reply = client.chat.completions.create(messages=MESSAGES, tool_choice="required", **asked)
    message = reply.choices[0].message
    [call] = message.tool_calls
    Visit.model_validate_json(call.function.arguments)
    assert reply.choices[0].finish_reason == "tool_calls" and call.function.name == "plan_visit", reply
    told = [{"role": "tool", "tool_call_id": one.id, "content": "done"} for one in message.tool_calls]
    after = client.chat.completions.create(messages=[*MESSAGES, message, *told], tool_choice="none", **asked)
    assert after.choices[0].message.tool_calls is None, after


def parse_a_schema(url: str, key: str) -> None:
    client = made(url, key)
    reply = client.chat.completions.parse(
        model="base", messages=MESSAGES, response_format=Visit, max_tokens=80
    )
    assert isinstance(reply.choices[0].message.parsed, Visit), reply


def completions_echo(url: str, key: str) -> None:
    reply = made(url, key).completions.create(
        model="base", prompt="The sky is blue", echo=True, logprobs=1, max_tokens=2
    )
    logprobs = reply.choices[0].logprobs
    assert reply.choices[0].text.startswith("The sky is blue") and logprobs.token_logprobs[0] is None, reply
    assert "".join(logprobs.tokens) == reply.choices[0].text, reply


def embeddings(url: str, key: str) -> None:
    reply = made(url, key).embeddings.create(model=EMBEDDER, input=["one", "two"])  # sends base64
    norms = [sum(x * x for x in each.embedding) for each in reply.data]
    assert len(norms) == 2 and all(abs(norm - 1) < 1e-3 for norm in norms), norms


def responses(url: str, key: str) -> None:
    client = made(url, key)
    first = client.responses.create(model="base", input=ASK, max_output_tokens=12)
    assert first.output_text and first.usage.output_tokens <= 12, first
    asked = {"model": "base", "input": "And of Spain?", "max_output_tokens": 12}
    second = client.responses.create(previous_response_id=first.id, **asked)
    assert second.usage.input_tokens > first.usage.input_tokens, (first, second)
    events = [*client.responses.create(previous_response_id=second.id, stream=True, **asked)]
    assert events[0].type == "response.created", events
    assert events[-1].type in ("response.completed", "response.incomplete"), events[-1]


def responses_parse_and_call(url: str, key: str) -> None:
    client = made(url, key)
    reply = client.responses.parse(model="base", input=ASK, text_format=Visit, max_output_tokens=80)
    assert isinstance(reply.output_parsed, Visit), reply
    tools = [{"type": "function", **TOOLS[0]["function"]}]
    asked = {"input": ASK, "tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    called = client.responses.create(model="base", max_output_tokens=80, **asked)
    [call] = [each for each in called.output if each.type == "function_call"]
    Visit.model_validate(json.loads(call.arguments))


def models(url: str, key: str) -> None:
    assert {"base", EMBEDDER} <= {each.id for each in made(url, key).models.list()}


if __name__ == "__main__":
    run(
        chat,
        stream,
        tools_required,
        parse_a_schema,
        completions_echo,
        embeddings,
        responses,
        responses_parse_and_call,
        models,
    )
