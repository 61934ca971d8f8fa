"""Our own shape: one experience an object, as in POST /v1/memories."""

from collections.abc import Iterator, Mapping
from typing import Any

from common.types import Json
from stores.imports.chat import Skipped

_MARKS = ("text", "kind", "subject", "place")


def fits(document: Any) -> bool:
    return isinstance(document, Mapping) and any(mark in document for mark in _MARKS)


def read(document: Any) -> Iterator[Json | Skipped]:
    yield document
