"""What an answer may be, written as a grammar: JSON of a schema, calls of tools, or text. No torch.

The language is llguidance's dialect of Lark (its `docs/syntax.md`, `docs/json_schema.md`). With `tools` and neither
`must_call` nor `schema`, the model is free until it writes the opener of a call; from there on it writes a call of one
of the tools, with arguments of that tool's schema. Behind a call comes another one, or the end.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from common.errors import InvalidInput
from models.text.tools import AFTER_ARGUMENTS, BEFORE_ARGUMENTS, BEFORE_NAME, CLOSER, OPENER

MAX_SCHEMA_BYTES = 1 << 16  # of one schema: it compiles within about half a second
# Between two tokens of JSON: a line break with an indentation, or up to two spaces. Bounded, because a model that
# does not know what to write next writes white space for ever.
OPTIONS = {"whitespace_pattern": r"\n {0,24}| {1,2}"}
DATA = ("enum", "const", "default", "examples", "example")  # keywords whose value is no schema


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """`schema`: JSON schema, as JSON, of an answer that calls no tool; None: any text. `tools`: name of each tool that
    may be called, and the schema of its arguments, as JSON. `must_call`: no answer without a call. `several`: more
    than one call is allowed."""

    schema: str | None = None
    tools: tuple[tuple[str, str], ...] = ()
    must_call: bool = False
    several: bool = True

    def lark(self, opener: int | None = None, closer: int | None = None) -> str:
        """The grammar. `opener`, `closer`: the special tokens that mark a call, of a tokenizer that has them."""
        lines, starts = [], []
        if self.tools:
            starts.append("called")
            lines += self._calls(opener, closer)
        if self.schema is not None and not self.must_call:
            starts.append("json")
            lines.append(f"json: %json {self.schema}")
        elif not self.must_call:
            starts.append("TEXT")
        return "\n".join([f"start: {' | '.join(starts)}", r"TEXT: /(.|\n)*/", *lines, ""])

    def _calls(self, opener: int | None, closer: int | None) -> list[str]:
        again = f'("\\n" {_mark(OPENER, opener)} call)*' if self.several else ""
        free = self.schema is None and not self.must_call
        functions = " | ".join(f"tool_{i}" for i in range(len(self.tools)))
        end = AFTER_ARGUMENTS.removesuffix(CLOSER)
        # Lazy: the first opener ends the text, spelled out in pieces or not.
        text = [f"opened[lazy]: TEXT {json.dumps(OPENER)}"] if free else []
        special = f" | TEXT {_mark(OPENER, opener)}" if free and opener is not None else ""
        return [
            *text,
            f"opening: {f'opened{special}' if free else _mark(OPENER, opener)}",
            f"called: opening call {again}",
            f"call: {json.dumps(BEFORE_NAME)} ({functions}) {json.dumps(end)} {_mark(CLOSER, closer)}",
            *(
                f"tool_{i}: {json.dumps(name + BEFORE_ARGUMENTS)} arguments_{i}\narguments_{i}: %json {schema}"
                for i, (name, schema) in enumerate(self.tools)
            ),
        ]


def schema_text(schema: Any, name: str) -> str:
    """A schema as `Grammar` takes it. `name` says where it was given. Raises `InvalidInput` for one that is too large,
    or asks for what a grammar cannot count; the engine refuses what else it cannot keep to."""
    param = name.partition(":")[0].partition(".")[0]
    if not isinstance(schema, dict | bool):
        raise InvalidInput(f"{name} must be a JSON schema, an object", param=param)
    made = {} if schema is True else {"not": {}} if schema is False else schema
    size = len(text := json.dumps({**made, "x-guidance": OPTIONS}))
    if size > MAX_SCHEMA_BYTES:
        raise InvalidInput(f"{name} has {size} bytes; a schema may have {MAX_SCHEMA_BYTES}", param=param)
    for part in _schemas(made):
        fewest, required = part.get("minProperties"), part.get("required")
        known = len(required) if isinstance(required, list) else 0
        if isinstance(fewest, int) and fewest > max(known, 1):  # a key that is said twice counts as one
            raise InvalidInput(
                f"{name}: minProperties = {fewest} is not supported beyond the required properties; list them in "
                "required",
                param=param,
            )
    return text


def _schemas(value: Any) -> Iterator[dict[str, Any]]:
    """Every object of a schema that may be a schema itself."""
    if isinstance(value, dict):
        yield value
        for key, each in value.items():
            if key not in DATA:
                yield from _schemas(each)
    elif isinstance(value, list):
        for each in value:
            yield from _schemas(each)


def _mark(text: str, token: int | None) -> str:
    return json.dumps(text) if token is None else f"<[{token}]>"
