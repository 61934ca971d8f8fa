"""Response models of the OpenAI and adapter routes and of errors, for `/openapi.json`. Chat, completions and errors
build their answers themselves; `tests/system/test_openapi.py` checks them against these models."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from common.types import Mode

Finish = Literal["stop", "length", "tool_calls"]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    error: ErrorDetail


class Retrieved(BaseModel):
    id: str
    score: float


class Influence(BaseModel):
    id: str
    divergence: float = Field(
        description="nats: log-probability of the answer with all injected memories minus without this one"
    )


class MemoryTold(BaseModel):
    """`evidence`: whether what was retrieved looks like an answer, null where nothing was searched; `injected`: what
    reached the model, as text or as `prefix_tokens` of states; `fallback`: what went otherwise than asked. `influence`
    and its `influence_noise` where it was measured (`attribute`)."""

    mode: Mode
    retrieved: list[Retrieved]
    evidence: Literal["strong", "weak", "none"] | None
    injected: list[str]
    prefix_tokens: int
    fallback: str | None
    influence: list[Influence] = []
    influence_noise: float = Field(
        0.0, description="nats that the computation alone made at most of an answer with nothing left out"
    )


class Timings(BaseModel):
    retrieve_ms: float
    prefill_ms: float
    generate_ms: float
    attribute_ms: float = Field(
        0.0, description="from the answer's last token to its influence, where measured"
    )


class CachedTokens(BaseModel):
    cached_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class TokenLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class ChosenLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    content: list[ChosenLogprob]
    refusal: None = None


class CalledFunction(BaseModel):
    name: str
    arguments: str = Field(description="JSON; of an answer that max_tokens cut, its beginning")


class ToolCall(BaseModel):
    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(BaseModel):
    """`content` is null where there are calls and no text."""

    role: Literal["assistant"]
    content: str | None
    tool_calls: list[ToolCall] = []


class ChatChoice(BaseModel):
    index: int
    message: ChatMessage
    finish_reason: Finish
    logprobs: ChatLogprobs | None


class Answered(BaseModel):
    id: str
    created: int
    model: str
    timings: Timings
    usage: Usage
    warnings: list[str] = Field(default=[], description="parameters without effect")


class ChatAnswer(Answered):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    memory: MemoryTold


class ResponsesUsage(BaseModel):
    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class ResponsesAnswer(BaseModel):
    """OpenAI's response object; `output` has messages and calls of functions."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete", "in_progress"]
    model: str
    output: list[dict[str, Any]]
    previous_response_id: str | None
    store: bool
    usage: ResponsesUsage | None
    memory: MemoryTold
    timings: Timings
    warnings: list[str] = Field(default=[], description="parameters without effect")


class TextLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None] = Field(
        description="null for a first token, which nothing comes before"
    )
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(BaseModel):
    index: int
    text: str
    finish_reason: Finish
    logprobs: TextLogprobs | None


class CompletionAnswer(Answered):
    """`memory` is a list, one entry a prompt, where several were given."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
    memory: MemoryTold | list[MemoryTold]


class Embedding(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="base64: little-endian float32")


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage
    warnings: list[str] = []


class ModelEntry(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    task: Literal["chat", "embedding"]


class ModelsAnswer(BaseModel):
    object: Literal["list"]
    data: list[ModelEntry]


class Score(BaseModel):
    total_logprob: float
    num_tokens: int
    entry_index: int


class ScoresAnswer(BaseModel):
    scores: list[Score]
    warnings: list[str] = []


class AdapterEntry(BaseModel):
    """A version with what its training wrote down."""

    digest: str
    model: str = Field(description="its name in requests")
    aliases: list[str]
    manifest: dict[str, Any]


class AdaptersAnswer(BaseModel):
    adapters: list[AdapterEntry]


class RetiredAnswer(BaseModel):
    digest: str
    kv_blocks: int = Field(description="files removed that only this version could use")


STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "What was sent cannot be done; the message says why"},
    "5XX": {"model": ErrorAnswer, "description": "A part is not ready, or failed"},
}
