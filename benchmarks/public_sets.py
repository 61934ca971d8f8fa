"""Readers of the public sets: letta_core_memory (letta-ai/letta-evals, Apache-2.0) and LoCoMo (CC BY-NC 4.0)."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class LettaRow:
    """One question about a set of ten facts; `supporting`: places of those that answer it, where they are known."""

    question: str
    answer: str
    facts: tuple[str, ...]
    supporting: tuple[int, ...]


@dataclass(frozen=True)
class Turn:
    """Of a LoCoMo conversation; a picture stands as its caption. `held`: when its session was."""

    id: str
    speaker: str
    text: str
    held: datetime


def letta_rows(folder: Path) -> Iterator[LettaRow]:
    """The rows of core_memory_read.jsonl, with what core_memory_update.jsonl says of the same questions."""
    supporting: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for row in _rows(folder / "core_memory_update.jsonl"):
        extra = row["agent_args"]["extra"]
        supporting[row["input"], tuple(extra["facts"])] = extra["supporting_fact_indices"]
    for row in _rows(folder / "core_memory_read.jsonl"):
        facts = tuple(row["agent_args"]["extra"]["facts"])
        yield LettaRow(
            row["input"], row["ground_truth"], facts, tuple(supporting.get((row["input"], facts), ()))
        )


def locomo_turns(conversation: Mapping[str, Any]) -> Iterator[Turn]:
    for name, turns in conversation.items():
        if re.fullmatch(r"session_\d+", name):
            held = datetime.strptime(conversation[f"{name}_date_time"], "%I:%M %p on %d %B, %Y")
            for turn in turns:
                shown = f" [picture: {turn['blip_caption']}]" if turn.get("blip_caption") else ""
                yield Turn(turn["dia_id"], turn["speaker"], turn["text"] + shown, held)


def named_turns(evidence: list[str]) -> list[str]:
    """Ids of the turns that a question's evidence names."""
    return re.findall(r"D\d+:\d+", " ".join(evidence))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open() as file:
        yield from map(json.loads, file)
