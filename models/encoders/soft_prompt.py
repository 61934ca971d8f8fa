"""Learned encoder: a memory becomes a few soft embeddings, whose states after the head are its block.

The embeddings of the memory's tokens are averaged over `slots` spans, and a network adds a learned correction. The
correction starts at zero, so that training begins at a blurred text and not at noise. This is a baseline: with the same
number of slots, states computed from all tokens hold more information. `train.soft_prompt` trains it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from common.errors import InvalidInput, NotFound
from common.files import write_bytes
from models.kv.prefix import as_cache, stacked
from models.kv.safetensors_metadata import Notes, read_notes
from models.weights.load import LoadedModel
from models.weights.load_report import LoadReport

HEADS = 4


class SoftPrompt(nn.Module):
    """Maps token embeddings `[tokens, width]` to at most `slots` soft ones: `[min(slots, tokens), width]`, float32."""

    def __init__(self, width: int, slots: int) -> None:
        super().__init__()
        self.width, self.slots = width, slots
        self.places = nn.Parameter(torch.randn(slots, width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.read = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.between = nn.Linear(width, width)
        self.add = nn.Linear(width, width)
        nn.init.zeros_(self.add.weight)
        nn.init.zeros_(self.add.bias)

    def forward(self, embedded: Tensor) -> Tensor:
        count = min(self.slots, len(embedded))
        pooled = nn.functional.adaptive_avg_pool1d(embedded.T, count).T
        tokens = self.norm(embedded)[None]
        seen, _ = self.read(self.norm(pooled)[None] + self.places[:count], tokens, tokens, need_weights=False)
        return pooled + self.add(nn.functional.gelu(self.between(seen[0])))


def soft_states(
    model: Any, module: SoftPrompt, front: Tensor, blocks: Sequence[Sequence[int]]
) -> list[Tensor]:
    """States of each memory's soft embeddings after `front`, `[layers, 2, kv_heads, slots, head_dim]` each."""
    with torch.inference_mode():
        embed, start = model.get_input_embeddings(), front.shape[3]
        soft = [module(embed(torch.tensor([*block], device=model.device)).float()) for block in blocks]
        padded = nn.utils.rnn.pad_sequence(soft, batch_first=True)
        positions = torch.arange(start, start + padded.shape[1], device=model.device).expand(len(blocks), -1)
        cache = as_cache(front, model.config, batch=len(blocks))
        model.get_decoder()(
            inputs_embeds=padded.to(model.dtype), past_key_values=cache, position_ids=positions
        )
        states = stacked(cache)
    return [states[:, :, row, :, start : start + len(each)].contiguous() for row, each in enumerate(soft)]


def save_soft_prompt(module: SoftPrompt, path: Path, provenance: Mapping[str, Any]) -> None:
    """Write the module's tensors. `provenance` is stored with them and contains `model_digest`."""
    note = {"slots": str(module.slots), "provenance": json.dumps(provenance, sort_keys=True)}
    write_bytes(path, save({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, note))


def load_soft_prompt(path: str, loaded: LoadedModel) -> tuple[SoftPrompt, LoadReport]:
    """Load the encoder; returns it with the report on its file.

    Raises `NotFound` if there is no file, `InvalidInput` if it is incomplete or was trained for another model.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise NotFound(
            f"recall.soft_prompt = {path!r}: no such file; train one first", param="recall.soft_prompt"
        )
    module, report = read_soft_prompt(file.read_bytes(), loaded.model.config.hidden_size)
    if not report.complete:
        raise InvalidInput(
            f"recall.soft_prompt = {path!r} does not fit {loaded.name!r}: missing {report.missing}, of another shape "
            f"(file, model) {report.shape_errors}; train one for this model",
            param="recall.soft_prompt",
        )
    if report.provenance.get("model_digest") != loaded.digest:
        raise InvalidInput(
            f"recall.soft_prompt = {path!r} was trained for base weights {report.provenance.get('model_digest')}, "
            f"this instance serves {loaded.digest}; train one for this model",
            param="recall.soft_prompt",
        )
    return module.to(loaded.device), report


def read_soft_prompt(data: bytes, width: int) -> tuple[SoftPrompt, LoadReport]:
    """Load the tensors that fit a model of this width; the report lists the others. Raises `InvalidInput` if the file
    is not a soft prompt."""
    try:
        note, tensors = _note(data), load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise InvalidInput(f"not a trained soft prompt: {error}", param="recall.soft_prompt") from error
    module = SoftPrompt(width, int(note["slots"]))
    ours = module.state_dict()
    fitting = {name: t for name, t in tensors.items() if name in ours and t.shape == ours[name].shape}
    module.load_state_dict(fitting, strict=False)
    report = LoadReport(
        digest=hashlib.blake2b(data, digest_size=8).hexdigest(),
        loaded=sorted(fitting),
        skipped=sorted(tensors.keys() - ours.keys()),
        missing=sorted(ours.keys() - tensors.keys()),
        shape_errors={
            name: ([*tensors[name].shape], [*ours[name].shape])
            for name in sorted(tensors.keys() & ours.keys() - fitting.keys())
        },
        provenance=json.loads(note["provenance"]),
    )
    return module.eval().requires_grad_(False), report


def _note(data: bytes) -> Notes:
    note = read_notes(data)
    missing = {"slots", "provenance"} - note.keys()
    if missing:
        raise ValueError(f"its header lacks {', '.join(sorted(missing))}")
    return note
