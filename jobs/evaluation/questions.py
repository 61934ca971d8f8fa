"""The questions of an evaluation: cues of the memories whose wording was never trained on."""

from collections.abc import Sequence
from typing import Any

from common.errors import InvalidInput

TRAIN, AUDIT, TEST = "train", "audit", "test"  # wording families


def questions_of(memories: Sequence[dict[str, Any]], namespace: str) -> list[dict[str, Any]]:
    """`{question, answer, family, memory}` of each cue in the families `AUDIT` and `TEST`, which training never sees.

    Raises `InvalidInput` if a family has none: an adapter that cannot be evaluated is not trained.
    """
    found = [
        {
            "question": cue["question"],
            "answer": cue["answer"],
            "family": cue["family"],
            "memory": memory["id"],
        }
        for memory in memories
        for cue in memory["cues"]
        if cue["family"] in (AUDIT, TEST)
    ]
    for family in (AUDIT, TEST):
        if not any(question["family"] == family for question in found):
            raise InvalidInput(
                f"the memories of namespace {namespace!r} bring no questions of family {family!r}, so what was learnt "
                'could not be examined; write them with cues such as {"question", "answer", "family": "'
                + family
                + '"}',
                param="namespace",
            )
    return found


def direct_questions(memories: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first plain question (family `TRAIN`) of each memory: what a model with memory on is asked beside the others,
    whose wording is indirect so that training cannot have seen it."""
    found = []
    for memory in memories:
        cue = next((cue for cue in memory["cues"] if cue["family"] == TRAIN), None)
        if cue is not None:
            found.append({**cue, "memory": memory["id"]})
    return found


def one_a_memory(questions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first test question of each memory, for the arm with memory on, which is slower: it uses the serving path."""
    first: dict[str, dict[str, Any]] = {}
    for question in questions:
        if question["family"] == TEST:
            first.setdefault(question["memory"], question)
    return list(first.values())
