"""`/v1/responses`: its answers, whole or streamed, and the conversations that they continue.

A response that is stored is a conversation of the short-term memory with the response's id: first a turn that says
which response it continues, then its messages, the answer last. What came before is read along these links, so an
erased response takes away what follows it too.
"""

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from actors.store.conversations import StoreConversations
from common.errors import InvalidInput, NotFound
from serve.openai_answers import Piece, Reply
from serve.recall import Recalled
from serve.schemas.openai_responses import ResponsesBody
from serve.schemas.requests import ChatBody
from serve.tool_calls import CallReader

Json = dict[str, Any]
MAX_LINKS, MAX_TURNS = 1000, 10_000


def fresh_id() -> str:
    return f"resp_{uuid.uuid4().hex}"


async def history_of(conversations: StoreConversations, namespace: str, response: str | None) -> list[Json]:
    """The messages up to and with this response, oldest first. Raises `NotFound` where it, or one before it, is not
    stored in this namespace."""
    said: list[Json] = []
    for _ in range(MAX_LINKS):
        if response is None:
            return said
        turns = await conversations.peek(namespace, response, MAX_TURNS)
        head = _head(turns)
        if head is None:
            raise NotFound(
                f"response {response!r} is not stored in namespace {namespace!r}",
                param="previous_response_id",
                code="response_not_found",
            )
        said = [*map(_message, turns[1:], head["structured"]), *said]
        response = head["previous"]
    raise InvalidInput(f"more than {MAX_LINKS} responses follow each other", param="previous_response_id")


def turns_of(previous: str | None, messages: Sequence[Mapping[str, Any]]) -> list[Json]:
    """The turns of a stored response."""
    structured = [set(m) != {"role", "content"} or not isinstance(m["content"], str) for m in messages]
    head = {"role": "system", "text": json.dumps({"previous": previous, "structured": structured})}
    return [head, *map(_turn, messages, structured)]


def _head(turns: Sequence[Mapping[str, Any]]) -> Json | None:
    try:
        head = json.loads(turns[0]["text"])
        return head if len(head["structured"]) == len(turns) - 1 else None
    except (IndexError, ValueError, KeyError, TypeError):  # no response: another conversation of this name
        return None


def _turn(message: Mapping[str, Any], structured: bool) -> Json:
    role = "system" if message["role"] == "developer" else message["role"]
    text = json.dumps(message, ensure_ascii=False) if structured else message["content"]
    return {"role": role, "text": text}


def _message(turn: Mapping[str, Any], structured: bool) -> Json:
    return (
        cast(Json, json.loads(turn["text"]))
        if structured
        else {"role": turn["role"], "content": turn["text"]}
    )


