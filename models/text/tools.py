"""Tools in prompts and answers: the form of a call, and how a model is told of tools. No torch.

A call is what Qwen2.5 and 3, and Hermes before them, were trained to write:

    <tool_call>
    {"name": "NAME", "arguments": {...}}
    </tool_call>

A chat template that renders tools and calls in this form renders them itself; for any other model the tools follow
the system text, calls the assistant's text, and results are what the user says next.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

Tool = Mapping[str, Any]  # OpenAI's: {"type": "function", "function": {"name", "description", "parameters"}}

OPENER, CLOSER = "<tool_call>", "</tool_call>"
BEFORE_NAME, BEFORE_ARGUMENTS, AFTER_ARGUMENTS = '\n{"name": "', '", "arguments": ', f"}}\n{CLOSER}"

INSTRUCTIONS = f"""

# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{{tools}}
</tools>

For each function call, return a json object with function name and arguments within {OPENER}{CLOSER} XML tags:
{OPENER}
{{{{"name": <function-name>, "arguments": <args-json-object>}}}}
{CLOSER}"""
PROBE = "probe_of_tools"


def renders_tools(render: Any, head: str, system: str) -> bool:
    """Whether a chat template renders tools and calls in the form above, behind the same `head`. `render(messages,
    tools)` applies it; `system` is the system text that `head` comes from."""
    tool = {"type": "function", "function": {"name": PROBE, "description": "", "parameters": {}}}
    call = {"id": "1", "type": "function", "function": {"name": PROBE, "arguments": "{}"}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": system},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "result_of_probe", "tool_call_id": "1"},
    ]
    try:
        text = str(render(for_template(messages), [tool]))
    except Exception:  # Jinja raises whatever the template's author chose
        return False
    form = f"{OPENER}{BEFORE_NAME}{PROBE}{BEFORE_ARGUMENTS}{{}}{AFTER_ARGUMENTS}"
    return text.startswith(head) and form in text and "result_of_probe" in text and text.count(PROBE) == 2


def for_template(messages: Sequence[Mapping[str, Any]]) -> list[dict]:
    """The messages with the arguments of calls as objects, as chat templates want them."""
    return [
        {**message, "tool_calls": [_with_object(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else {**message}
        for message in messages
    ]


def as_text(messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]) -> list[dict]:
    """The same conversation in system, user and assistant messages of plain text; the first one is the system's."""
    said: list[dict] = []
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "tool":
            content = f"<tool_response>\n{content}\n</tool_response>"
            if said[-1].get("results"):
                said[-1]["content"] += f"\n{content}"
            else:
                said.append({"role": "user", "content": content, "results": True})
            continue
        calls = [call_text(call) for call in message.get("tool_calls") or []]
        said.append(
            {"role": role, "content": "\n".join([*([content] if content or not calls else []), *calls])}
        )
    if tools:
        said[0]["content"] += INSTRUCTIONS.format(tools="\n".join(_dumped(tool) for tool in tools))
    return [{"role": message["role"], "content": message["content"]} for message in said]


def call_text(call: Mapping[str, Any]) -> str:
    """A call of OpenAI's form as the model writes it."""
    function = call["function"]
    arguments = _dumped(json.loads(function["arguments"]))
    return f"{OPENER}{BEFORE_NAME}{function['name']}{BEFORE_ARGUMENTS}{arguments}{AFTER_ARGUMENTS}"


def _with_object(call: Mapping[str, Any]) -> dict:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
