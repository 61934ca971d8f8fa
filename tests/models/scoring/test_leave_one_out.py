"""Leave-one-out against its oracle: one full pass for every omission and conversation."""

import copy

import numpy as np
import pytest
import torch

from common.errors import InvalidInput
from models.scoring.leave_one_out import LeaveOneOut, ScoreContext, divergences, naive_row, score_transcript
from models.text.prompt import PromptBuilder
from tests.support.hidden import FACTS, TOLERANCE


def talk(builder, *turns):
    roles = ["user", "assistant"]
    return builder.transcript(
        [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)], memories=True
    )


@pytest.fixture(scope="module")
def context(builder):
    return ScoreContext(
        builder.head,
        [builder.memory(fact) for fact in FACTS],
        [
            talk(builder, "Where does Ada live?", "Lisbon"),
            talk(
                builder, "What does Bo do?", "Bo is a baker.", "And what does Dee play?", "The harp, I think."
            ),
            talk(builder, "Which animal does Cy keep?", "A goat"),
        ],
    )


@pytest.mark.parametrize(
    ("model", "batch_tokens"),
    [("tiny", 64), ("tiny", 4096), pytest.param("loaded", 64, marks=pytest.mark.slow)],
)
def test_equals_the_naive_computation(request, context, model, batch_tokens):
    loaded = request.getfixturevalue(model)
    fast = LeaveOneOut(loaded.model, context, batch_tokens=batch_tokens)
    rows = [naive_row(loaded.model, context, omit) for omit in (None, *range(len(FACTS)))]
    for omit, naive in zip((None, *range(len(FACTS))), rows, strict=True):
        assert np.abs(fast.row(omit) - naive).max() < TOLERANCE
    assert all(np.abs(row - rows[0]).max() > 100 * TOLERANCE for row in rows[1:])


def test_the_null_row_is_noise_and_true_memories_are_not(loaded, context):
    fast = LeaveOneOut(loaded.model, context)
    baseline = fast.row(None)
    noise = np.abs(fast.null_row() - baseline).max()
    matrix = divergences(baseline, np.stack([fast.row(i) for i in range(len(FACTS))]))
    assert noise < TOLERANCE
    assert matrix[0, 0] > 1.0  # Ada's city
    assert matrix.shape == (len(FACTS), context.responses) == (4, 4)


def test_single_memory_and_first_and_last(loaded, builder):
    context = ScoreContext(
        builder.head, [builder.memory("Ada lives in Oslo.")], [talk(builder, "Where is Ada?", "Oslo")]
    )
    fast = LeaveOneOut(loaded.model, context)
    assert np.abs(fast.row(0) - naive_row(loaded.model, context, 0)).max() < TOLERANCE
    assert np.abs(fast.null_row() - fast.row(None)).max() < TOLERANCE


def test_score_counts_each_assistant_turn_in_order(loaded, builder):
    transcript = builder.transcript(
        [
            {"role": "user", "content": "What is the capital of France?"},
            {"role": "assistant", "content": "Paris"},
            {"role": "user", "content": "And of Italy?"},
            {"role": "assistant", "content": "Rome is."},
        ],
        memories=False,
    )
    scores = score_transcript(loaded.model, transcript)
    assert [score["entry_index"] for score in scores] == [1, 3]
    assert [score["num_tokens"] for score in scores] == [1, 3]
    assert all(score["total_logprob"] < 0 for score in scores)


def direct(loaded, messages):
    """log p of each assistant message, by transformers alone: the rendered chat template in one pass."""
    tokenizer, model = loaded.tokenizer, loaded.model
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    encoded = tokenizer(text, return_tensors="pt", return_offsets_mapping=True, add_special_tokens=False)
    ids, offsets = encoded["input_ids"][0], encoded["offset_mapping"][0].tolist()
    with torch.inference_mode():
        logprobs = model(input_ids=encoded["input_ids"]).logits[0].float().log_softmax(-1)
    told, at = [], 0
    for message in messages:
        content = message["content"]
        at = text.index(content, at)
        if message["role"] == "assistant":
            inside = [i for i, (a, b) in enumerate(offsets) if at <= a and b <= at + len(content)]
            told.append((sum(float(logprobs[i - 1, ids[i]]) for i in inside), len(inside)))
        at += len(content)
    return told


ASKED = [{"role": "user", "content": "Where does Ada live?"}]
SAID = [{"role": "assistant", "content": "Ada lives in Lisbon, near the old tram line."}]
ON = [{"role": "user", "content": "Since when?"}, {"role": "assistant", "content": "Since March."}]


@pytest.mark.parametrize(
    "messages",
    [
        [*ASKED, *SAID],  # with the template's own system turn
        [*ASKED, *SAID, *ON],
        [{"role": "system", "content": "You are terse."}, *ASKED, *SAID],
        [{"role": "system", "content": ""}, *ASKED, *SAID, *ON],
    ],
)
def test_a_score_is_what_transformers_computes_for_the_chat_template(loaded, builder, messages):
    scores = score_transcript(loaded.model, builder.transcript(messages, memories=False))
    expected = direct(loaded, messages)
    assert [score["num_tokens"] for score in scores] == [tokens for _, tokens in expected]
    assert [score["total_logprob"] for score in scores] == pytest.approx([p for p, _ in expected], abs=1e-3)


def test_a_template_that_strips_messages_is_followed(loaded):
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message['content'] +", "message['content'] | trim +"
    )
    padded = [*ASKED, {"role": "assistant", "content": "  Ada lives in Lisbon.\n"}]
    [score] = score_transcript(loaded.model, PromptBuilder(tokenizer).transcript(padded, memories=False))
    bare = [*ASKED, {"role": "assistant", "content": "Ada lives in Lisbon."}]
    [[expected, tokens]] = direct(loaded, bare)
    assert score["num_tokens"] == tokens and score["total_logprob"] == pytest.approx(expected, abs=1e-3)


def test_nothing_to_score_is_an_error(builder):
    with pytest.raises(InvalidInput, match="no assistant message"):
        builder.transcript([{"role": "user", "content": "hello"}], memories=False)
