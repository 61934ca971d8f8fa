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
from transformers import GenerationConfig

from train.chat import SYSTEMS, batches_by_length, prompt_ids
from train.objective import Batch, kl_to_base, make_batch, position_logits

TOP_K = 64
MAX_NEW_TOKENS = 48
HELD_OUT = 5  # one in so many
BATCH_TOKENS = 4096
PROMPTS = (
    "Tell me about the weather.", "What is a good book to read?", "How do I boil an egg?", "Explain gravity simply.",
    "Write a short poem about trees.", "What do dogs eat?", "Give me some advice for studying.",
    "Describe a busy market.", "What is a computer?", "How do plants grow?", "Tell me a story about a king.",
    "What should I pack for a trip?", "Name a famous scientist.", "Where do fish live?", "What colour is the sky?",
    "What does a doctor do?", "Which language is spoken in Brazil?", "Name an animal with a long neck.",
    "Which city is the capital of Japan?", "Why do people collect things?", "Which instrument has strings?",
    "Where does a river end?", "What is next to a kitchen?", "Who works in a hospital?", "How are you today?",
    "What is two plus three?", "Translate good morning into French.", "Why is sleep important?", "What is the moon?",
    "Give me a recipe for bread.", "How does a bicycle work?", "What happens in winter?",
)  # fmt: skip


@dataclass(frozen=True)
class Anchor:
    """`prompt` and `text` are token ids; row t of `log_probs`, `tokens` `[len(text), TOP_K]` predicts text[t]."""

    prompt: list[int]
    text: list[int]
    log_probs: Tensor  # float32
    tokens: Tensor  # int64


def split(anchors: Sequence[Anchor]) -> tuple[list[Anchor], list[Anchor]]:
    """(to train on, held out); no prompt is on both sides."""
    held = [
        anchor for number, anchor in enumerate(anchors) if number % len(PROMPTS) % HELD_OUT == HELD_OUT - 1
    ]
    kept = [
        anchor for number, anchor in enumerate(anchors) if number % len(PROMPTS) % HELD_OUT != HELD_OUT - 1
    ]
    return kept, held


def load_or_make(
    folder: Path, model: Any, tokenizer: Any, model_digest: str, *, count: int, seed: int
) -> list[Anchor]:
    """Anchors of the base `model`, from `folder` where the same ones were made before."""
    recipe = [model_digest, str(model.dtype), count, seed, TOP_K, MAX_NEW_TOKENS, *SYSTEMS, *PROMPTS]
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
    """Sample `count` answers of `model` to generic prompts, and keep what it thought at each token."""
    chosen = [
        (PROMPTS[number % len(PROMPTS)], SYSTEMS[(number + number // len(PROMPTS)) % len(SYSTEMS)])
        for number in range(count)
    ]
    prompts = [prompt_ids(tokenizer, question, system) for question, system in chosen]
    texts = _write(model, tokenizer, prompts, seed)
    return [_remember(model, tokenizer, prompt, text) for prompt, text in zip(prompts, texts, strict=True)]


@torch.no_grad()
def anchor_kl(model: Any, anchors: Sequence[Anchor], pad: int) -> float:
    """Mean KL(base || model) in nats a token over the anchors' text; 0 where there are none."""
    total, positions = 0.0, 0
    for rows in batches_by_length([len(a.prompt) + len(a.text) for a in anchors], 16, BATCH_TOKENS):
        chosen = [anchors[row] for row in rows]
        batch = anchor_batch(chosen, pad, model.device)
        value = batch_kl(position_logits(model, batch), chosen)
        number = len(batch.targets)
        total, positions = total + float(value) * number, positions + number
    return total / positions if positions else 0.0


def anchor_batch(anchors: Sequence[Anchor], pad: int, device: Any) -> Batch:
    return make_batch([(anchor.prompt, anchor.text) for anchor in anchors], pad, device)


def batch_kl(logits: Tensor, anchors: Sequence[Anchor]) -> Tensor:
    """Mean KL(base || student) from the student's logits at the positions of `anchor_batch`."""
    log_probs = torch.cat([anchor.log_probs for anchor in anchors]).to(logits.device)
    tokens = torch.cat([anchor.tokens for anchor in anchors]).to(logits.device)
    return kl_to_base(logits, log_probs, tokens)


@torch.inference_mode()
def _write(model: Any, tokenizer: Any, prompts: list[list[int]], seed: int) -> list[list[int]]:
    """Sampled continuations in the order of `prompts`, each up to and with the end of its turn."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    sampled = GenerationConfig(
        max_new_tokens=MAX_NEW_TOKENS, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=pad,
    )  # fmt: skip
    texts: list[list[int]] = [[] for _ in prompts]
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for rows in batches_by_length([len(prompt) for prompt in prompts], 64, BATCH_TOKENS):
            width = len(prompts[rows[0]])
            ids = torch.tensor([[pad] * (width - len(prompts[row])) + prompts[row] for row in rows])
            mask = torch.tensor([[0] * (width - len(prompts[row])) + [1] * len(prompts[row]) for row in rows])
            output = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=sampled,
            )
            for row, tokens in zip(rows, output[:, width:].tolist(), strict=True):
                end = (
                    tokens.index(tokenizer.eos_token_id) + 1
                    if tokenizer.eos_token_id in tokens
                    else len(tokens)
                )
                texts[row] = tokens[:end]
    return texts


@torch.no_grad()
def _remember(model: Any, tokenizer: Any, prompt: list[int], text: list[int]) -> Anchor:
    batch = make_batch([(prompt, text)], tokenizer.eos_token_id, model.device)
    top = position_logits(model, batch).log_softmax(-1).topk(TOP_K)
    return Anchor(prompt, text, top.values.cpu(), top.indices.cpu())
