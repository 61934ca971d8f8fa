"""Prefixes of key/value (KV) blocks, and prefill and decoding after them.

A memory is encoded once while attending to the head of the chat template, at the positions directly after it. Only
the memory's own states are kept: a KV block. A prefix is head | block | block | ...; each block's keys are rotated
once, in float32, from their encoded position to their position in the prefix (values do not depend on position), and
only the question is run. The result for a single block equals the text prompt. Several blocks do not attend to each
other; the assembly policy repairs part of that loss:

    none       no recomputation
    first_k    the first k tokens of every block but the first are recomputed in place with the question
               (EPIC's LegoLink, arXiv 2410.15332: most of the loss sits in each block's first tokens)
    best_last  the most relevant blocks (`best`) stand last and are recomputed with the question

The encoder (`models.encoders`) decides which states a block has and whether blocks attend to earlier ones.

Shapes: states are `[layers, 2, kv_heads, slots, head_dim]`, keys at index 0 of the second axis. A slot is a token
where the encoder keeps them all.
Rotation: RoPE, arXiv 2104.09864; R(a)R(b) = R(a+b), so rotating a key by the distance moved re-positions it.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from models.kv.quantised import Int8States

# As `logits_to_keep`. The number 1 takes a strided slice, for which a product on a CPU copies the whole output layer:
# four fifths of the time of a short prompt (1.5B, bfloat16).
LAST = torch.tensor([-1])

Judge = Callable[[Sequence[int], Tensor], None]
"""Is given tokens of a prompt, in order, and the logits `[tokens, vocabulary]` that came before each of them."""

HEAD = -1  # owner of the head's slots
LAID_AT_ONCE = 16  # blocks moved in one operation: few launches for a GPU, and what a CPU has in its caches


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Which tokens of assembled blocks are recomputed. `first_k` requires blocks with one slot for each token."""

    kind: Literal["none", "first_k", "best_last"]
    first_k: int = 0
    best: int = 0

    def tokens_again(self, place: int, blocks: int, length: int) -> int:
        """Number of leading tokens to recompute in the block of `length` tokens at index `place` of `blocks`. The
        first block needs none: it was encoded with the same context."""
        if place == 0 or self.kind == "none":
            return 0
        if self.kind == "first_k":
            return min(self.first_k, length)
        return length if place >= blocks - self.best else 0


INDEPENDENT = Policy(kind="none")


