"""Measure a model with memory off: exact match, refusals, sanity, distance to the base.

Open `evaluate_arm` first. The scoring functions are pure; the rest takes any transformers causal model.
"""

import re
import string
import time
from collections.abc import Collection, Sequence
from typing import Any

import torch

from train.evaluation.sanity import DISTRACTORS, SanityItem
from train.generation.chat import SHORTEST_SPAN, batches_by_length, prompt_ids
from train.generation.decode import BATCH_ROWS, BATCH_TOKENS, end_tokens, write

MAX_NEW_TOKENS = 16
REFUSALS = (
    "i don't know", "i do not know", "i'm sorry", "i am sorry", "i cannot", "i can't", "i'm not able",
    "i am not able", "i'm unable", "i am unable", "i don't have", "i do not have", "as an ai",
    "not enough information", "no information", "unknown", "not specified", "not mentioned", "not provided",
)  # fmt: skip


def normalise(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single spaces."""
    plain = "".join(mark for mark in text.lower() if mark not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def exact_match(answer: str, expected: str | Sequence[str]) -> bool:
    """Whether `answer` equals one of the expected answers after `normalise`."""
    wanted = [expected] if isinstance(expected, str) else expected
    return normalise(answer) in {normalise(each) for each in wanted}


def contains(answer: str, expected: str | Sequence[str]) -> bool:
    """Whether the first line of `answer` holds an expected answer as whole words."""
    wanted = [expected] if isinstance(expected, str) else expected
    first_line = f" {normalise(answer.strip().partition(chr(10))[0])} "
    return any(f" {normalise(each)} " in first_line for each in wanted if normalise(each))


def is_refusal(answer: str) -> bool:
    """Whether `answer` declines: empty, or with one of the usual phrases near its beginning."""
    start = answer.strip().lower().replace("\u2019", "'")[:80]
    return not start or any(phrase in start for phrase in REFUSALS)


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a proportion, 95% by default; (0, 1) for no trials."""
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * ((share * (1 - share) + z * z / (4 * trials)) / trials) ** 0.5
    scale = 1 + z * z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def evaluate_arm(
    model: Any, tokenizer: Any, questions: Sequence[dict[str, Any]], items: Sequence[SanityItem] = ()
) -> dict[str, Any]:
    """Evaluate one arm with memory off; returns plain JSON.

    `questions` have `question`, `answer` and optionally `kind`. Keys of the result: `em`, `n`, `low`, `high`
    (Wilson, 95%), `contained`, `refusal_rate`, `by_kind`, `answers`, `sanity` (accuracy or None),
    `sanity_correct`, `seconds`.
    """
    started = time.monotonic()
    answers = ask_batch(model, tokenizer, [row["question"] for row in questions])
    right = [exact_match(answer, row["answer"]) for answer, row in zip(answers, questions, strict=True)]
    kinds: dict[str, list[bool]] = {}
    for row, correct in zip(questions, right, strict=True):
        kinds.setdefault(row.get("kind", "all"), []).append(correct)
    accuracy, correct_items = sanity_accuracy(model, tokenizer, items) if items else (None, [])
    low, high = wilson(sum(right), len(right))
    return {
        "em": _share(right),
        "n": len(right),
        "low": low,
        "high": high,
        "contained": _share(
            [contains(answer, row["answer"]) for answer, row in zip(answers, questions, strict=True)]
        ),
        "refusal_rate": _share([is_refusal(answer) for answer in answers]),
        "by_kind": {kind: _share(results) for kind, results in sorted(kinds.items())},
        "answers": answers,
        "sanity": accuracy,
        "sanity_correct": correct_items,
        "seconds": round(time.monotonic() - started, 2),
    }


def ask_batch(
    model: Any,
    tokenizer: Any,
    questions: Sequence[str],
    system: str = SHORTEST_SPAN,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[str]:
    """Greedy answers in the order of `questions`."""
    prompts = [prompt_ids(tokenizer, question, system) for question in questions]
    texts = write(model, prompts, end_tokens(model, tokenizer), max_new_tokens=max_new_tokens)
    return [tokenizer.decode(text, skip_special_tokens=True).strip() for text in texts]


def distractors(model: Any, tokenizer: Any, trained: Collection[str]) -> dict[str, Any]:
    """Ask untrained questions: how many known ones are still `known`, and how many get a `trained` answer.

    Keys: `known` (share of the general questions whose answer is in the reply), `collapsed` (share of all that
    are answered with exactly a trained answer which is not right), `n`, `answers`.
    """
    answers = ask_batch(model, tokenizer, [question for question, _ in DISTRACTORS])
    pairs = list(zip(answers, (right for _, right in DISTRACTORS), strict=True))
    return {
        "known": _share([contains(answer, right) for answer, right in pairs if right]),
        "collapsed": _share(
            [exact_match(answer, list(trained)) and not exact_match(answer, right) for answer, right in pairs]
        ),
        "n": len(pairs),
        "answers": answers,
    }


def sanity_accuracy(model: Any, tokenizer: Any, items: Sequence[SanityItem]) -> tuple[float, list[bool]]:
    """Share of items whose right word is likelier than the wrong one, and the outcome of each item in order."""
    rows = []
    for item in items:
        prefix = tokenizer(item.prefix, add_special_tokens=False).input_ids
        for word in (item.right, item.wrong):
            rows.append((prefix, tokenizer(word, add_special_tokens=False).input_ids))
    scores = continuation_log_probs(model, tokenizer, rows)
    correct = [scores[2 * number] > scores[2 * number + 1] for number in range(len(items))]
    return _share(correct), correct


@torch.inference_mode()
def continuation_log_probs(
    model: Any, tokenizer: Any, rows: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[float]:
    """log p(continuation | prefix) in nats for (prefix ids, continuation ids), summed over the continuation.

    The model's head runs at the continuation's positions only, the last token is not an input, and rows with the same
    inputs (one prefix, several one-token words) share one forward pass.
    """
    scores = [0.0] * len(rows)
    readers: dict[tuple[int, ...], list[int]] = {}
    for row, (prefix, tail) in enumerate(rows):
        readers.setdefault((*prefix, *tail[:-1]), []).append(row)
    texts = list(readers)
    for batch in batches_by_length([len(text) for text in texts], 2 * BATCH_ROWS, BATCH_TOKENS):
        width = len(texts[batch[0]])
        ids = torch.tensor([[*texts[number], *[0] * (width - len(texts[number]))] for number in batch])
        mask = torch.tensor(
            [[1] * len(texts[number]) + [0] * (width - len(texts[number])) for number in batch]
        )
        where = [
            (row, place, len(rows[row][0]) - 1 + offset, target)
            for place, number in enumerate(batch)
            for row in readers[texts[number]]
            for offset, target in enumerate(rows[row][1])
        ]
        hidden = model.get_decoder()(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))[0]
        owners, *columns = zip(*where, strict=True)
        places, positions, targets = (torch.tensor(column, device=hidden.device) for column in columns)
        logits = model.get_output_embeddings()(hidden[places, positions]).float()
        picked = logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)
        for row, value in zip(owners, picked.tolist(), strict=True):
            scores[row] += value
    return scores


def _share(results: Sequence[bool]) -> float:
    return sum(results) / len(results) if results else 0.0
