"""The body of `POST /v1/responses`: OpenAI's core of it, as a chat request."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from common.errors import InvalidInput
from serve.schemas.requests import ChatBody, MemoryField, OpenAIBody

Json = dict[str, Any]
REFUSED = {
    "background": "this server answers at once",
    "conversation": "use previous_response_id",
    "prompt": "this server keeps no prompt templates; send input",
    "max_tool_calls": "this server runs no tools of its own",
}
HARMLESS = ("include", "metadata", "reasoning", "truncation", "top_logprobs")
TEXT_PARTS = ("input_text", "output_text", "text", "refusal")
Input = Annotated[  # `messages_of` says which item is wrong
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "object"}, "minItems": 1},
            ]
        }
    ),
]


class ResponsesBody(OpenAIBody):
    """`previous_response_id`: what was said up to that response comes first; its `instructions` do not. With `store`
    the response can be continued: its messages are a conversation of the short-term memory, named as the response."""

    input: Input
    instructions: str | None = None
    previous_response_id: str | None = Field(None, min_length=1, max_length=128)
    store: bool = True
    stream: bool = False
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0.0, le=2.0)
    top_p: float | None = Field(None, gt=0.0, le=1.0)
    seed: int | None = Field(None, ge=0)
    tools: list[Json] = Field(default=[])
    tool_choice: Any = None
    parallel_tool_calls: bool = True
    text: Json | None = Field(
        None, description='{"format": {"type": "text" | "json_object" | "json_schema", ...}}'
    )
    memory: MemoryField = MemoryField()

    def warnings(self) -> list[str]:
        return [
            warning for warning in super().warnings() if not any(f"'{name}'" in warning for name in HARMLESS)
        ]

    def chat(self, history: Sequence[Json]) -> ChatBody:
        """The chat request behind `history`, messages of earlier responses. Raises `InvalidInput` for what cannot be
        honoured."""
        for name, value in (self.model_extra or {}).items():
            if name in REFUSED and value:
                raise InvalidInput(
                    f"{name} = {str(value)[:80]!r} is not supported: {REFUSED[name]}", param=name
                )
        system = [{"role": "system", "content": self.instructions}] if self.instructions else []
        given = {
            "model": self.model,
            "messages": [*system, *history, *messages_of(self.input)],
            "max_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "tools": [_tool(tool, i) for i, tool in enumerate(self.tools)],
            "tool_choice": _choice(self.tool_choice),
            "parallel_tool_calls": self.parallel_tool_calls,
            "response_format": _format((self.text or {}).get("format")),
            "stream": self.stream,
            "memory": self.memory,
        }
        return ChatBody.model_validate(given)


def messages_of(given: Any) -> list[Json]:
    """Chat messages from `input`: a text, or items, of which calls in a row are one message. Raises `InvalidInput`
    naming the first bad item."""
    if isinstance(given, str) and given:
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise InvalidInput("input: a text, or a list of items, not empty", param="input")
    messages: list[Json] = []
    for i, item in enumerate(given):
        message = _message(item, i)
        if messages and "tool_calls" in message and messages[-1]["role"] == "assistant":
            messages[-1].setdefault("tool_calls", []).extend(message["tool_calls"])
        else:
            messages.append(message)
    return messages


def _message(item: Any, i: int) -> Json:
    kind = item.get("type", "message") if isinstance(item, Mapping) else None
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    if kind == "function_call_output":
        output = item.get("output")
        content = output if isinstance(output, str) else _text(output, i)
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": content}
    if kind == "message":
        content = item.get("content")
        return {
            "role": item.get("role"),
            "content": content if isinstance(content, str) else _text(content, i),
        }
    raise InvalidInput(
        f"input[{i}] is of type {kind!r}; known: message, function_call, function_call_output", param="input"
    )


def _text(parts: Any, i: int) -> str:
    if not isinstance(parts, list):
        raise InvalidInput(f"input[{i}].content must be a text or a list of parts", param="input")
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") not in TEXT_PARTS:
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise InvalidInput(
                f"input[{i}].content has a part of type {kind!r}; this server reads text", param="input"
            )
    return "".join(str(part.get("text") or part.get("refusal") or "") for part in parts)


def _tool(tool: Json, i: int) -> Json:
    if tool.get("type") != "function":
        raise InvalidInput(
            f"tools[{i}].type = {tool.get('type')!r}: this server has no tools of its own; use type function",
            param="tools",
        )
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _choice(choice: Any) -> Any:
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice


def _format(given: Any) -> Any:
    """Chat has what describes a schema one level lower."""
    if not isinstance(given, Mapping) or given.get("type") != "json_schema":
        return given
    return {"type": "json_schema", "json_schema": {name: v for name, v in given.items() if name != "type"}}
