"""What an answer can rest on: do the recalled memories look like an answer to the question?

    none     the best cosine is below FAINT, or below NEAR while no memory has much of the question's words
    strong   the best cosine is at least SURE, or a memory has nearly all of the question's words
    weak     else

The constants are for all-MiniLM-L6-v2 (of another embedder set `recall.evidence_near`). They were chosen
on generated episodes (`benchmarks/episode_sets.py`, seeds 1 and 2, 660 questions): of questions whose answer is there
.03 came out as `none`, of those about what was never told .71, on real conversations (LoCoMo) .13 of the answerable.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from common.types import Json
from stores.index.bm25 import query_words
from stores.index.terms import terms, text_of

Evidence = Literal["strong", "weak", "none"]
FAINT, NEAR, SURE = 0.45, 0.68, 0.75
SOME, MOST = 0.4, 0.8  # of the question's words, weighed by how rare they are


def evidence(results: Sequence[Json], near: float = NEAR) -> Evidence:
    """Of the results of a `full` search, most relevant first. A memory that lost what it was derived from counts for
    nothing."""
    scores = [result["scores"] for result in results if not result["memory"].get("unsupported")]
    cosine = max((score["dense"] for score in scores), default=-1.0)
    words = max((score.get("covered", 0.0) for score in scores), default=0.0)
    if cosine < FAINT or (cosine < near and words < SOME):
        return "none"
    return "strong" if cosine >= SURE or words >= MOST else "weak"


def about(results: Sequence[Json], question: str) -> list[Json]:
    """For a question that no result answers: those that have the word of the question that most of them have, which is
    whom or what it is about; all if none has any. The others only say the same of somebody else, which small models
    then repeat as the answer (docs/log.md)."""
    words = {*query_words(question)}
    shared = [words & {*terms(text_of(result["memory"]))} for result in results]
    counts = Counter(word for found in shared for word in found)
    subject = {word for word, count in counts.items() if count == max(counts.values())}
    return [result for result, found in zip(results, shared, strict=True) if found & subject or not subject]
