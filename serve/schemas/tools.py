"""Tools, the choice of them and the format of an answer, as OpenAI's chat has them; which parameters of OpenAI change
nothing, and which cannot be honoured."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from common.errors import InvalidInput
from models.text.grammar import Grammar, schema_text
from models.text.messages import check_text

Json = dict[str, Any]
MAX_TOOLS = 128
NAME = r"^[a-zA-Z0-9_\-]{1,64}$"


class FunctionField(BaseModel):
    """`parameters`: a JSON schema of the arguments, which is always kept to; without it any object."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=NAME)
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class ToolField(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    function: FunctionField

    def shown(self) -> Json:
        """What the model is told of it."""
        function = {"name": self.function.name, "description": self.function.description or ""}
        return {"type": "function", "function": {**function, "parameters": self.function.parameters or {}}}


Tools = Annotated[list[ToolField], Field(max_length=MAX_TOOLS)]
_NAMED = {
    "type": {"const": "function"},
    "function": {"type": "object", "properties": {"name": {"type": "string"}}},
}
ToolChoice = Annotated[
    Any,
    WithJsonSchema(
        {"anyOf": [{"enum": ["none", "auto", "required"]}, {"type": "object", "properties": _NAMED}]}
    ),
]
_FORMAT = {"type": {"enum": ["text", "json_object", "json_schema"]}, "json_schema": {"type": "object"}}
ResponseFormat = Annotated[
    Any, WithJsonSchema({"type": "object", "properties": _FORMAT, "required": ["type"]})
]
LogitBias = Annotated[dict[int, Annotated[float, Field(ge=-100.0, le=100.0)]], Field(max_length=1024)]


def chosen_tools(tools: Sequence[ToolField], choice: Any) -> tuple[list[ToolField], bool]:
    """The tools that may be called, and whether one must be. Raises `InvalidInput` for a choice that means nothing."""
    names = [tool.function.name for tool in tools]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InvalidInput(f"tools has two functions named {twice!r}; names must differ", param="tools")
    if choice in (None, "auto"):
        return [*tools], False
    if choice == "none":
        return [], False
    if not tools:
        raise InvalidInput(f"tool_choice = {choice!r}: only together with tools", param="tool_choice")
    if choice == "required":
        return [*tools], True
    named = _at(choice, "function", "name") if _at(choice, "type") == "function" else None
    if named not in names:
        raise InvalidInput(
            f"tool_choice = {choice!r}: one of 'none', 'auto', 'required', or "
            f'{{"type": "function", "function": {{"name": ...}}}} with one of {names}',
            param="tool_choice",
        )
    return [tool for tool in tools if tool.function.name == named], True


def answer_schema(given: Any) -> str | None:
    """The schema of `response_format`, as `Grammar` takes it; None for text. Raises `InvalidInput`."""
    kind = _at(given, "type") if given is not None else "text"
    if kind == "text":
        return None
    if kind == "json_object":
        return schema_text({"type": "object"}, "response_format")
    if kind != "json_schema":
        raise InvalidInput(
            f"response_format.type = {kind!r}; one of text, json_object, json_schema", param="response_format"
        )
    name = _at(given, "json_schema", "name")
    if not isinstance(name, str) or not re.match(NAME, name):
        raise InvalidInput(
            f"response_format.json_schema.name = {name!r}; 1 to 64 letters, digits, _ or -",
            param="response_format",
        )
    asked = given["json_schema"].get("schema")
    return schema_text({"type": "object"} if asked is None else asked, "response_format.json_schema.schema")


def grammar_of(
    tools: Sequence[ToolField], *, must_call: bool, several: bool, schema: str | None
) -> Grammar | None:
    """What the answer may be; None for any text. Raises `InvalidInput` for a schema that cannot be kept to."""
    for tool in tools:
        check_text(json.dumps(tool.shown(), ensure_ascii=False), "tools")
    called = tuple(
        (tool.function.name, schema_text(_arguments(tool), f"tools: parameters of {tool.function.name!r}"))
        for tool in tools
    )
    if not called and schema is None:
        return None
    return Grammar(schema=schema, tools=called, must_call=must_call, several=several)


def _arguments(tool: ToolField) -> Json:
    """A schema of objects, also where it does not say so."""
    given = tool.function.parameters or {}
    return given if "type" in given or "$ref" in given else {"type": "object", **given}


def _at(value: Any, *path: str) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _anything(_: Any) -> bool:
    return True


# Parameters that this server does not act on, with the values for which it answers as if it did.
HARMLESS: dict[str, Callable[[Any], bool]] = {
    "user": _anything,
    "metadata": _anything,
    "safety_identifier": _anything,
    "prompt_cache_key": _anything,
    "prompt_cache_retention": _anything,
    "store": lambda value: value is False,
    "service_tier": lambda value: value in ("auto", "default"),
    "modalities": lambda value: value == ["text"],
    "verbosity": lambda value: value == "medium",
    "best_of": lambda value: value == 1,
    "echo": lambda value: value is False,
    "suffix": lambda value: value == "",
}
USE_TOOLS = "it is deprecated; use tools and tool_choice"
USE_FORMAT = "use response_format"
# Those that would change what the answer is, or its form.
REFUSED = {
    "functions": USE_TOOLS,
    "function_call": USE_TOOLS,
    "modalities": "this server answers with text only",
    "audio": "this server answers with text only",
    "web_search_options": "this server searches no web",
    "best_of": "this server gives every answer that it makes; use n",
    "suffix": "this server inserts no text before another one",
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar"), USE_FORMAT),
    "structured_outputs": USE_FORMAT,
}


def check_honoured(extra: Mapping[str, Any]) -> None:
    """Raise `InvalidInput` for a parameter beyond those of the body that would change the answer's form."""
    for name, value in extra.items():
        if name in REFUSED and not is_harmless(name, value):
            raise InvalidInput(f"{name} = {str(value)[:80]!r} is not supported: {REFUSED[name]}", param=name)


def is_harmless(name: str, value: Any) -> bool:
    return name in HARMLESS and HARMLESS[name](value)
