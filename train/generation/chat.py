"""Chat prompts of questions, rendered the same way for training and evaluation."""

from collections.abc import Sequence
from typing import Any

SHORTEST_SPAN = "Answer with the shortest possible span."
HELPFUL = "You are a helpful assistant."
SYSTEMS = (SHORTEST_SPAN, HELPFUL)  # forms and anchors are spread over these


def prompt_ids(tokenizer: Any, question: str, system: str) -> list[int]:
    """Token ids of system turn, user turn and the opening of the answer. No memory text, ever."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    return list(
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    )


def answer_ids(tokenizer: Any, answer: str) -> list[int]:
    """Token ids of an answer and the token that ends the turn."""
    return [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]


def batches_by_length(lengths: Sequence[int], max_rows: int, max_tokens: int) -> list[list[int]]:
    """Row numbers, longest rows first, in batches of at most `max_rows` rows and `max_tokens` padded tokens.

    Every row is in exactly one batch; a row longer than `max_tokens` is a batch of its own.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        if (
            batches
            and len(batches[-1]) < max_rows
            and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= max_tokens
        ):
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
