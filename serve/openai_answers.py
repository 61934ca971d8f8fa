"""Chat and completion responses in OpenAI's format, whole or streamed, with an additional `memory` object."""

import json
import time
import uuid
from abc import ABC, abstractmethod
from codecs import IncrementalDecoder, getincrementaldecoder
from collections.abc import Iterable, Sequence
from typing import Any

from serve.recall import Recalled
from serve.schemas.requests import ChatBody, CompletionBody, GenerateBody
from serve.tool_calls import CallReader

Json = dict[str, Any]
# A choice's number, and what the engine said of it: `{text, logprobs}`, at the end a turn.
Piece = tuple[int, Json]


class Reply(ABC):
    """One response to a request with `n` answers to each prompt: answer i is to prompt i // n. Call `whole` with all
    pieces from the engine, or `event` with each one. `ending`: what a stream ends with."""

    ending = "data: [DONE]\n\n"

    def __init__(self, body: GenerateBody, mode: str, recalled: Sequence[Recalled]) -> None:
        self.body = body
        self._mode = mode
        self._recalled = recalled
        self._created = int(time.time())
        self._turns: dict[int, Json] = {}

    @property
    def turns(self) -> list[Json]:
        """Generation statistics of the finished choices, in order."""
        return [self._turns[i] for i in sorted(self._turns)]

    @property
    def done(self) -> bool:
        """Whether all answers have ended."""
        return len(self._turns) == len(self._recalled) * self.body.n

    @abstractmethod
    def whole(self, pieces: Iterable[Piece]) -> Json:
        """The response."""

    @abstractmethod
    def event(self, i: int, piece: Json) -> str:
        """What a stream says of one piece."""

    def failed(self, error: Json) -> str:
        """What a stream says of an error, which is the last thing it says."""
        return _sent(error)

    def _outcome(self) -> Json:
        memories = [self._memory(place) for place in range(len(self._recalled))]
        slowest = {name: max(turn[name] for turn in self.turns) for name in ("prefill_s", "generate_s")}
        timings = {
            "retrieve_ms": 1e3 * max(recalled.seconds for recalled in self._recalled),
            "prefill_ms": 1e3 * slowest["prefill_s"],
            "generate_ms": 1e3 * slowest["generate_s"],
        }
        if any(turn["influence"] is not None for turn in self.turns):
            timings["attribute_ms"] = 1e3 * max(turn["attribute_s"] for turn in self.turns)
        warnings = self.body.warnings()
        told = memories[0] if len(memories) == 1 else memories
        return {"memory": told, "timings": timings, **({"warnings": warnings} if warnings else {})}

    def _memory(self, prompt: int) -> Json:
        """The `memory` object of one prompt, which is the same for all its choices."""
        n, recalled = self.body.n, self._recalled[prompt]
        turns = self.turns[prompt * n : (prompt + 1) * n]
        fallbacks = [recalled.failure, *(turn["fallback"] for turn in turns)]
        influence = turns[0]["influence"]
        measured = (
            {}
            if influence is None
            else {
                "influence": [{"id": id, "divergence": nats} for id, nats in influence.items()],
                "influence_noise": turns[0]["influence_noise"],
            }
        )
        return {
            "mode": self._mode,
            "retrieved": recalled.retrieved,
            "evidence": recalled.evidence,
            "injected": turns[0]["injected"],
            "prefix_tokens": turns[0]["prefix_tokens"],
            "fallback": next(filter(None, fallbacks), None),
            **measured,
        }

    def _usage(self) -> Json:
        """`prompt_tokens` counts the tokens processed of each prompt, once for all its choices; the injected prefix
        slots are the cached ones, beside them."""
        once = self.turns[:: self.body.n]
        prompt, cached = (sum(turn[name] for turn in once) for name in ("prompt_tokens", "prefix_tokens"))
        answer = sum(turn["completion_tokens"] for turn in self.turns)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


class ChoicesReply(Reply):
    """All choices of one response; every part of it has the same id, time and model."""

    object: str
    chunk_object: str
    id_prefix: str

    def __init__(self, body: GenerateBody, mode: str, recalled: Sequence[Recalled]) -> None:
        super().__init__(body, mode, recalled)
        self._id = f"{self.id_prefix}-{uuid.uuid4().hex}"

    def whole(self, pieces: Iterable[Piece]) -> Json:
        texts: dict[int, str] = {}
        for i, piece in pieces:
            if "text" in piece:
                texts[i] = texts.get(i, "") + piece["text"]
            else:
                self._turns[i] = piece
        choices = [self._choice(i, texts.get(i, ""), turn) for i, turn in sorted(self._turns.items())]
        return {**self._common(self.object), "choices": choices, **self._outcome(), "usage": self._usage()}

    def event(self, i: int, piece: Json) -> str:
        """The chunks for one piece; the last chunk of the stream has what applies to all choices."""
        if "text" in piece:
            return self._chunk(self._growth(i, piece))
        self._turns[i] = piece
        text = self._chunk(self._end(i, piece), **(self._outcome() if self.done else {}))
        if self.done and self._tells_usage:
            usage = {**self._common(self.chunk_object), "choices": [], "usage": self._usage()}
            text += _sent(usage)
        return text

    @abstractmethod
    def _choice(self, i: int, text: str, turn: Json) -> Json:
        """A whole choice."""

    @abstractmethod
    def _growth(self, i: int, piece: Json) -> Json:
        """The choice of a chunk that carries more text."""

    @abstractmethod
    def _end(self, i: int, turn: Json) -> Json:
        """The choice of the chunk that ends it."""

    @property
    def _tells_usage(self) -> bool:
        return bool(self.body.stream_options and self.body.stream_options.include_usage)

    def _chunk(self, choice: Json, **more: Any) -> str:
        usage = {"usage": None} if self._tells_usage else {}
        return _sent({**self._common(self.chunk_object), "choices": [choice], **more, **usage})

    def _common(self, kind: str) -> Json:
        return {"id": self._id, "object": kind, "created": self._created, "model": self.body.model}


