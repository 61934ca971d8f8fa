"""Bodies of mem0's interface. What changes no answer here is taken and ignored; the rest is refused."""

from typing import Any

from pydantic import Field

from serve.schemas.requests import Body
from serve.schemas.times import Time

MAX_PAGE = 1000


class Entities(Body):
    """Whose memories: at least one of these, here or in `filters`."""

    user_id: str | None = None
    agent_id: str | None = None
    app_id: str | None = None
    run_id: str | None = None
    filters: dict[str, Any] | None = None

    async_mode: Any = None
    output_format: Any = None
    version: Any = None
    org_id: Any = None
    project_id: Any = None


class AddBody(Entities):
    messages: list[dict[str, Any]] = Field(min_length=1, max_length=10_000)
    metadata: dict[str, Any] | None = None
    infer: bool | None = None
    timestamp: Time | None = None
    custom_instructions: str | None = None
    custom_categories: Any = None
    agent_custom_instructions: Any = None


class FindBody(Entities):
    page: int = Field(1, ge=1)
    page_size: int = Field(100, ge=1, le=MAX_PAGE)
    latest_only: Any = None  # always
    show_expired: Any = None
    start_date: Time | None = None
    end_date: Time | None = None


class SearchBody(Entities):
    query: str = Field(min_length=1)
    top_k: int = Field(10, ge=1, le=MAX_PAGE)
    threshold: float | None = None
    reference_date: Time | None = None
    rerank: Any = None  # recall.reranker says it
    keyword_search: Any = None  # always
    latest_only: Any = None
    show_expired: Any = None


class ChangeBody(Body):
    text: str | None = Field(None, min_length=1)
    metadata: dict[str, Any] | None = None
    timestamp: Time | None = None


class BatchItem(ChangeBody):
    memory_id: str


class BatchBody(Body):
    memories: list[BatchItem] = Field(min_length=1, max_length=MAX_PAGE)
