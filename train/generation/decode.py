"""Batched text generation, memory off: greedy for answers, seeded sampling for anchors.

Not `model.generate`: on a CPU its first step multiplies a strided slice by the head, for which torch copies the
head once a row (64 rows of SmolLM2-135M: 3.6 GB in bfloat16, most of the time of a short answer).
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from train.generation.chat import batches_by_length

BATCH_ROWS = 64
BATCH_TOKENS = 4096


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Tokens that end an answer: the tokenizer's and the generation configuration's."""
    configured = model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return {token for token in [tokenizer.eos_token_id, *listed] if token is not None}


@torch.inference_mode()
def write(
    model: Any,
    prompts: Sequence[Sequence[int]],
    ends: set[int],
    *,
    max_new_tokens: int,
    sampler: torch.Generator | None = None,
    states: Any = None,
) -> list[list[int]]:
    """Continuations in the order of `prompts`, each up to and with its end token if one came.

    Greedy, or with `sampler` (a CPU generator) drawn from the model's own distribution, temperature 1. `states`, a
    cache of one row, stand before all prompts; they stay as they are.
    """
    texts: list[list[int]] = [[] for _ in prompts]
    for rows in batches_by_length([len(prompt) for prompt in prompts], BATCH_ROWS, BATCH_TOKENS):
        for row, text in zip(
            rows,
            _write_batch(model, [prompts[row] for row in rows], ends, max_new_tokens, sampler, states),
            strict=True,
        ):
            texts[row] = text
    return texts


def _write_batch(
    model: Any,
    prompts: list[Sequence[int]],
    ends: set[int],
    max_new_tokens: int,
    sampler: torch.Generator | None,
    states: Any,
) -> list[list[int]]:
    """One left-padded batch; steps until every row has ended."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor(
        [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=model.device
    )
    mask = torch.tensor(
        [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device
    )
    cache = copy.deepcopy(states)
    if cache is not None:
        mask = torch.nn.functional.pad(mask, (cache.get_seq_length(), 0), value=1)
        cache.batch_repeat_interleave(len(prompts))
    positions = (mask.cumsum(-1) - 1).clamp_min(0)[:, -width:]
    texts: list[list[int]] = [[] for _ in prompts]
    running = set(range(len(prompts)))
    for _ in range(max_new_tokens):
        output = model.get_decoder()(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        cache = output.past_key_values
        last = output.last_hidden_state[:, -1].contiguous()
        chosen = _choose(model.get_output_embeddings()(last), sampler)
        for row in sorted(running):
            texts[row].append(int(chosen[row]))
            if texts[row][-1] in ends:
                running.remove(row)
        if not running:
            break
        ids = chosen[:, None].to(model.device)
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return texts


def _choose(logits: Tensor, sampler: torch.Generator | None) -> Tensor:
    """`[rows]` next tokens from `[rows, vocabulary]`."""
    if sampler is None:
        return logits.argmax(-1).cpu()
    return torch.multinomial(logits.float().softmax(-1).cpu(), 1, generator=sampler)[:, 0]