@dataclass(frozen=True, kw_only=True)
class KVBlock:
    """The states of one memory for one fingerprint, with its `ids` and `text` for the fallback to text.

    `width`: number of positions, which may exceed the number of slots. A block of a history was encoded after other
    blocks: `front` is the digest of all ids before it, `behind` are the ids of the memories before it.
    """

    memory_id: str
    fingerprint: str
    ids: tuple[int, ...]
    text: str
    states: Tensor | Int8States
    width: int
    front: str = ""
    behind: tuple[str, ...] = ()

    @property
    def tensors(self) -> dict[str, Tensor]:
        return self.states.tensors() if isinstance(self.states, Int8States) else {"states": self.states}

    @property
    def slots(self) -> int:
        return self.states.shape[3]

    @property
    def size_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def dense(self, like: Tensor) -> Tensor:
        """The states on the device of `like`, in their own dtype, or in float32 if they are stored as int8."""
        states = self.states.to(like.device)
        return states.dense() if isinstance(states, Int8States) else states


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A block in a prefix: shifted by `distance` positions, without its first `skip` slots."""

    block: KVBlock
    distance: int = 0
    skip: int = 0


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """The head and the placed blocks before a question. `lay` computes the states, so a waiting request holds no
    copy.

    `positions`: position of each slot, `[slots]`. `again`: tokens to recompute with the question, as (token id,
    position). `length`: the question's first position. `frequency`: RoPE's inverse frequencies, for moved blocks.
    `owners`: which block each slot belongs to, `[slots]`, and `again_owners` each token of `again`: its index as given
    to `assemble`, -1 the head.
    """

    head: Tensor
    pieces: tuple[Piece, ...]
    positions: Tensor
    again: tuple[tuple[int, int], ...] = ()
    length: int
    owners: Tensor
    again_owners: tuple[int, ...] = ()
    frequency: Tensor | None = None

    @property
    def slots(self) -> int:
        return len(self.positions)

    def lay(self) -> Tensor:
        """Return a copy of the states, `[layers, 2, kv_heads, slots, head_dim]`; the blocks are not changed."""
        parts = [self.head]
        for start in range(0, len(self.pieces), LAID_AT_ONCE):
            parts.append(self._moved(self.pieces[start : start + LAID_AT_ONCE]).to(self.head))
        return torch.cat(parts, dim=3)

    def _moved(self, pieces: Sequence[Piece]) -> Tensor:
        """Their states, one behind the other, in their places."""
        states = [piece.block.dense(self.head)[..., piece.skip :, :] for piece in pieces]
        together = torch.cat(states, dim=3)
        if self.frequency is None:
            return together
        distances = torch.tensor([piece.distance for piece in pieces])
        return rotated(
            together,
            distances.repeat_interleave(torch.tensor([each.shape[3] for each in states])),
            self.frequency,
        )


def fingerprint(
    model_digest: str, adapter: str, head: Sequence[int], config: Any, dtype: torch.dtype, encoder: str
) -> str:
    """Digest of everything that KV states depend on, 16 hex digits. `encoder`: its name and parameters."""
    parts = {
        "model": model_digest,
        "adapter": adapter,
        "head": list(head),
        "rope": getattr(config, "rope_parameters", None),
        "dtype": str(dtype),
        "encoder": encoder,
    }
    canonical = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


@torch.inference_mode()
def encode_head(model: Any, ids: Sequence[int]) -> Tensor:
    """States of the head, `[layers, 2, kv_heads, len(ids), head_dim]`."""
    cache = DynamicCache(config=model.config)
    model.get_decoder()(input_ids=_row(ids, model), past_key_values=cache)
    return stacked(cache)[:, :, 0].contiguous()


@torch.inference_mode()
def encode_behind(model: Any, front: Tensor, ids: Sequence[int]) -> Tensor:
    """States of `ids` after the states `front`, `[layers, 2, kv_heads, len(ids), head_dim]`."""
    cache = as_cache(front, model.config)
    model.get_decoder()(input_ids=_row(ids, model), past_key_values=cache)
    return stacked(cache)[:, :, 0, :, front.shape[3] :].contiguous()


@torch.inference_mode()
def encode_blocks(model: Any, head: Tensor, blocks: Sequence[Sequence[int]]) -> list[Tensor]:
    """States of each block alone after the head: `[layers, 2, kv_heads, len(block), head_dim]` each.

    Runs one batch, padded on the right, where causal attention keeps tokens from attending to padding.
    """
    count, longest, start = len(blocks), max(map(len, blocks)), head.shape[3]
    ids = torch.zeros(count, longest, dtype=torch.long, device=model.device)
    for row, block in enumerate(blocks):
        ids[row, : len(block)] = torch.tensor(block)
    cache = as_cache(head, model.config, batch=count)
    positions = torch.arange(start, start + longest, device=model.device).expand(count, -1)
    model.get_decoder()(input_ids=ids, past_key_values=cache, position_ids=positions)
    states = stacked(cache)
    return [states[:, :, row, :, start : start + len(block)].contiguous() for row, block in enumerate(blocks)]


def assemble(head: Tensor, blocks: Sequence[KVBlock], inverse_frequency: Tensor, policy: Policy) -> Prefix:
    """Place `blocks` (given most relevant first) after the head, the most relevant one last."""
    start = position = head.shape[3]
    pieces: list[Piece] = []
    positions, owners, again, again_owners = [torch.arange(start)], [torch.full((start,), HEAD)], [], []
    for place, block in enumerate(reversed(blocks)):
        tokens, owner = len(block.ids), len(blocks) - 1 - place
        skip = policy.tokens_again(place, len(blocks), tokens)
        again += [(block.ids[i], position + i) for i in range(skip)]
        again_owners += [owner] * skip
        if skip == tokens:
            position += tokens
            continue
        pieces.append(Piece(block=block, distance=position - start, skip=skip))
        positions.append(position + torch.arange(skip, block.slots))
        owners.append(torch.full((block.slots - skip,), owner))
        position += block.width
    return Prefix(
        head=head,
        pieces=tuple(pieces),
        positions=torch.cat(positions),
        again=tuple(again),
        length=position,
        owners=torch.cat(owners),
        again_owners=tuple(again_owners),
        frequency=inverse_frequency,
    )


def followed(prefix: Prefix, texts: Sequence[tuple[int, Sequence[int]]]) -> Prefix:
    """The prefix with the ids of memories as text behind it, which run with the question: (owner, ids) each."""
    tokens = [(owner, token) for owner, ids in texts for token in ids]
    return replace(
        prefix,
        again=(*prefix.again, *((token, prefix.length + i) for i, (_, token) in enumerate(tokens))),
        again_owners=(*prefix.again_owners, *(owner for owner, _ in tokens)),
        length=prefix.length + len(tokens),
    )


def laid(head: Tensor, history: Sequence[KVBlock]) -> Prefix:
    """A prefix of blocks that were encoded one after the other, at their encoded positions."""
    length = head.shape[3] + sum(block.slots for block in history)
    pieces = tuple(Piece(block=block) for block in history)
    slots = torch.tensor([head.shape[3], *(block.slots for block in history)])
    owners = torch.arange(HEAD, len(history)).repeat_interleave(slots)
    return Prefix(head=head, pieces=pieces, positions=torch.arange(length), length=length, owners=owners)


def rotated(states: Tensor, distance: int | Tensor, inverse_frequency: Tensor) -> Tensor:
    """Return a copy of `states` with keys rotated by `distance` positions, one number or one for each slot (`[slots]`).
    Computes in float32 and returns the input's dtype."""
    distances = torch.as_tensor(distance, dtype=torch.float32).to(states.device)
    angle = distances[..., None] * inverse_frequency.to(states.device, torch.float32)
    angle = torch.cat((angle, angle), dim=-1)
    cos, sin = angle.cos(), angle.sin()
    keys = states[:, 0].float()
    first, second = keys.chunk(2, dim=-1)
    turned = keys * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.stack((turned.to(states.dtype), states[:, 1]), dim=1)


