"""Request bodies, field by field. Unknown fields are refused, except OpenAI's own on OpenAI routes."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Mode = Literal["full", "text", "prefix", "hybrid", "off"]
Kind = Literal["episodic", "relational", "spatial"]
Filter = dict[str, Any]
Namespace = Field("default", min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._:\-]+$")


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class WriteBody(Body):
    namespace: str = Namespace
    memories: list[dict[str, Any]] = Field(min_length=1, max_length=10_000)
    partial: bool = False


class SearchBody(Body):
    namespace: str = Namespace
    query: str = Field(min_length=1)
    k: int = Field(10, ge=1, le=1000)
    kinds: list[Kind] | None = None
    filter: Filter | None = None
    retrieval: Literal["full", "flat"] = "full"
    offset: int | None = Field(None, ge=0)
    trace: bool = False
    complete: bool = False


class ForgetBody(Body):
    namespace: str = Namespace
    ids: list[str] | None = Field(None, min_length=1)
    filter: Filter | None = None
    all: bool = False


class MemoryField(Body):
    """The `memory` field of a chat request; what is absent comes from the configuration."""

    namespace: str = Namespace
    mode: Mode | None = None
    k: int | None = Field(None, ge=1, le=1000)
    kinds: list[Kind] | None = None
    filter: Filter | None = None
    retrieval: Literal["full", "flat"] = "full"


class StreamOptions(BaseModel):
    include_usage: bool = False


class OpenAIBody(BaseModel):
    """Accepts OpenAI's whole request: what it does not act on is listed in the response's `warnings`."""

    model_config = ConfigDict(extra="allow")

    model: str = "base"
    messages: list[dict[str, Any]]

    def warnings(self) -> list[str]:
        return [
            f"parameter {name!r} is accepted and has no effect" for name in sorted(self.model_extra or {})
        ]


class ChatBody(OpenAIBody):
    memory: MemoryField = MemoryField()
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0.0, le=2.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    seed: int | None = Field(None, ge=0, lt=1 << 63)
    stop: str | list[str] | None = None
    n: Literal[1] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])


class ScoreBody(OpenAIBody):
    logprobs: int = 1
