"""Relevance of a text to a query, scored by a cross-encoder."""

import threading
from collections.abc import Sequence

from common.errors import NotFound
from models.text.embed import BATCH, locate


class Reranker:
    """`name` is a sentence-transformers cross-encoder's id, or a folder. Raises `NotFound` where it cannot be
    loaded, or judges by more than one number."""

    def __init__(self, name: str) -> None:
        from sentence_transformers import CrossEncoder  # slow to import; only those who rerank pay

        try:
            self._model = CrossEncoder(locate(name))
        except OSError as error:
            raise NotFound(f"reranker {name!r} cannot be loaded: {error}", param="recall.reranker") from error
        if self._model.num_labels != 1:
            raise NotFound(
                f"reranker {name!r} gives {self._model.num_labels} numbers a text; give a cross-encoder with one",
                param="recall.reranker",
            )
        self._one_at_a_time = threading.Lock()

    def scores(self, texts: Sequence[str], query: str) -> list[float]:
        """One number for each text, higher is better; comparable within one call only."""
        if not texts:
            return []
        with self._one_at_a_time:
            found = self._model.predict(
                [(query, text) for text in texts], batch_size=BATCH, show_progress_bar=False
            )
        return [float(score) for score in found]
