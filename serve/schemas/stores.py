"""Request bodies of the stores' own routes, field by field; unknown fields are refused."""

from typing import Annotated, Any, Literal

from pydantic import Field

from serve.schemas.requests import Body, Namespace
from serve.schemas.times import Time, UncheckedTime
from stores.view.conversations import Role
from stores.view.keyed import MAX_KEY

MAX_CANDIDATES = 256
MAX_TURNS = 10_000
MAX_PATTERNS = 8
Name = Annotated[str, Field(min_length=1, max_length=512)]
Context = dict[str, Any]
Number = Annotated[float, Field(allow_inf_nan=False)]
Vector = Annotated[list[Number], Field(min_length=1, max_length=65_536)]
Key = Annotated[str, Field(min_length=1, max_length=MAX_KEY)]
K = Annotated[int, Field(ge=1, le=1000)]


class UpdateBody(Body):
    """What is given replaces what the memory said; `generation` is the one that the change goes out from, absent: the
    latest."""

    namespace: Namespace | None = None
    generation: int | None = Field(None, ge=0)
    text: str | None = None
    subject: str | None = None
    relation: str | None = None
    object: str | None = None
    confidence: float | None = None
    valid_from: Time | None = None
    valid_to: Time | None = None
    place: str | None = None
    other: str | None = None
    x: float | None = None
    y: float | None = None
    conversation: str | None = None
    time: Time | None = None
    context: Context | None = None
    cues: list[dict[str, Any]] | None = None
    reward: float | None = None
    pin: bool | None = None


class ExportBody(Body):
    namespace: Namespace | None = None
    format: Literal["jsonl", "parquet"] = "jsonl"
    vectors: bool = True
    conversation: Name | None = None


class FactsBody(Body):
    """A pattern (`subject`, `relation`, `object`), several joined by their variables `?x` (`patterns`), a question
    over several hops (`query`), or a path (`source`, `target`)."""

    namespace: Namespace | None = None
    subject: Name | None = None
    relation: Name | None = None
    object: Name | None = None
    patterns: list[tuple[Name, Name, Name]] | None = Field(None, min_length=1, max_length=MAX_PATTERNS)
    limit: int = Field(1000, ge=1, le=100_000)
    at: Time | None = None
    history: bool = False
    query: str | None = Field(None, min_length=1)
    k: K = 10
    source: Name | None = None
    target: Name | None = None


class PlacesBody(Body):
    """Which fields an `op` takes is in docs/api.md."""

    namespace: Namespace | None = None
    op: Literal["position", "nearest", "within", "relation", "path", "where", "macros"]
    place: Name | None = None
    other: Name | None = None
    x: Number | None = None
    y: Number | None = None
    radius: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | None = None
    k: K = 5
    at: Time | None = None


class LineBody(Body):
    namespace: Namespace | None = None
    key: Key
    value: str = Field(min_length=1)
    context: Context | None = None
    time: Time | None = None
    prev_anchor: str | None = Field(None, pattern=r"^[0-9a-f]{16}([0-9a-f]{48})?$")


class LinesQueryBody(Body):
    """Exactly one of `query` (text) and `vector` (unit norm, of the embedder's dimension)."""

    namespace: Namespace | None = None
    query: str | None = Field(None, min_length=1)
    vector: Vector | None = None
    k: K = 10


class CandidateBody(Body):
    value: str = Field(min_length=1)
    context: Context | None = None
    time: UncheckedTime = None


class RaceBody(Body):
    namespace: Namespace | None = None
    key: Key
    generation: int = Field(ge=0)
    candidates: list[CandidateBody] = Field(min_length=1, max_length=MAX_CANDIDATES)
    cue: str | None = Field(None, min_length=1)


class TurnBody(Body):
    role: Role
    text: str
    time: Time | None = None


class PushBody(Body):
    namespace: Namespace | None = None
    turns: list[TurnBody] = Field(min_length=1, max_length=MAX_TURNS)


class PopBody(Body):
    namespace: Namespace | None = None


class PeekBody(Body):
    namespace: Namespace | None = None
    n: int = Field(1, ge=0, le=MAX_TURNS)


class RewindBody(Body):
    namespace: Namespace | None = None
    n: int = Field(1, ge=0)


class NothingBody(Body):
    """Routes that take no fields."""


class RotateBody(Body):
    namespace: Namespace | None = None


class ProbeBody(Body):
    """What is looked for: `texts`, with `vectors` also their embeddings, with `fragment` also every piece of so
    many bytes."""

    texts: list[Annotated[str, Field(min_length=4, max_length=16_384)]] = Field(min_length=1, max_length=100)
    vectors: bool = False
    fragment: int | None = Field(None, ge=8)
