"""A finished or growing answer in OpenAI's shapes, with the `memory` object beside."""

import json
import time
import uuid
from typing import Any

from serve.recall import Recalled
from serve.schema import ChatBody


class Reply:
    """One chat answer; every part of it carries the same id, time and model."""

    def __init__(self, body: ChatBody, mode: str, recalled: Recalled) -> None:
        self.body = body
        self._mode = mode
        self._recalled = recalled
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def completion(self, text: str, turn: dict[str, Any]) -> dict[str, Any]:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": turn["finish_reason"],
            "logprobs": None,
        }
        return {
            **self._common("chat.completion"),
            "choices": [choice],
            **self._outcome(turn),
            "usage": _usage(turn),
        }

    def opening(self) -> str:
        return self._chunk({"role": "assistant", "content": ""}, None)

    def delta(self, piece: str) -> str:
        return self._chunk({"content": piece}, None)

    def closing(self, turn: dict[str, Any]) -> str:
        """The chunk that ends the answer, and the usage chunk where it was asked for."""
        text = self._chunk({}, turn["finish_reason"], self._outcome(turn))
        if self.body.stream_options and self.body.stream_options.include_usage:
            usage = {**self._common("chat.completion.chunk"), "choices": [], "usage": _usage(turn)}
            text += f"data: {json.dumps(usage)}\n\n"
        return text

    def _chunk(self, delta: dict[str, Any], finish: str | None, more: dict[str, Any] | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return f"data: {json.dumps({**self._common('chat.completion.chunk'), 'choices': [choice], **(more or {})})}\n\n"

    def _common(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self.body.model}

    def _outcome(self, turn: dict[str, Any]) -> dict[str, Any]:
        memory = {
            "mode": self._mode,
            "retrieved": self._recalled.retrieved,
            "injected": turn["injected"],
            "prefix_tokens": turn["prefix_tokens"],
            "fallback": self._recalled.failure or turn["fallback"],
        }
        timings = {
            "retrieve_ms": 1e3 * self._recalled.seconds,
            "prefill_ms": 1e3 * turn["prefill_s"],
            "generate_ms": 1e3 * turn["generate_s"],
        }
        warnings = self.body.warnings()
        return {"memory": memory, "timings": timings, **({"warnings": warnings} if warnings else {})}


def _usage(turn: dict[str, Any]) -> dict[str, Any]:
    """`prompt_tokens` counts tokens processed; the injected prefix slots are the cached ones, beside them."""
    return {
        "prompt_tokens": turn["prompt_tokens"],
        "completion_tokens": turn["completion_tokens"],
        "total_tokens": turn["prompt_tokens"] + turn["completion_tokens"],
        "prompt_tokens_details": {"cached_tokens": turn["prefix_tokens"]},
    }


def model_entry(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "sharpwave"}
