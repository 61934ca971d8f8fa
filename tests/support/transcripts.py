"""Transcripts made from turns."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stores.view.conversations import ROLES


def format_transcript(turns: Sequence[Mapping[str, Any]]) -> str:
    """The inverse of `stores.view.conversations.parse_transcript`."""
    return "\n".join(_lines(turns))


def _lines(turns: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for turn in turns:
        first, *others = turn["text"].split("\n")
        yield f"{turn['role']}: {first}"
        for line in others:
            begins = line.partition(":")[0].strip().lower() in ROLES
            yield f"\\{line}" if begins or line.startswith("\\") else line
