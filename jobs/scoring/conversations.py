"""Conversations whose responses are scored: read from a file, or made from the cues of the memories."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import InvalidInput
from models.text.messages import check_messages
from train.generation.chat import SHORTEST_SPAN


@dataclass(frozen=True)
class Conversation:
    """`messages` with at least one assistant turn; `memory`: the id of the memory it came from, where known."""

    messages: tuple[dict[str, Any], ...]
    memory: str | None = None


def read(path: Path) -> list[Conversation]:
    """`{"messages": [...], "memory": "id, optional"}`, one a line or the whole file.

    Raises `InvalidInput` naming the first bad line; none is skipped.
    """
    text = path.read_text()
    try:
        lines = [(1, json.loads(text))]
    except json.JSONDecodeError:
        lines = [(n, _decode(path, n, line)) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise InvalidInput(f"{path} is empty; give one conversation a line", param="conversation")
    return [_conversation(path, n, value) for n, value in lines]


def from_cues(memories: Sequence[dict[str, Any]], family: str = "train") -> list[Conversation]:
    """One conversation for each memory that has a cue of the wording family: its first question and answer."""
    found = []
    for memory in memories:
        cue = next((cue for cue in memory["cues"] if cue["family"] == family), None)
        if cue is not None:
            found.append(Conversation(question(cue["question"], cue["answer"]), memory["id"]))
    return found


def question(text: str, answer: str) -> tuple[dict[str, Any], ...]:
    return (
        {"role": "system", "content": SHORTEST_SPAN},
        {"role": "user", "content": text},
        {"role": "assistant", "content": answer},
    )


def _decode(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidInput(f"{path}:{number}: not JSON: {error.msg}", param="conversation") from error


def _conversation(path: Path, number: int, value: Any) -> Conversation:
    if not isinstance(value, dict) or not isinstance(value.get("messages"), list):
        raise InvalidInput(f'{path}:{number}: expected {{"messages": [...]}}', param="conversation")
    try:
        messages = check_messages(value["messages"])
    except InvalidInput as error:
        raise InvalidInput(f"{path}:{number}: {error.message}", param="conversation") from error
    if not any(message["role"] == "assistant" and message["content"] for message in messages):
        raise InvalidInput(f"{path}:{number}: no assistant message to score", param="conversation")
    memory = value.get("memory")
    if memory is not None and not isinstance(memory, str):
        raise InvalidInput(f"{path}:{number}: memory = {memory!r} must be an id", param="conversation")
    return Conversation(tuple(messages), memory)
