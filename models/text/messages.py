"""Chat messages as every path takes them: a role and plain text, calls of tools and their results. No torch: the API
checks them here first."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import InvalidInput

# Private-use characters: they mark where a piece is cut out of a rendered chat template.
MEMORIES = "\ue000memories\ue001"
RESPONSE = "\ue000response\ue001"
ROLES = ("system", "developer", "user", "assistant", "tool")

Message = Mapping[str, Any]


@dataclass(frozen=True)
class TokenText:
    """A text to continue that came as token ids of the served model; `text` is what they decode to."""

    ids: tuple[int, ...]
    text: str = ""


Messages = Sequence[Message] | str | TokenText  # a chat, or a text to continue


def check_messages(messages: Sequence[Message]) -> list[dict]:
    """Normalise to role, plain text, `tool_calls` of an assistant (only where there are some, their arguments as JSON
    of an object) and `tool_call_id` of a tool; what is normal stays as it is. Raises `InvalidInput` naming the first
    bad message."""
    if not messages:
        raise InvalidInput("messages is empty; give at least one", param="messages")
    checked, called = [], set[str]()
    for i, message in enumerate(messages):
        checked.append(_check_message(f"messages[{i}]", message, called))
        called.update(call["id"] for call in checked[-1].get("tool_calls", []))
    return checked


def _check_message(name: str, message: Message, called: set[str]) -> dict:
    role = message.get("role")
    if role == "function" or message.get("function_call") is not None:
        raise InvalidInput(
            f"{name} is of OpenAI's deprecated function calls; use tool_calls and the role tool",
            param="messages",
        )
    if role not in ROLES:
        raise InvalidInput(f"{name}.role = {role!r}; one of {', '.join(ROLES)}", param="messages")
    calls = message.get("tool_calls") or []
    if calls and role != "assistant":
        raise InvalidInput(f"{name} has tool_calls; only an assistant calls tools", param="messages")
    content = _content(name, message)
    checked = {"role": "system" if role == "developer" else role, "content": content}
    if calls:
        checked["tool_calls"] = _check_calls(f"{name}.tool_calls", calls)
    if role == "tool":
        answers = message.get("tool_call_id")
        if not isinstance(answers, str) or answers not in called:
            raise InvalidInput(
                f"{name}.tool_call_id = {answers!r} is no id of a call in an assistant message before it",
                param="messages",
            )
        checked["tool_call_id"] = answers
    return checked


def _content(name: str, message: Message) -> str:
    """The text of a message: its content, or the text parts of it; of an assistant also a refusal, or nothing."""
    content = message.get("content")
    assistant = message["role"] == "assistant"
    if content is None and assistant:
        content = message.get("refusal") or ""
    if isinstance(content, list):  # OpenAI's content parts
        content = "".join(_part(f"{name}.content[{j}]", part, assistant) for j, part in enumerate(content))
    if not isinstance(content, str):
        raise InvalidInput(f"{name}.content must be a string, or a list of text parts", param="messages")
    return check_text(content, f"{name}.content")


def _part(name: str, part: Any, assistant: bool) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind not in (("text", "refusal") if assistant else ("text",)):
        raise InvalidInput(f"{name} is of type {kind!r}; this model reads text only", param="messages")
    text = part.get(kind)
    if not isinstance(text, str):
        raise InvalidInput(f"{name}.{kind} must be a string", param="messages")
    return text


def _check_calls(name: str, calls: Any) -> list[dict]:
    if not isinstance(calls, list):
        raise InvalidInput(f"{name} must be a list", param="messages")
    return [_check_call(f"{name}[{j}]", call) for j, call in enumerate(calls)]


def _check_call(name: str, call: Any) -> dict:
    """`{id, type, function: {name, arguments}}`."""
    if not isinstance(call, Mapping) or call.get("type", "function") != "function":
        raise InvalidInput(f"{name} is no call of a function; its type must be 'function'", param="messages")
    function = call.get("function")
    asked = function if isinstance(function, Mapping) else {}
    said = {"id": call.get("id"), "name": asked.get("name"), "arguments": asked.get("arguments")}
    for field, value in said.items():
        if not isinstance(value, str):
            raise InvalidInput(f"{name}: {field} = {value!r} must be a string", param="messages")
        check_text(value, f"{name}.{field}")
    try:
        read = json.loads(str(said["arguments"]))
    except ValueError:
        read = None
    if not isinstance(read, dict):
        raise InvalidInput(f"{name}.function.arguments is not the JSON of an object", param="messages")
    check_text(json.dumps(read, ensure_ascii=False), f"{name}.function.arguments")
    called = {"name": said["name"], "arguments": said["arguments"]}
    return {"id": said["id"], "type": "function", "function": called}


def check_text(text: str, name: str) -> str:
    """The text as it is. Raises `InvalidInput` where it holds what no prompt can; `name` says which text it is."""
    param = name.partition("[")[0]
    if MEMORIES in text or RESPONSE in text:
        raise InvalidInput(f"{name} holds a reserved marker (U+E000)", param=param)
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise InvalidInput(f"{name} holds half a surrogate pair; send whole characters", param=param)
    return text


def overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark`: what a stream holds back until it knows."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)