class ChatReply(ChoicesReply):
    object, chunk_object, id_prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"
    body: ChatBody

    def __init__(self, body: ChatBody, mode: str, recalled: Sequence[Recalled]) -> None:
        super().__init__(body, mode, recalled)
        self._opened: set[int] = set()
        self._readers: dict[int, CallReader] = {}  # of choices that may call tools
        self._calls = bool(body.shown_tools)

    def event(self, i: int, piece: Json) -> str:
        opening = ""
        if i not in self._opened:
            self._opened.add(i)
            content = None if self._calls else ""
            opening = self._chunk(self._delta(i, {"role": "assistant", "content": content}))
        if not self._calls:
            return opening + super().event(i, piece)
        reader = self._readers.setdefault(i, CallReader(self.body.bare_tools))
        deltas = reader.push(piece["text"]) if "text" in piece else reader.finish()
        told = self._logprobs(piece["logprobs"]) if "text" in piece else None
        if told and not deltas:
            deltas = [{}]
        for place, delta in enumerate(deltas):
            opening += self._chunk(self._delta(i, delta, logprobs=None if place else told))
        return opening if "text" in piece else opening + super().event(i, piece)

    def _choice(self, i: int, text: str, turn: Json) -> Json:
        message = {"content": text}
        if self._calls:
            reader = self._readers[i] = CallReader(self.body.bare_tools)
            reader.push(text)
            reader.finish()
            message = reader.message()
        return {
            "index": i,
            "message": {"role": "assistant", **message},
            "finish_reason": self._reason(i, turn),
            "logprobs": self._logprobs(turn["logprobs"]),
        }

    def _growth(self, i: int, piece: Json) -> Json:
        return self._delta(i, {"content": piece["text"]}, logprobs=self._logprobs(piece["logprobs"]))

    def _end(self, i: int, turn: Json) -> Json:
        return self._delta(i, {}, finish_reason=self._reason(i, turn))

    def _reason(self, i: int, turn: Json) -> str:
        called = i in self._readers and self._readers[i].calls
        return "tool_calls" if called and turn["finish_reason"] == "stop" else str(turn["finish_reason"])

    def _delta(self, i: int, delta: Json, **more: Any) -> Json:
        return {"index": i, "delta": delta, "finish_reason": None, "logprobs": None, **more}

    def _logprobs(self, entries: list[Json]) -> Json | None:
        return {"content": entries, "refusal": None} if self.body.logprobs else None


class TextReply(ChoicesReply):
    object, chunk_object, id_prefix = "text_completion", "text_completion", "cmpl"
    body: CompletionBody

    def __init__(self, body: CompletionBody, mode: str, recalled: Sequence[Recalled]) -> None:
        super().__init__(body, mode, recalled)
        self._offsets: dict[int, int] = {}  # where a choice's next token begins, in characters
        self._read: dict[int, IncrementalDecoder] = {}

    def _choice(self, i: int, text: str, turn: Json) -> Json:
        return self._text(i, text, turn["logprobs"], turn["finish_reason"])

    def _growth(self, i: int, piece: Json) -> Json:
        return self._text(i, piece["text"], piece["logprobs"])

    def _end(self, i: int, turn: Json) -> Json:
        return self._text(i, "", None, turn["finish_reason"])

    def _text(self, i: int, text: str, entries: list[Json] | None, reason: str | None = None) -> Json:
        return {"index": i, "text": text, "finish_reason": reason, "logprobs": self._logprobs(i, entries)}

    def _logprobs(self, i: int, entries: list[Json] | None) -> Json | None:
        """The format of completions: one list for each field, not one entry for each token."""
        if self.body.logprobs is None or entries is None:
            return None
        read = self._read.setdefault(i, getincrementaldecoder("utf-8")("replace"))
        offsets = []
        for entry in entries:
            offsets.append(self._offsets.get(i, 0))
            self._offsets[i] = offsets[-1] + len(read.decode(bytes(entry["bytes"])))
        return {
            "tokens": [_token(entry) for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": [_best(entry) for entry in entries],
            "text_offset": offsets,
        }


def _token(entry: Json) -> str:
    """A token as completions write it: one that is no whole character by its bytes."""
    text = bytes(entry["bytes"])
    try:
        return text.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in text)


def _best(entry: Json) -> dict[str, float] | None:
    """The likeliest tokens, and the chosen one where it is none of them."""
    if entry["logprob"] is None:
        return None
    best: dict[str, float] = {}
    for other in (*entry["top_logprobs"], entry):
        best.setdefault(_token(other), other["logprob"])
    return best


def _sent(data: Json) -> str:
    return f"data: {json.dumps(data)}\n\n"


def model_entry(name: str, task: str) -> Json:
    """`task`: chat or embedding."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "sharpwave", "task": task}
