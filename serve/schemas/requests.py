"""Request bodies, field by field. Unknown fields are refused, except OpenAI's own on OpenAI routes."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from common.errors import InvalidInput
from common.names import MAX_NAME, check_name, normal
from common.types import MODES, Mode
from models.text.grammar import Grammar
from models.text.messages import ROLES, TokenText, check_messages, check_text
from models.text.messages import Messages as PromptMessages
from serve.schemas.times import Time
from serve.schemas.tools import (
    LogitBias,
    ResponseFormat,
    ToolChoice,
    Tools,
    answer_schema,
    check_honoured,
    chosen_tools,
    grammar_of,
    is_harmless,
)

Kind = Literal["episodic", "relational", "spatial"]
Filter = dict[str, Any]
MAX_CHOICES = 128
MAX_STOPS = 4
MAX_TEXTS = 2048
SEEDS = 1 << 63
Namespace = Annotated[  # any text that `check_name` lets through, in its normal form
    str,
    AfterValidator(partial(check_name, name="namespace")),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": MAX_NAME}),
]
MemoryId = Annotated[str, AfterValidator(normal)]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
_MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"enum": [*ROLES]},
        "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}, {"type": "null"}]},
        "tool_calls": {"type": "array", "items": {"type": "object"}},
        "tool_call_id": {"type": "string"},
    },
    "required": ["role"],
}
Messages = Annotated[  # `check_messages` says which message is wrong, and what of it
    list[dict[str, Any]], WithJsonSchema({"type": "array", "items": _MESSAGE, "minItems": 1})
]
Text = Annotated[str, Field(min_length=1)]
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
TextsOrIds = Annotated[  # `texts_or_ids` says which one is wrong
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
                _IDS,
                {"type": "array", "items": _IDS, "minItems": 1},
            ]
        }
    ),
]
Stops = Annotated[
    list[str],
    BeforeValidator(_listed, json_schema_input_type=str | Annotated[list[str], Field(max_length=MAX_STOPS)]),
    Field(max_length=MAX_STOPS),
]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class WriteBody(Body):
    namespace: Namespace | None = None
    memories: list[dict[str, Any]] | None = Field(None, min_length=1, max_length=10_000)
    messages: list[dict[str, Any]] | None = Field(
        None, min_length=1, max_length=10_000, description="a conversation, in place of memories"
    )
    conversation: str | None = Field(None, description="its name; absent: made of its messages")
    time: Time | None = Field(None, description="of its first message; a message may have its own")
    context: dict[str, Any] | None = Field(None, description="of each memory that it gives")
    infer: bool = Field(False, description="store what the served model finds stated in it, not its messages")
    partial: bool = False


class SearchBody(Body):
    namespace: Namespace | None = None
    query: str = Field(min_length=1)
    k: int = Field(10, ge=1, le=1000)
    kinds: list[Kind] | None = None
    filter: Filter | None = None
    retrieval: Literal["full", "flat"] = "full"
    offset: int | None = Field(None, ge=0)
    trace: bool = False
    complete: bool = False
    at: Time | None = Field(None, description="facts that hold then; without it now, or when the query says")
    history: bool = Field(False, description="facts of any time, ended ones last")


class ForgetBody(Body):
    namespace: Namespace | None = None
    ids: list[MemoryId] | None = Field(None, min_length=1)
    filter: Filter | None = None
    all: bool = False


def _without_default(schema: dict[str, Any]) -> None:
    del schema["default"]


class MemoryField(Body):
    """The `memory` field of a chat request; what is absent `Parts.remembering` fills in."""

    namespace: Namespace = Field("", json_schema_extra=_without_default)
    mode: Mode | None = None
    k: int | None = Field(None, ge=1, le=1000)
    kinds: list[Kind] | None = None
    filter: Filter | None = None
    retrieval: Literal["full", "flat"] = "full"
    at: Time | None = Field(
        None, description="facts that hold then; without it now, or when the question says"
    )
    attribute: bool | None = Field(
        None,
        description="tell what each injected memory did to the answer; absent: for recall.attribute_share of answers",
    )


class StreamOptions(BaseModel):
    include_usage: bool = False


class OpenAIBody(BaseModel):
    """Accepts OpenAI's whole request: what it does not act on is listed in the response's `warnings`, unless it changes
    nothing. Null means what an absent parameter means."""

    model_config = ConfigDict(extra="allow")

    model: str = "base"

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        return {k: v for k, v in values.items() if v is not None} if isinstance(values, dict) else values

    def warnings(self) -> list[str]:
        return [
            f"parameter {name!r} is accepted and has no effect"
            for name, value in sorted((self.model_extra or {}).items())
            if not is_harmless(name, value)
        ]


class GenerateBody(OpenAIBody, ABC):
    """What chat and completions have in common."""

    memory: MemoryField = MemoryField()
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0.0, le=2.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    seed: int | None = Field(None, ge=0, lt=SEEDS)
    stop: Stops = []
    presence_penalty: float = Field(0.0, ge=-2.0, le=2.0)
    frequency_penalty: float = Field(0.0, ge=-2.0, le=2.0)
    logit_bias: LogitBias = {}
    min_tokens: int = Field(0, ge=0, description="no end token and no stop string before so many tokens")
    ignore_eos: bool = Field(False, description="the answer ends at max_tokens or a stop string only")
    response_format: ResponseFormat = None
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    @abstractmethod
    def prompts(self) -> Sequence[PromptMessages]:
        """Each is answered `n` times."""

    @property
    @abstractmethod
    def told_logprobs(self) -> int | None:
        """How many tokens to tell beside each chosen one; None: no log-probability at all."""

    @property
    def limit(self) -> int | None:
        """Tokens of an answer, where the request says it."""
        return self.max_tokens

    @property
    def grammar(self) -> Grammar | None:
        """What the answer may be. Raises `InvalidInput` for a schema that cannot be kept to."""
        schema = answer_schema(self.response_format)
        return grammar_of([], must_call=False, several=False, schema=schema)

    @property
    def shown_tools(self) -> list[dict[str, Any]]:
        """Those that the model is told of."""
        return []

    def sampling(self, max_new_tokens: int) -> list[dict[str, Any]]:
        """`models.sampling.Sampling` of each choice of a prompt: they differ by their seed. Raises `InvalidInput` for
        what cannot be honoured."""
        check_honoured(self.model_extra or {})
        limit, grammar = max_new_tokens if self.limit is None else self.limit, self.grammar
        if self.min_tokens > limit:
            raise InvalidInput(
                f"min_tokens = {self.min_tokens} is more than max_tokens = {limit}", param="min_tokens"
            )
        if self.ignore_eos and grammar is not None:
            raise InvalidInput(
                "ignore_eos: not together with tools or response_format, whose answers have an end",
                param="ignore_eos",
            )
        shared = {
            "max_tokens": limit,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stop": self.stop,
            "logprobs": self.told_logprobs,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "logit_bias": self.logit_bias,
            "min_tokens": self.min_tokens,
            "ignore_eos": self.ignore_eos,
            "grammar": grammar,
        }
        seeds = [None if self.seed is None else (self.seed + i) % SEEDS for i in range(self.n)]
        return [{**shared, "seed": seed} for seed in seeds]


class ChatBody(GenerateBody):
    messages: Messages
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: Tools = []
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool = True

    @property
    def grammar(self) -> Grammar | None:
        """What the answer may be: text or JSON, or calls of tools. Raises `InvalidInput`."""
        tools, must_call = chosen_tools(self.tools, self.tool_choice)
        schema = answer_schema(self.response_format)
        return grammar_of(tools, must_call=must_call, several=self.parallel_tool_calls, schema=schema)

    @property
    def shown_tools(self) -> list[dict[str, Any]]:
        return [tool.shown() for tool in chosen_tools(self.tools, self.tool_choice)[0]]

    @property
    def bare_tools(self) -> list[dict[str, Any]]:
        """Those of which a call needs no mark: none where JSON is an answer too."""
        return [] if answer_schema(self.response_format) else self.shown_tools

    @property
    def prompts(self) -> Sequence[PromptMessages]:
        """Raises `InvalidInput` naming the first bad message."""
        return [check_messages(self.messages)]

    @property
    def told_logprobs(self) -> int | None:
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidInput(
                f"top_logprobs = {self.top_logprobs}: only together with logprobs = true",
                param="top_logprobs",
            )
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionBody(GenerateBody):
    prompt: TextsOrIds = Field(
        description="texts to continue, one or several, or token ids of the served model"
    )
    max_tokens: int | None = Field(None, ge=0, description="0: the prompt alone, for its log-probabilities")
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool = False
    best_of: int | None = Field(None, ge=1, description="must equal `n`")
    suffix: str | None = Field(None, max_length=0, description="not supported")

    @property
    def prompts(self) -> Sequence[PromptMessages]:
        """Raises `InvalidInput` for a text that no model takes, and for what is neither text nor token ids."""
        return texts_or_ids(self.prompt, "prompt")

    def sampling(self, max_new_tokens: int) -> list[dict[str, Any]]:
        """As chat's; the token that ends a text is reported, since clients take the last one for the answer's."""
        if self.best_of not in (None, self.n):
            raise InvalidInput(
                f"best_of = {self.best_of}: answers are not chosen among more than n = {self.n}",
                param="best_of",
            )
        shared = {"echo": self.echo, "end_logprob": True}
        return [{**each, **shared} for each in super().sampling(max_new_tokens)]

    @property
    def told_logprobs(self) -> int | None:
        return self.logprobs


class EmbeddingsBody(OpenAIBody):
    model: str = ""
    input: TextsOrIds
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)

    @property
    def texts(self) -> list[str | TokenText]:
        """Raises `InvalidInput` for what is neither text nor token ids."""
        return texts_or_ids(self.input, "input")


class ScoreBody(OpenAIBody):
    messages: Messages
    logprobs: int = 1


def texts_or_ids(given: Any, name: str) -> list[str | TokenText]:
    """One text, several, the token ids of one, or of several."""
    one = isinstance(given, str) or (isinstance(given, list) and given and all(map(_is_id, given)))
    several = [given] if one else given
    if not isinstance(several, list) or not 0 < len(several) <= MAX_TEXTS:
        raise InvalidInput(f"{name}: a text, token ids, or a list of 1 to {MAX_TEXTS} of either", param=name)
    return [_text_or_ids(each, f"{name}[{i}]") for i, each in enumerate(several)]


def _text_or_ids(given: Any, name: str) -> str | TokenText:
    if isinstance(given, str) and given:
        return check_text(given, name)
    if isinstance(given, list) and given and all(map(_is_id, given)):
        return TokenText(tuple(given))
    raise InvalidInput(
        f"{name} = {str(given)[:40]!r}: a text or token ids, not empty", param=name.partition("[")[0]
    )


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


class AliasBody(Body):
    """The alias that comes to name the version."""

    alias: str = Field(min_length=1, max_length=64, pattern=r"^[a-z][a-z0-9_\-]*$")

    @field_validator("alias")
    @classmethod
    def _is_free(cls, alias: str) -> str:
        if alias in MODES:
            raise ValueError(f"must be none of {', '.join(MODES)}, which mean memory modes in a model's name")
        return alias
