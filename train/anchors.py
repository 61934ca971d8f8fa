"""Anchors: text the base model wrote itself, with its own next-token probabilities, to stay close to.

Two sorts. `wide` are longer answers and plain prose: the model in general. `near` are the first words of answers
to short questions like those that are trained: about things the base knows, and about neighbours, people and
places that nobody taught. Without the second sort every such question comes to be answered with something
that was trained. A fifth is held out to measure the distance.
"""

import hashlib
import json
import os
import random
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train.generation.chat import SYSTEMS, batches_by_length, prompt_ids
from train.generation.decode import BATCH_TOKENS, write
from train.objective import Batch, kl_to_base, make_batch, position_logits

TOP_K = 64
WIDE_TOKENS = 40
NEAR_TOKENS = 8
HELD_OUT = 5  # one in so many
MAX_NEIGHBOURS = 64
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
OPENINGS = (
    "The", "In the middle of the night", "When we arrived", "She said that", "They went to", "There are many",
    "It is important to", "One day a small", "The company", "My friend and I", "According to the report,",
    "The best way to", "He was born in", "The children", "A group of people", "If you want to", "Many years ago",
    "At the end of", "Scientists have found", "The old woman",
)  # fmt: skip
KNOWN = (
    "Where is the Eiffel Tower?", "What did Isaac Newton discover?", "Which language do people speak in Mexico?",
    "What instrument did Mozart play?", "What colour is a fire engine?", "What is the largest city in Canada?",
    "Who wrote Romeo and Juliet?", "Which animal barks?", "What is the job of a dentist?", "What do bees make?",
    "In which city is Big Ben?", "What is the longest river in Africa?", "Who invented the telephone?",
    "Which animal has a trunk?", "What colour is chocolate?", "What do you call a baby dog?",
    "Where do penguins live?", "Which country is north of Mexico?", "What is the tallest mountain on Earth?",
    "Who was the first man on the moon?", "What does a baker make?", "Which season comes after winter?",
    "What is frozen water called?", "Which instrument has black and white keys?", "Where do astronauts work?",
    "What language is spoken in China?", "Which fruit is used to make wine?", "What is the home of a bird called?",
    "Who was the first president of the United States?", "What do people use to write?",
    "Which sport is played at Wimbledon?", "Where can you see the pyramids?", "Which metal is used in wires?",
    "What is the main food of pandas?", "Which city is famous for its canals?", "What does a thermometer measure?",
    "Who painted Sunflowers?", "Which dish comes from Naples?", "What is beside the Thames in London?",
    "Where does the Nile end?",
)  # fmt: skip
FIRST_NAMES = "Mary John Anna Tom Lucy Peter Sam Eva Paul Carla Frank Nina Henry Olga Susan Robert".split()
LAST_NAMES = (
    "Johnson Carter Kim Baker Hall Brown Reed Lund West Ruiz Hill Holt Moss Stein Clark Miller".split()
)


@dataclass(frozen=True)
class Anchor:
    """`prompt` and `text` are token ids; row t of `log_probs`, `tokens` `[len(text), TOP_K]` predicts text[t]."""

    prompt: list[int]
    text: list[int]
    log_probs: Tensor  # float32
    tokens: Tensor  # int64


@dataclass(frozen=True)
class Anchors:
    wide: list[Anchor]
    near: list[Anchor]
    held_out: list[Anchor]  # of general, opening and known prompts that are in neither list


def neighbours(questions: Iterable[str], seed: int) -> list[str]:
    """The questions with other names in them, at most `MAX_NEIGHBOURS`; those without a name are left out.

    A run of capitalised words that does not start the sentence becomes an ordinary person's name. After "the"
    only its first word is replaced, which keeps what sort of place it is: `the Brevo Inn`, `the Baker Inn`.
    """
    rng = random.Random(seed)
    distinct = sorted(set(questions))
    changed = [(question, _rename(question, rng)) for question in rng.sample(distinct, len(distinct))]
    return [other for question, other in changed if other != question][:MAX_NEIGHBOURS]


def _rename(question: str, rng: random.Random) -> str:
    def other(match: re.Match[str]) -> str:
        first, last = rng.choice(FIRST_NAMES), rng.choice(LAST_NAMES)
        article, words = match["article"] or "", match["name"].split()
        if article:
            return " ".join([article.rstrip(), last, *words[1:]])
        return f"{first} {last}" if len(words) > 1 else first

    return re.sub(r"(?<=\S )(?P<article>[Tt]he )?(?P<name>[A-Z][\w-]*(?: [A-Z][\w-]*)*)", other, question)


def load_or_make(
    folder: Path,
    model: Any,
    tokenizer: Any,
    model_digest: str,
    *,
    others: Sequence[str],
    count: int,
    seed: int,
) -> Anchors:
    """Anchors of the base `model`, from `folder` where the same ones were made before.

    `count` bounds the general prompts and the openings, a third each, and the known questions, two; `others` are the
    questions about neighbours.
    """
    wide, near, held = _prompts(tokenizer, others, count)
    recipe = [model_digest, str(model.dtype), seed, TOP_K, WIDE_TOKENS, NEAR_TOKENS, wide, near, held]
    path = folder / f"anchors-{hashlib.blake2b(json.dumps(recipe).encode(), digest_size=8).hexdigest()}.pt"
    if path.is_file():
        saved = torch.load(path, weights_only=True)
        return Anchors(**{name: [Anchor(**fields) for fields in rows] for name, rows in saved.items()})
    anchors = Anchors(
        wide=make_anchors(model, tokenizer, wide, WIDE_TOKENS, seed),
        near=make_anchors(model, tokenizer, near, NEAR_TOKENS, seed),
        held_out=make_anchors(model, tokenizer, held, WIDE_TOKENS, seed),
    )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as scratch:
        torch.save({name: [vars(anchor) for anchor in rows] for name, rows in vars(anchors).items()}, scratch)
    os.replace(scratch.name, path)
    return anchors


def _prompts(
    tokenizer: Any, others: Sequence[str], count: int
) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Prompts of (wide, near, held out) anchors; the system prompts alternate."""
    share = count // 3

    def chats(questions: Sequence[str]) -> list[list[int]]:
        return [prompt_ids(tokenizer, asked, SYSTEMS[i % len(SYSTEMS)]) for i, asked in enumerate(questions)]

    general, known, rest = chats(GENERAL[:share]), chats(KNOWN[: 2 * share]), chats(others)
    plain = [list(tokenizer(text, add_special_tokens=False).input_ids) for text in OPENINGS[:share]]
    sorts = (general, plain, known)
    held = [prompt for prompts in sorts for prompt in prompts[HELD_OUT - 1 :: HELD_OUT]]
    kept = [[p for number, p in enumerate(prompts) if number % HELD_OUT != HELD_OUT - 1] for prompts in sorts]
    return [*kept[0], *kept[1]], [*kept[2], *rest], held


def make_anchors(
    model: Any, tokenizer: Any, prompts: list[list[int]], max_new_tokens: int, seed: int
) -> list[Anchor]:
    """Let `model` continue the prompts, temperature 1, and keep what it thought at each token."""
    sampler = torch.Generator().manual_seed(seed)
    texts = write(model, prompts, {tokenizer.eos_token_id}, max_new_tokens=max_new_tokens, sampler=sampler)
    pairs = list(zip(prompts, texts, strict=True))
    return [
        anchor
        for start in range(0, len(pairs), MEMORY_ROWS)
        for anchor in _remember(model, pairs[start : start + MEMORY_ROWS], tokenizer.eos_token_id)
    ]


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