def to_run(prefix: Prefix | None, ids: Sequence[int]) -> tuple[list[int], list[int]]:
    """Token ids to run after the prefix (recomputed memory tokens, then `ids`), and their positions."""
    again, start = (prefix.again, prefix.length) if prefix else ((), 0)
    positions = [place for _, place in again] + [*range(start, start + len(ids))]
    return [token for token, _ in again] + list(ids), positions


class Prefill:
    """Chunked prefill of one prompt after its prefix. Once `done`: `cache`, `logits` of the last token
    (`[vocabulary]`), and `position`, the next position. `judge` is called for the last `judged` ids (without the very
    first token, which nothing comes before)."""

    def __init__(
        self,
        prefix: Prefix | None,
        ids: Sequence[int],
        config: Any,
        judge: Judge | None = None,
        judged: int = 0,
    ) -> None:
        self.cache = DynamicCache(config=config) if prefix is None else as_cache(prefix.lay(), config)
        self.logits = torch.empty(0)
        self._tokens, positions = to_run(prefix, ids)
        self._queries = torch.tensor(positions)
        self.position = (prefix.length if prefix else 0) + len(ids)
        self._keys = prefix.positions if prefix else self._queries[:0]
        self._next = 0
        self._judge = judge
        self._unjudged = (
            len(self._tokens) - judged if judge else len(self._tokens)
        )  # tokens before the judged ones

    @property
    def done(self) -> bool:
        return self._next >= len(self._tokens)

    @property
    def states(self) -> Tensor:
        """States computed so far, `[layers, 2, kv_heads, slots, head_dim]`."""
        return stacked(self.cache)[:, :, 0]

    @torch.inference_mode()
    def advance(self, model: Any, limit: int | None = None) -> int:
        """Run up to `limit` more tokens (None: all). Returns the number run."""
        end = len(self._tokens) if limit is None else min(self._next + limit, len(self._tokens))
        tokens, queries = self._tokens[self._next : end], self._queries[self._next : end]
        self._keys = torch.cat((self._keys, queries))
        mask = None
        if len(self._keys) > len(queries):
            # Slots may stand out of order, so what a token sees is decided by position, never by slot.
            mask = (self._keys.to(model.device) <= queries.to(model.device)[:, None])[None, None]
        out = model(
            input_ids=_row(tokens, model),
            past_key_values=self.cache,
            position_ids=queries[None].to(model.device),
            attention_mask=mask,
            logits_to_keep=self._kept(end),
        )
        if self._judge and (following := self._tokens[max(self._next + 1, self._unjudged) : end + 1]):
            self._judge(following, out.logits[0, : len(following)])
        self._next = end
        if self.done:
            self.logits = out.logits[0, -1]
        return len(tokens)

    def _kept(self, end: int) -> Tensor:
        """Which tokens of this chunk, up to `end`, need logits: the last one, and those before judged ones."""
        first = max(self._next, self._unjudged - 1)
        return torch.arange(first - self._next, end - self._next) if first < end else LAST


def prefill(model: Any, prefix: Prefix | None, ids: Sequence[int]) -> tuple[DynamicCache, Tensor, int]:
    """Run `ids` after the prefix. Returns the cache, the last token's logits `[vocabulary]`, and the next position."""
    running = Prefill(prefix, ids, model.config)
    running.advance(model)
    return running.cache, running.logits, running.position


@torch.inference_mode()
def step(model: Any, cache: DynamicCache, token: int, position: int) -> Tensor:
    """Run one token; `cache` grows by one slot. Returns logits `[vocabulary]`."""
    place = torch.tensor([[position]], device=model.device)
    return model(input_ids=_row([token], model), past_key_values=cache, position_ids=place).logits[0, -1]


def as_cache(states: Tensor, config: Any, batch: int = 1) -> DynamicCache:
    """A cache initialised with `states`. Its first update copies, so generation never writes into a block."""
    layers = [
        (layer[0].expand(batch, -1, -1, -1), layer[1].expand(batch, -1, -1, -1))
        for layer in states.unsqueeze(2)
    ]
    return DynamicCache(layers, config=config)


def stacked(cache: DynamicCache) -> Tensor:
    """`[layers, 2, batch, kv_heads, slots, head_dim]`"""
    return torch.stack([torch.stack((layer.keys, layer.values)) for layer in cache.layers])


def _row(ids: Sequence[int], model: Any) -> Tensor:
    return torch.tensor([list(ids)], dtype=torch.long, device=model.device)