class ResponsesReply(Reply):
    """One answer, as items of a response."""

    ending = ""
    body: ChatBody

    def __init__(
        self, body: ChatBody, mode: str, recalled: Sequence[Recalled], *, asked: ResponsesBody, id: str
    ) -> None:
        super().__init__(body, mode, recalled)
        self._id, self._asked = id, asked
        self._reader = CallReader(body.bare_tools)
        self._calls = bool(body.shown_tools)
        self._message_id = f"msg_{uuid.uuid4().hex}"
        self._sent = 0  # events
        self._open: Json | None = None  # the item that is streamed now
        self._place = -1  # its place in the output

    @property
    def message(self) -> Json:
        """The answer as a chat message."""
        return {"role": "assistant", **self._reader.message()}

    def whole(self, pieces: Iterable[Piece]) -> Json:
        for _, piece in pieces:
            self._take(piece)
        return self._response(self._turns[0])

    def event(self, i: int, piece: Json) -> str:
        opening = self._begin() if not self._sent else ""
        grown = "".join(self._streamed(delta) for delta in self._take(piece))
        if "text" in piece:
            return opening + grown
        final = self._response(piece)
        state = "response.completed" if final["status"] == "completed" else "response.incomplete"
        return opening + grown + self._close() + self._told(state, response=final)

    def failed(self, error: Json) -> str:
        return self._told("error", **error["error"])

    def _take(self, piece: Json) -> list[Json]:
        """Read a piece; the deltas in it."""
        if "text" not in piece:
            self._turns[0] = piece
            return self._reader.finish() if self._calls else []
        if self._calls:
            return self._reader.push(piece["text"])
        self._reader.content += piece["text"]
        return [{"content": piece["text"]}] if piece["text"] else []

    # Events

    def _told(self, kind: str, **fields: Any) -> str:
        data = {"type": kind, "sequence_number": self._sent, **fields}
        self._sent += 1
        return f"event: {kind}\ndata: {json.dumps(data)}\n\n"

    def _begin(self) -> str:
        begun = {**self._fields("in_progress"), "output": [], "usage": None}
        return self._told("response.created", response=begun) + self._told(
            "response.in_progress", response=begun
        )

    def _streamed(self, delta: Json) -> str:
        if "content" in delta:
            opening = (
                "" if self._open and self._open["type"] == "message" else self._open_item(self._text_item(""))
            )
            assert self._open is not None
            self._open["content"][0]["text"] += delta["content"]
            return opening + self._told(
                "response.output_text.delta", **self._at_text(), delta=delta["content"], logprobs=[]
            )
        [call] = delta["tool_calls"]
        text = ""
        if "id" in call:
            text = self._open_item(self._call_item(self._reader.calls[-1], arguments=""))
        assert self._open is not None
        if grown := call["function"]["arguments"]:
            self._open["arguments"] += grown
            text += self._told("response.function_call_arguments.delta", **self._at(), delta=grown)
        return text

    def _open_item(self, item: Json) -> str:
        text = self._close()
        self._open, self._place = item, self._place + 1
        shown = {**item, "status": "in_progress", **({"content": []} if item["type"] == "message" else {})}
        text += self._told("response.output_item.added", output_index=self._place, item=shown)
        if item["type"] == "message":
            text += self._told("response.content_part.added", **self._at_text(), part=_part(""))
        return text

    def _close(self) -> str:
        if (item := self._open) is None:
            return ""
        self._open, at = None, {"item_id": item["id"], "output_index": self._place}
        if item["type"] == "message":
            words = item["content"][0]["text"]
            at_text = {**at, "content_index": 0}
            text = self._told("response.output_text.done", **at_text, text=words, logprobs=[])
            text += self._told("response.content_part.done", **at_text, part=_part(words))
        else:
            done = {**at, "name": item["name"], "arguments": item["arguments"]}
            text = self._told("response.function_call_arguments.done", **done)
        return text + self._told("response.output_item.done", output_index=self._place, item=item)

    def _at(self) -> Json:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": self._place}

    def _at_text(self) -> Json:
        return {**self._at(), "content_index": 0}

    # The response

    def _response(self, turn: Json) -> Json:
        cut = turn["finish_reason"] == "length"
        told = self._reader
        items = [self._text_item(told.content)] if told.content or not told.calls else []
        items += [self._call_item(call) for call in told.calls]
        if cut:
            items[-1]["status"] = "incomplete"
        usage = self._usage()
        return {
            **self._fields("incomplete" if cut else "completed"),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": items,
            **self._outcome(),
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": usage["prompt_tokens_details"],
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
            },
        }

    def _outcome(self) -> Json:
        warnings = self._asked.warnings()
        return {**super()._outcome(), **({"warnings": warnings} if warnings else {})}

    def _fields(self, status: str) -> Json:
        asked = self._asked
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": asked.model,
            "instructions": asked.instructions,
            "previous_response_id": asked.previous_response_id,
            "store": asked.store,
            "max_output_tokens": asked.max_output_tokens,
            "temperature": self.body.temperature,
            "top_p": self.body.top_p,
            "tools": asked.tools,
            "tool_choice": asked.tool_choice or "auto",
            "parallel_tool_calls": asked.parallel_tool_calls,
            "text": asked.text or {"format": {"type": "text"}},
            "truncation": "disabled",
            "metadata": (asked.model_extra or {}).get("metadata") or {},
        }

    def _text_item(self, text: str) -> Json:
        item = {"id": self._message_id, "type": "message", "role": "assistant", "status": "completed"}
        return {**item, "content": [_part(text)]}

    def _call_item(self, call: Json, **changed: Any) -> Json:
        item = {
            "id": f"fc_{call['id'].removeprefix('call_')}",
            "type": "function_call",
            "call_id": call["id"],
        }
        return {**item, **call["function"], "status": "completed", **changed}


def _part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
