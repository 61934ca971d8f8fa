"""Training the learned encoder (`models.encoders.soft_prompt`): the model is its own teacher.

With a memory as text the model answers a question; with the memory's soft embeddings in the text's place it learns to
give the same answer. The model stays as it is: only the encoder has a gradient. Open `train_soft_prompt` first.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.encoders.soft_prompt import SoftPrompt
from models.kv import prefix as kv
from models.text.prompt import PromptBuilder
from models.weights.load import LoadedModel

ANSWER_TOKENS = 16
TOP = 32  # of the teacher's next tokens, the likeliest


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A memory and a question about it."""

    text: str
    question: str


@dataclass(frozen=True)
class Taught:
    """What the teacher said: ids of `memory`, `tail` and `answer`; for each token of the answer the teacher's `TOP`
    likeliest, `[answer, TOP]` ids, and their probabilities among themselves."""

    memory: list[int]
    tail: list[int]
    answer: list[int]
    likely: Tensor
    shares: Tensor


def train_soft_prompt(
    loaded: LoadedModel,
    lessons: Sequence[Lesson],
    *,
    slots: int = 8,
    steps: int = 200,
    batch_size: int = 4,
    lr: float = 1e-3,
    seed: int = 1337,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> SoftPrompt:
    """An encoder trained for `steps` steps of AdamW over lessons drawn at random; the rate falls to nothing."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    builder = PromptBuilder(loaded.tokenizer)
    taught = [teach(loaded, builder, lesson) for lesson in lessons]
    head = kv.encode_head(loaded.model, builder.head).clone()
    module = SoftPrompt(loaded.model.config.hidden_size, slots).to(loaded.device)
    optimiser = torch.optim.AdamW(module.parameters(), lr=lr)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = lr * (1.0 - step / steps)
        loss = soft_loss(loaded.model, module, head, rng.sample(taught, min(batch_size, len(taught))))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        report(step, loss.item())
    return module.eval().requires_grad_(False)


def teach(loaded: LoadedModel, builder: PromptBuilder, lesson: Lesson) -> Taught:
    """The model's own greedy answer with the memory as text."""
    memory = builder.memory(lesson.text)
    tail = builder.tail([{"role": "user", "content": lesson.question}])
    cache, logits, position = kv.prefill(loaded.model, None, builder.head + memory + tail)
    answer: list[int] = []
    seen: list[Tensor] = []
    while not answer or (len(answer) < ANSWER_TOKENS and answer[-1] not in loaded.end_ids):
        if answer:
            logits = kv.step(loaded.model, cache, answer[-1], position)
            position += 1
        answer.append(int(logits.argmax()))
        seen.append(logits.float())
    best = torch.stack(seen).topk(TOP)
    return Taught(memory, tail, answer, best.indices, best.values.softmax(-1))


def soft_loss(model: Any, module: SoftPrompt, head: Tensor, batch: Sequence[Taught]) -> Tensor:
    """Cross-entropy, in nats a token, of the answers behind soft embeddings against the teacher's. One forward pass,
    padded on the right."""
    embed = model.get_input_embeddings()

    def embedded(ids: Sequence[int]) -> Tensor:
        with torch.no_grad():
            found: Tensor = embed(torch.tensor([*ids], device=head.device)).float()
        return found

    rows = [
        torch.cat((module(embedded(one.memory)), embedded([*one.tail, *one.answer[:-1]]))) for one in batch
    ]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.dtype)
    start = head.shape[3]
    positions = torch.arange(start, start + padded.shape[1], device=head.device).expand(len(batch), -1)
    hidden = model.model(
        inputs_embeds=padded,
        past_key_values=kv.as_cache(head, model.config, batch=len(batch)),
        position_ids=positions,
    ).last_hidden_state
    told = [hidden[row, len(rows[row]) - len(one.answer) : len(rows[row])] for row, one in enumerate(batch)]
    logprobs = model.lm_head(torch.cat(told)).float().log_softmax(-1)
    likely, shares = torch.cat([one.likely for one in batch]), torch.cat([one.shares for one in batch])
    return -(shares * logprobs.gather(1, likely)).sum(-1).mean()
