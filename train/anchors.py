"""Anchors: text the base model wrote itself, with its own next-token probabilities, to stay close to.

Made once for a base model and a seed, and kept in a file; a fifth is held out to measure the distance.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train.chat import SYSTEMS, batches_by_length, prompt_ids
from train.decode import BATCH_TOKENS, write
from train.objective import Batch, kl_to_base, make_batch, position_logits

TOP_K = 64
MAX_NEW_TOKENS = 40
HELD_OUT = 5  # one in so many
SORTS = 3
MEMORY_ROWS = 8  # anchors whose probabilities are computed at once; [positions, vocabulary] floats each
GENERAL = (
    "Tell me about the weather.", "What is a good book to read?", "How do I boil an egg?",
    "Explain gravity simply.", "Write a short poem about trees.", "What do dogs eat?",
    "Give me some advice for studying.", "Describe a busy market.", "What is a computer?",
    "How do plants grow?", "Tell me a story about a king.", "What should I pack for a trip?",
    "How are you today?", "Translate good morning into French.", "Why is sleep important?",
    "Give me a recipe for bread.", "How does a bicycle work?", "What happens in winter?",
    "Why do people collect things?", "Tell me a joke.",
)  # fmt: skip
# Short questions like those that are trained, about things the base knows and people it does not: without them
# every such question comes to be answered with something that was trained.
NEAR = (
    "Where is the Eiffel Tower?", "What did Isaac Newton discover?", "Which language do people speak in Mexico?",
    "What instrument did Mozart play?", "What colour is a fire engine?", "What is the largest city in Canada?",
    "Who wrote Romeo and Juliet?", "Which animal barks?", "What is the job of a dentist?", "What do bees make?",
    "Where does Mary Johnson live?", "What is the job of John Carter?", "Which dish did Anna Kim cook?",
    "What pet does Tom Baker have?", "What instrument does Lucy Hall play?", "What does Peter Brown collect?",
    "What colour did Sam Reed paint the fence?", "What language does Eva Lund speak?",
    "What is next to the Grand Hotel?", "Where does the King's Road lead?",
)  # fmt: skip
OPENINGS = (
    "The", "In the middle of the night", "When we arrived", "She said that", "They went to", "There are many",
    "It is important to", "One day a small", "The company", "My friend and I", "According to the report,",
    "The best way to", "He was born in", "The children", "A group of people", "If you want to", "Many years ago",
    "At the end of", "Scientists have found", "The old woman",
)  # fmt: skip


@dataclass(frozen=True)
class Anchor:
    """`prompt` and `text` are token ids; row t of `log_probs`, `tokens` `[len(text), TOP_K]` predicts text[t]."""

    prompt: list[int]
    text: list[int]
    log_probs: Tensor  # float32
    tokens: Tensor  # int64


def split(anchors: Sequence[Anchor]) -> tuple[list[Anchor], list[Anchor]]:
    """(to train on, held out), by prompt: one prompt of each sort in every `HELD_OUT` is held out."""
    held = [_is_held_out(number) for number in range(len(anchors))]
    return (
        [anchor for anchor, out in zip(anchors, held, strict=True) if not out],
        [anchor for anchor, out in zip(anchors, held, strict=True) if out],
    )


def _is_held_out(number: int) -> bool:
    return number // SORTS % len(GENERAL) % HELD_OUT == HELD_OUT - 1


def load_or_make(
    folder: Path, model: Any, tokenizer: Any, model_digest: str, *, count: int, seed: int
) -> list[Anchor]:
    """Anchors of the base `model`, from `folder` where the same ones were made before."""
    prompts = [*SYSTEMS, *GENERAL, *NEAR, *OPENINGS]
    recipe = [model_digest, str(model.dtype), count, seed, TOP_K, MAX_NEW_TOKENS, prompts]
    name = hashlib.blake2b(json.dumps(recipe).encode(), digest_size=8).hexdigest()
    path = folder / f"anchors-{name}.pt"
    if path.is_file():
        return [Anchor(**fields) for fields in torch.load(path, weights_only=True)]
    anchors = make_anchors(model, tokenizer, count=count, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as scratch:
        torch.save([vars(anchor) for anchor in anchors], scratch)
    os.replace(scratch.name, path)
    return anchors


def make_anchors(model: Any, tokenizer: Any, *, count: int, seed: int) -> list[Anchor]:
    """Let `model` write `count` texts: a third to general questions, a third to short ones, a third plain prose."""
    prompts = [_prompt(tokenizer, number) for number in range(count)]
    sampler = torch.Generator().manual_seed(seed)
    texts = write(model, prompts, {tokenizer.eos_token_id}, max_new_tokens=MAX_NEW_TOKENS, sampler=sampler)
    pairs = list(zip(prompts, texts, strict=True))
    return [
        anchor
        for start in range(0, count, MEMORY_ROWS)
        for anchor in _remember(model, pairs[start : start + MEMORY_ROWS], tokenizer.eos_token_id)
    ]


def _prompt(tokenizer: Any, number: int) -> list[int]:
    """The three sorts in turn; a second lap through the lists uses the other system prompt."""
    place, sort = divmod(number, SORTS)
    lap, place = divmod(place, len(GENERAL))
    if sort == 2:
        return list(tokenizer(OPENINGS[place], add_special_tokens=False).input_ids)
    system = SYSTEMS[(lap + place + sort) % len(SYSTEMS)]
    return prompt_ids(tokenizer, (GENERAL, NEAR)[sort][place], system)


@torch.no_grad()
def anchor_kl(model: Any, anchors: Sequence[Anchor], pad: int) -> float:
    """Mean KL(base || model) in nats a token over the anchors' text; 0 where there are none."""
    total, positions = 0.0, 0
    for rows in batches_by_length([len(a.prompt) + len(a.text) for a in anchors], 16, BATCH_TOKENS):
        chosen = [anchors[row] for row in rows]
        batch = anchor_batch(chosen, pad, model.device)
        total += float(batch_kl(position_logits(model, batch), chosen).sum())
        positions += len(batch.targets)
    return total / positions if positions else 0.0


def anchor_batch(anchors: Sequence[Anchor], pad: int, device: Any) -> Batch:
    return make_batch([(anchor.prompt, anchor.text) for anchor in anchors], pad, device)


def batch_kl(logits: Tensor, anchors: Sequence[Anchor]) -> Tensor:
    """`[positions]`: KL(base || student), from the student's logits at the positions of `anchor_batch`."""
    log_probs = torch.cat([anchor.log_probs for anchor in anchors]).to(logits.device)
    tokens = torch.cat([anchor.tokens for anchor in anchors]).to(logits.device)
    return kl_to_base(logits, log_probs, tokens)


@torch.no_grad()
def _remember(model: Any, anchors: Sequence[tuple[list[int], list[int]]], pad: int) -> list[Anchor]:
    """The base's top log-probabilities at each token of (prompt, text)."""
    batch = make_batch(anchors, pad, model.device)
    top = position_logits(model, batch).log_softmax(-1).topk(TOP_K)
    sizes = [len(text) for _, text in anchors]
    values, indices = top.values.cpu().split(sizes), top.indices.cpu().split(sizes)
    return [
        Anchor(prompt, text, rows.clone(), tokens.clone())
        for (prompt, text), rows, tokens in zip(anchors, values, indices, strict=True)
    ]
