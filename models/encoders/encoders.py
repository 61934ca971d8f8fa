"""Encoders from a memory to key/value states: one interface, four implementations.

    kv_chunks     each memory alone after the head, one slot for each token (the default)
    kv_exact      each memory after the head and all earlier memories: the states of the text prompt itself
    kv_compact    kv_chunks, reduced to the slots that the model attends to when it repeats the memory
    soft_prompt   a few learned embeddings in place of the memory's tokens

`label` names the encoder and its parameters; it is part of the fingerprint. Blocks of a history stay at their encoded
positions; all other blocks are encoded directly after the head and are moved to where they are needed.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from common.config import RecallConfig
from models.encoders.soft_prompt import SoftPrompt, load_soft_prompt, soft_states
from models.kv import prefix as kv
from models.weights.load import LoadedModel
from models.weights.load_report import LoadReport

REPEAT = "\nThe same once more:\n"  # what stands between a memory and its repetition (kv_compact)


class Encoded(NamedTuple):
    """States `[layers, 2, kv_heads, slots, head_dim]` of a memory that occupies `width` positions."""

    states: Tensor
    width: int


class Encoder(Protocol):
    label: str
    history: bool
    report: LoadReport | None  # of a trained one: what became of its file

    def encode(self, model: Any, front: Tensor, blocks: Sequence[Sequence[int]]) -> list[Encoded]:
        """Encode memories, given as token ids, after `front`: the head, or for a history the states of all before."""


class Chunks:
    label = "kv_chunks-1"
    history = False
    report: LoadReport | None = None

    def encode(self, model: Any, front: Tensor, blocks: Sequence[Sequence[int]]) -> list[Encoded]:
        states = kv.encode_blocks(model, front, blocks)
        return [Encoded(state, len(block)) for state, block in zip(states, blocks, strict=True)]


class Exact:
    label = "kv_exact-1"
    history = True
    report: LoadReport | None = None

    def encode(self, model: Any, front: Tensor, blocks: Sequence[Sequence[int]]) -> list[Encoded]:
        states = kv.encode_behind(model, front, [token for block in blocks for token in block])
        parts = states.split([len(block) for block in blocks], dim=3)
        return [Encoded(part.contiguous(), len(block)) for part, block in zip(parts, blocks, strict=True)]


class Compact:
    history = False
    report: LoadReport | None = None

    def __init__(self, ratio: int, tokenizer: Any) -> None:
        self.label = f"kv_compact-1:{ratio}"
        self._ratio = ratio
        self._repeat = tokenizer.encode(REPEAT, add_special_tokens=False)

    def encode(self, model: Any, front: Tensor, blocks: Sequence[Sequence[int]]) -> list[Encoded]:
        from models.encoders.compact import compacted  # seconds of import, for this encoder alone

        states = compacted(model, front, blocks, self._repeat, self._ratio)
        return [Encoded(state, len(block)) for state, block in zip(states, blocks, strict=True)]


class Soft:
    history = False

    def __init__(self, module: SoftPrompt, report: LoadReport) -> None:
        self.label = f"soft_prompt-1:{report.digest}"
        self.report: LoadReport | None = report
        self._module = module

    def encode(self, model: Any, front: Tensor, blocks: Sequence[Sequence[int]]) -> list[Encoded]:
        states = soft_states(model, self._module, front, blocks)
        return [Encoded(state, state.shape[3]) for state in states]


def make_encoder(recall: RecallConfig, loaded: LoadedModel) -> Encoder:
    """The encoder that `recall.encoder` names.

    Raises the errors of `load_soft_prompt` if the trained encoder's file does not fit this model.
    """
    if recall.encoder == "kv_exact":
        return Exact()
    if recall.encoder == "kv_compact":
        return Compact(recall.compact, loaded.tokenizer)
    if recall.encoder == "soft_prompt":
        module, report = load_soft_prompt(str(recall.soft_prompt), loaded)
        return Soft(module, report)
    return Chunks()
