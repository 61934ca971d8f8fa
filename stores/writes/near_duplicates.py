"""Near duplicates of episodes: written once, counted afterwards.

Two episodes are near duplicates if the cosine of their embeddings is at least `store.dedupe_similarity` *and* their
texts are the same words in the same order: case, spacing, Unicode form and the punctuation around words are ignored,
question marks are not. No weaker rule is safe: one word more, less or elsewhere can reverse a meaning (left, right;
not; 3, 4), embeddings hardly show it, and a memory that is dropped is lost.

Conversation and context record where a memory comes from, and filters use them, so they must be equal. So must
anything that the duplicate would add: cues that the other lacks, a pin, a time of its own: a pill taken three times is
three events. Only a time that the writer did not give may differ. Facts and places have
their own rules of equality, so only episodes are compared here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from common.config import StoreConfig
from stores.memory.memory import Memory, plain_words

LOOKED_AT = 4  # nearest neighbours that may be the duplicate


def find(
    memory: Memory, neighbours: Sequence[tuple[float, Mapping[str, Any]]], config: StoreConfig
) -> int | None:
    """The index of the near duplicate among `(cosine, stored memory)` pairs, or None."""
    if not 0.0 < config.dedupe_similarity <= 1.0 or memory.kind != "episodic":
        return None
    for index, (cosine, stored) in enumerate(neighbours):
        if cosine >= config.dedupe_similarity - 1e-6 and alike(memory, stored):
            return index
    return None


def alike(memory: Memory, stored: Mapping[str, Any]) -> bool:
    """True if `memory` would add nothing to `stored` but one more telling."""
    cues = [{"question": cue.question, "answer": cue.answer, "family": cue.family} for cue in memory.cues]
    return (
        stored["kind"] == memory.kind == "episodic"
        and stored["namespace"] == memory.namespace
        and stored["conversation"] == memory.conversation
        and stored["context"] == memory.context
        and (not memory.timed or stored["time"] == memory.time)
        and stored["pin"] >= memory.pin
        and all(cue in stored["cues"] for cue in cues)
        and plain_words(stored["text"]) == plain_words(memory.text)
    )
