"""From the text of an answer to calls of tools, as it grows. The grammar guarantees its form: see
`models.text.tools`."""

import json
import re
import uuid
from collections.abc import Sequence
from typing import Any

from models.text.messages import overlap
from models.text.tools import AFTER_ARGUMENTS, BEFORE_ARGUMENTS, BEFORE_NAME, OPENER

Json = dict[str, Any]
# How a call begins without its mark, as some models write it (Qwen2.5-Coder, whose template shows two braces).
BARE = [fence + begun for fence in ("", "```json", "```") for begun in ('{"name":"', '{{"name":"')]
FENCED = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)


class CallReader:
    """Reads one answer. `push` and `finish` give deltas of OpenAI's streams, `{content}` or `{tool_calls}`; `content`
    and `calls` hold what has come so far. A call that `max_tokens` cuts has the beginning of its arguments; one whose
    name is cut is left out. White space before a call is no content.

    `tools`: those of which a call needs no mark: an answer that is nothing but the JSON of one is that call too, told
    when the answer has ended; its arguments are an object, which need not follow the tool's schema."""

    def __init__(self, tools: Sequence[Json] = ()) -> None:
        self.content = ""
        self.calls: list[Json] = []
        self._tools = {tool["function"]["name"] for tool in tools}
        self._unread = ""
        self._state = self._beginning if tools else self._text

    def push(self, text: str) -> list[Json]:
        self._unread += text
        deltas: list[Json] = []
        while (delta := self._state()) is not None:
            deltas += [delta] if delta else []
        return deltas

    def finish(self) -> list[Json]:
        """What is left when no more text comes."""
        if self._state == self._beginning:
            if call := _bare_call(self._unread, self._tools):
                self.calls.append(call)
                return [{"tool_calls": [{"index": 0, **call}]}]
            self._state = self._text
            return [*self.push(""), *self.finish()]
        left, self._unread = self._unread, ""
        if self._state == self._text:
            self.content += left
            return [{"content": left}] if left else []
        if self._state == self._arguments and left and not _is_json(self.calls[-1]["function"]["arguments"]):
            return [self._grow(left[:1])]  # a brace that could have ended the call was one of the arguments'
        return []

    def message(self) -> Json:
        """The fields of the whole message."""
        calls = {"tool_calls": self.calls} if self.calls else {}
        return {"content": None if self.calls and not self.content else self.content, **calls}

    # Each state consumes what it can of the unread text and gives a delta, empty where only the state changed, or None
    # where it needs more text.

    def _beginning(self) -> Json | None:
        begun = re.sub(r"\s", "", self._unread[:64])
        if any(begun.startswith(bare) or bare.startswith(begun) for bare in BARE):
            return None
        self._state = self._text
        return {}

    def _text(self) -> Json | None:
        text, found, rest = self._unread.partition(OPENER)
        if found:
            self._unread, self._state = rest, self._name
            text = text.rstrip()
        else:
            text = text[: len(text) - overlap(text, OPENER)].rstrip()
            self._unread = self._unread[len(text) :]
            if not text:
                return None
        self.content += text
        return {"content": text} if text else {}

    def _name(self) -> Json | None:
        name, found, rest = self._unread.partition(BEFORE_ARGUMENTS)
        if not found:
            return None
        self._unread, self._state = rest, self._arguments
        call = _call(name.removeprefix(BEFORE_NAME), "")
        self.calls.append(call)
        return {"tool_calls": [{"index": len(self.calls) - 1, **call, "function": {**call["function"]}}]}

    def _arguments(self) -> Json | None:
        text, found, rest = self._unread.partition(AFTER_ARGUMENTS)
        if found:
            self._unread, self._state = rest, self._between
        else:
            text = text[: len(text) - overlap(text, AFTER_ARGUMENTS)]
            self._unread = self._unread[len(text) :]
            if not text:
                return None
        return self._grow(text) if text else {}

    def _between(self) -> Json | None:
        _, found, rest = self._unread.partition(OPENER)
        if not found:
            return None
        self._unread, self._state = rest, self._name
        return {}

    def _grow(self, text: str) -> Json:
        self.calls[-1]["function"]["arguments"] += text
        return {"tool_calls": [{"index": len(self.calls) - 1, "function": {"arguments": text}}]}


def _call(name: str, arguments: str) -> Json:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _bare_call(text: str, tools: set[str]) -> Json | None:
    fenced = FENCED.fullmatch(text := text.strip())
    text = fenced[1] if fenced else text
    for candidate in (text, text[1:-1]):
        try:
            match json.loads(candidate):
                case {"name": str(name), "arguments": dict(arguments)} if name in tools:
                    return _call(name, json.dumps(arguments, ensure_ascii=False))
        except (ValueError, RecursionError):
            continue
    return None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
