"""Texts to continue: their own log-probabilities against a direct pass, token ids, no answer at all."""

import pytest
import torch

from common.errors import InvalidInput
from models.encoders.encoding_queue import RecalledMemory
from models.kv.prefix import Prefill
from models.text.messages import TokenText
from tests.support.models import ask, encode, make_engine

TEXT = "The harbour of Lisbon lies on the Tagus, na\u00efve caf\u00e9s \U0001f680 and all."
ADA = RecalledMemory(id="ada", text="Ada Quill lives in Lisbon.")
NEAR = 1e-3  # nats; what a request may differ from a direct pass


@pytest.fixture(scope="module")
def engine(loaded, tmp_path_factory):
    return make_engine(loaded, tmp_path_factory.mktemp("echo"))


@torch.inference_mode()
def naive(loaded, ids):
    """The log-probability of each id but the first, in one pass of transformers."""
    scores = loaded.model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return [float(scores[i, token]) for i, token in enumerate(ids[1:])]


def logprobs(turn):
    return [entry["logprob"] for entry in turn.logprobs]


def test_log_probabilities_of_the_prompt_are_those_of_a_direct_pass(engine, loaded):
    ids = loaded.tokenizer.encode(TEXT)
    for messages in (TEXT, TokenText(tuple(ids))):
        text, turn = ask(
            engine, [], "off", messages=messages, echo=True, logprobs=2, max_tokens=3, end_logprob=True
        )
        assert text.startswith(TEXT) and turn.prompt_tokens == len(ids)
        assert turn.logprobs[0]["logprob"] is None
        assert logprobs(turn)[1 : len(ids)] == pytest.approx(naive(loaded, ids), abs=NEAR)
        assert bytes(byte for entry in turn.logprobs for byte in entry["bytes"]).decode().startswith(text)
        assert all(len(entry["top_logprobs"]) == 2 for entry in turn.logprobs[1:])


@pytest.mark.parametrize("step", [1, 3, 7, None])
@pytest.mark.parametrize("judged", [0, 1, 5, 100])
def test_any_chunks_judge_alike(loaded, step, judged):
    ids = loaded.tokenizer.encode(TEXT)
    judged = min(judged, len(ids))
    told = []
    prefill = Prefill(
        None,
        ids,
        loaded.model.config,
        lambda tokens, logits: told.extend(zip(tokens, logits, strict=True)),
        judged,
    )
    while not prefill.done:
        prefill.advance(loaded.model, step)
    expected = naive(loaded, ids)[-judged:] if judged else []
    assert [token for token, _ in told] == ids[len(ids) - len(expected) :]
    got = [float(row.float().log_softmax(-1)[token]) for token, row in told]
    assert got == pytest.approx(expected, abs=NEAR)


@pytest.mark.parametrize("mode", ["prefix", "text"])
def test_behind_memories_every_token_of_the_text_has_one(engine, loaded, mode):
    encode(engine, [ADA])
    ids = loaded.tokenizer.encode(TEXT)
    builder = engine.queue.builder
    text, turn = ask(engine, [ADA], mode, messages=TEXT, echo=True, logprobs=0, max_tokens=0)
    assert (text, turn.finish_reason, turn.completion_tokens) == (TEXT, "length", 0)
    whole = builder.head + builder.memory(ADA.text) + builder.tail(TEXT)
    assert logprobs(turn) == pytest.approx(naive(loaded, whole)[-len(ids) :], abs=NEAR)


def test_no_answer_and_no_echo_is_nothing(engine):
    assert ask(engine, [], "off", messages=TEXT, max_tokens=0)[0] == ""


def test_the_end_of_an_answer_is_reported_where_it_is_asked_for(engine, loaded):
    chat = [{"role": "user", "content": "Say yes."}]
    options = {"messages": chat, "logprobs": 0, "max_tokens": 200}
    without, turn = ask(engine, [], "off", **options)
    with_end, other = ask(engine, [], "off", **options, end_logprob=True)
    assert with_end == without and turn.finish_reason == "stop"
    assert len(other.logprobs) == len(turn.logprobs) + 1 == turn.completion_tokens + 1
    assert bytes(other.logprobs[-1]["bytes"]).decode() == loaded.tokenizer.eos_token


@pytest.mark.parametrize("token", [10**7, -1])
def test_ids_outside_the_vocabulary_are_named(engine, token):
    with pytest.raises(InvalidInput, match=f"token id {token} at place 1"):
        engine.token_text([5, token])
