"""The official Python client of OpenAI against a running instance: what it sends is understood, what it gets back
it can read, and what goes wrong is the exception its users expect."""

import base64
import math
import time
from pathlib import Path

import numpy as np
import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from transformers import AutoTokenizer

from models.weights.load import dequantised, resolve
from serve.access import Access
from serve.http import install_error_handlers
from serve.routes import language
from serve.schemas.requests import ChatBody
from tests.support.answers import (
    TOP,
    assert_same_answer,
    chat_entries,
    completion_entries,
)

QUESTION = [{"role": "user", "content": "Where does Ada Quill live?"}]
SAMPLED = {"temperature": 1.2, "seed": 7, "max_tokens": 10}
SCORED = {"logprobs": True, "top_logprobs": TOP}


@pytest.fixture(scope="module")
def client(instance):
    with openai.OpenAI(base_url=f"{instance.url}/v1", api_key="none", max_retries=0, timeout=180) as made:
        yield made


@pytest.fixture(scope="module")
def remembering(instance):
    """`extra_body` of a request whose namespace knows the answer."""
    import httpx

    memories = [{"id": "ada", "text": "Ada Quill lives in Lisbon."}]
    body = {"namespace": "openai", "memories": memories}
    assert httpx.post(f"{instance.url}/v1/memories", json=body, timeout=60).status_code == 200
    return {"memory": {"namespace": "openai", "mode": "text"}}


def chat(client, **more):
    return client.chat.completions.create(
        **{"model": "base", "messages": QUESTION, "max_tokens": 12, "extra_body": off(), **more}
    )


def off():
    return {"memory": {"mode": "off"}}


def streamed(chunks):
    """Texts, reasons and log-probabilities by choice."""
    texts, reasons, logprobs = {}, {}, {}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
            if choice.logprobs:
                logprobs.setdefault(choice.index, []).extend(choice.logprobs.content)
    return texts, reasons, logprobs


def test_the_memory_field_goes_in_the_extra_body(client, remembering):
    reply = chat(client, extra_body=remembering)
    assert "Lisbon" in reply.choices[0].message.content
    assert reply.memory["injected"] == ["ada"] and reply.usage.total_tokens > 0


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(dequantised(Path(resolve("smollm2-135m"))))


def assert_same_draw(one, other, index, tokenizer):
    """Two answers that were drawn with the seed of choice `index`."""
    drawn = {"temperature": SAMPLED["temperature"], "seed": SAMPLED["seed"] + index}
    assert_same_answer(chat_entries(one), chat_entries(other), **drawn, tokenizer=tokenizer)


def test_choices_come_in_order_and_follow_their_seeds(client, tokenizer):
    several = chat(client, n=3, **SAMPLED, **SCORED)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    for i, choice in enumerate(several.choices):
        [alone] = chat(client, **{**SAMPLED, **SCORED, "seed": SAMPLED["seed"] + i}).choices
        assert_same_draw(choice.logprobs.content, alone.logprobs.content, i, tokenizer)
    assert len({choice.message.content for choice in several.choices}) > 1
    assert several.usage.completion_tokens >= 3


def test_choices_stream_side_by_side(client, tokenizer):
    asked = {"n": 2, **SAMPLED, **SCORED}
    whole = chat(client, **asked)
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}, **asked))
    texts, reasons, logprobs = streamed(chunks)
    assert texts.keys() == logprobs.keys() == {0, 1}
    same = True  # unless the two choices ran in other steps, and a near-tie fell otherwise
    for choice in whole.choices:
        other = logprobs[choice.index]
        assert_same_draw(choice.logprobs.content, other, choice.index, tokenizer)
        if [e.token for e in other] == [e.token for e in choice.logprobs.content]:
            assert texts[choice.index] == choice.message.content
            assert reasons[choice.index] == choice.finish_reason
        else:
            same = False
    assert not chunks[-1].choices and (chunks[-1].usage == whole.usage or not same)
    assert sum(bool(getattr(chunk, "memory", None)) for chunk in chunks) == 1


def test_log_probabilities_whole_and_streamed(client):
    asked = {"logprobs": True, "top_logprobs": 3}
    entries = chat(client, **asked).choices[0].logprobs.content
    assert all(entry.top_logprobs[0].token == entry.token for entry in entries)  # greedy
    assert all(len(entry.top_logprobs) == 3 and entry.logprob <= 0.0 for entry in entries)
    assert sum(math.exp(other.logprob) for other in entries[0].top_logprobs) <= 1.0 + 1e-6
    text = b"".join(bytes(entry.bytes) for entry in entries).decode()
    assert text == chat(client).choices[0].message.content
    _, _, told = streamed(chat(client, stream=True, **asked))
    assert [entry.token for entry in told[0]] == [entry.token for entry in entries]
    assert chat(client, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []
    assert chat(client).choices[0].logprobs is None


def test_a_stop_string_ends_the_answer_before_it(client):
    whole = chat(client).choices[0].message.content
    stop = whole.split()[2]
    cut = chat(client, stop=["never said", stop]).choices[0]
    assert cut.message.content == whole[: whole.index(stop)] and cut.finish_reason == "stop"
    assert chat(client, stop=stop).choices[0].message.content == cut.message.content


def test_completions_continue_texts(client, remembering):
    prompts = ["The capital of France is", "One, two, three,"]
    request = {"model": "base", "max_tokens": 6, "extra_body": off()}
    both = client.completions.create(prompt=prompts, n=2, logprobs=2, **request)
    assert both.object == "text_completion" and [c.index for c in both.choices] == [0, 1, 2, 3]
    first, second, other = (completion_entries(both.choices[i].logprobs) for i in range(3))
    assert_same_answer(first, second)  # greedy
    assert "Paris" in both.choices[0].text and "four" in both.choices[2].text
    told = both.choices[0].logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.text_offset) == 6
    assert all(
        len(best) == 2 and token in best for token, best in zip(told.tokens, told.top_logprobs, strict=True)
    )
    alone = client.completions.create(prompt=prompts[0], logprobs=2, **request)
    assert_same_answer(completion_entries(alone.choices[0].logprobs), first)
    assert alone.memory["mode"] == "off"
    assert len(both.memory) == 2
    chunks = list(client.completions.create(prompt=prompts, stream=True, logprobs=2, **request))
    texts, entries = ["", ""], [[], []]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            entries[choice.index] += completion_entries(choice.logprobs) if choice.logprobs else []
    assert texts == ["".join(token for token, _ in answer) for answer in entries]
    assert_same_answer(entries[0], first)
    assert_same_answer(entries[1], other)
    asked = {**request, "max_tokens": 4, "extra_body": remembering}
    taught = client.completions.create(prompt="Ada Quill lives in the city of", **asked)
    assert taught.memory["injected"] == ["ada"]


def test_completions_echo_their_prompt_with_its_log_probabilities(client, remembering):
    tokenizer = AutoTokenizer.from_pretrained(dequantised(Path(resolve("smollm2-135m"))))
    prompts = ["The capital of France is", "na\u00efve \U0001f680 caf\u00e9s"]
    ids = [tokenizer.encode(text) for text in prompts]
    request = {"model": "base", "echo": True, "max_tokens": 1, "logprobs": 1, "extra_body": off()}
    both, by_ids = (client.completions.create(prompt=given, **request) for given in (prompts, ids))
    for text, tokens, choice, same in zip(prompts, ids, both.choices, by_ids.choices, strict=True):
        told = choice.logprobs
        assert (
            choice.text.startswith(text) and told.token_logprobs[0] is None and told.top_logprobs[0] is None
        )
        assert len(told.tokens) == len(tokens) + 1 == len(told.text_offset)
        assert told.text_offset[0] == 0 and sorted(told.text_offset) == told.text_offset
        assert all(
            max(best.values()) >= chosen
            for best, chosen in zip(told.top_logprobs[1:], told.token_logprobs[1:], strict=True)
        )
        assert same.text == choice.text
        assert same.logprobs.token_logprobs[1:] == pytest.approx(told.token_logprobs[1:], abs=1e-3)
    alone = client.completions.create(prompt=ids[1], **{**request, "max_tokens": 0})
    assert alone.choices[0].text == prompts[1] and alone.usage.completion_tokens == 0
    assert alone.choices[0].finish_reason == "length" and len(alone.choices[0].logprobs.tokens) == len(ids[1])
    assert any(token.startswith("bytes:\\x") for token in alone.choices[0].logprobs.tokens)
    chunks = [
        c
        for chunk in client.completions.create(prompt=prompts[1], stream=True, **request)
        for c in chunk.choices
    ]
    assert "".join(chunk.text for chunk in chunks) == both.choices[1].text
    assert sum(len(c.logprobs.tokens) for c in chunks if c.logprobs) == len(ids[1]) + 1
    taught = "Ada Quill lives in the city of"
    told = client.completions.create(prompt=taught, **{**request, "extra_body": remembering})
    assert told.choices[0].text.startswith(taught) and told.memory["injected"] == ["ada"]
    assert told.choices[0].logprobs.token_logprobs[0] < 0  # the memory comes before it


def test_an_answer_that_ends_at_once_has_log_probabilities(client):
    prompt = "<|im_start|>user\nSay yes.<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>"
    request = {"model": "base", "prompt": prompt, "max_tokens": 4, "logprobs": 1, "extra_body": off()}
    request |= {"logit_bias": None}
    choice = client.completions.create(**request).choices[0]
    assert choice.logprobs is not None and len(choice.logprobs.tokens) >= 1


@pytest.mark.parametrize(
    "bad, param",
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [[1], []]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1 << 40]}, "prompt"),
        ({"prompt": "x", "max_tokens": -1}, "max_tokens"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": "x", "best_of": 3}, "best_of"),
    ],
)
def test_bad_completions_say_which_parameter(client, bad, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="base", extra_body=off(), **bad)
    assert caught.value.param == param and caught.value.code


def test_a_prompt_is_counted_once_for_all_its_answers(client):
    request = {"model": "base", "prompt": ["One, two,", "A goat is"], "max_tokens": 2, "extra_body": off()}
    one, three = (client.completions.create(n=n, **request).usage for n in (1, 3))
    assert one.prompt_tokens == three.prompt_tokens > 4
    assert three.completion_tokens == 12 and three.total_tokens == three.prompt_tokens + 12


def test_embeddings_in_both_encodings(client):
    texts = ["Ada lives in Lisbon.", "A goat."]
    plain = client.embeddings.create(model="minilm", input=texts, encoding_format="float")
    vectors = np.array([row.embedding for row in plain.data], np.float32)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    packed = client.embeddings.create(model="minilm", input=texts)  # base64 on the wire
    assert np.array_equal(np.array([row.embedding for row in packed.data], np.float32), vectors)
    raw = client.embeddings.with_raw_response.create(
        model="minilm", input="A goat.", encoding_format="base64"
    )
    sent = raw.http_response.json()["data"][0]["embedding"]
    assert np.allclose(np.frombuffer(base64.b64decode(sent), "<f4"), vectors[1], atol=1e-6)
    assert plain.usage.prompt_tokens == plain.usage.total_tokens > len(" ".join(texts).split())


def test_embeddings_by_another_name_and_never_of_unknown_token_ids(client):
    known = client.embeddings.create(model="minilm", input="A goat.")
    alias = client.embeddings.create(model="text-embedding-ada-002", input="A goat.")
    assert alias.model == "text-embedding-ada-002" and alias.data[0].embedding == known.data[0].embedding
    assert client.models.retrieve("text-embedding-ada-002").id == "text-embedding-ada-002"
    for ids in ([32, 47000, 13], [[32, 47000, 13], [5]]):  # as LangChain sends them
        with pytest.raises(openai.BadRequestError, match=r"embed\.token_ids") as caught:
            client.embeddings.create(model="text-embedding-ada-002", input=ids)
        assert caught.value.param == "input"


def test_models_are_listed_and_found(client):
    names = [model.id for model in client.models.list()]
    assert names[:2] == ["base", "smollm2-135m"] and names[-1] == "minilm"
    assert client.models.retrieve("base").id == "base"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


@pytest.mark.parametrize(
    ("bad", "param"),
    [
        ({"messages": []}, "messages"),
        ({"n": 0}, "n"),
        ({"n": 65}, "n"),  # never fits in serve.max_queued
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"temperature": 2.5}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"extra_body": {"memory": {"mode": "magic"}}}, "memory.mode"),
    ],
)
def test_bad_requests_say_which_parameter(client, bad, param):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, **bad)
    assert caught.value.param == param and caught.value.code


def test_what_does_not_exist_is_not_found(client):
    with pytest.raises(openai.NotFoundError, match="known: base"):
        chat(client, model="gpt-4")
    with pytest.raises(openai.NotFoundError, match="has 'minilm'"):
        client.embeddings.create(model="text-embedding-3-small", input="x")
    with pytest.raises(openai.BadRequestError, match="384"):
        client.embeddings.create(model="minilm", input="x", dimensions=64)


def test_absent_and_null_parameters_mean_the_same(client):
    assert chat(client, n=None, stop=None, temperature=None, seed=None).choices


def test_an_unknown_key_is_refused():
    app = FastAPI()
    install_error_handlers(app)
    app.include_router(language.router)
    app.state.access = Access({"mine": ["a"]})
    app.state.parts = app.state.answers = None  # nobody gets that far
    with TestClient(app, base_url="http://test/v1") as transport:
        client = openai.OpenAI(
            base_url="http://test/v1", api_key="yours", http_client=transport, max_retries=0
        )
        with pytest.raises(openai.AuthenticationError, match="Bearer KEY"):
            client.embeddings.create(model="minilm", input="x")


def test_a_full_queue_is_refused_and_a_client_that_leaves_makes_room(client, http):
    long = {"n": 64, "stream": True, "max_tokens": 2000, "temperature": 2.0, "seed": 1}
    stream = chat(client, **long)
    next(iter(stream))
    with pytest.raises(openai.RateLimitError, match="64 requests are in flight") as caught:
        chat(client)
    assert float(caught.value.response.headers["retry-after"]) > 0
    stream.close()
    until_idle(http)
    assert chat(client).choices


def test_a_client_that_gives_up_waiting_makes_room_too(client, http):
    with pytest.raises(openai.APITimeoutError):
        chat(client.with_options(timeout=1.0), max_tokens=4000, temperature=2.0, seed=1)
    until_idle(http)


def until_idle(http):
    deadline = time.monotonic() + 60
    while (engine := http.get("/ready").json()["engine"])["running"] or engine["waiting"]:
        assert time.monotonic() < deadline, engine
        time.sleep(0.1)


def test_the_newer_name_of_the_limit_goes_before_the_older_one():
    said = [{"role": "user", "content": "Hello"}]
    both = ChatBody(messages=said, max_tokens=3, max_completion_tokens=5)
    assert [sampling["max_tokens"] for sampling in both.sampling(99)] == [5]
    assert ChatBody(messages=said, max_tokens=3).sampling(99)[0]["max_tokens"] == 3
    assert ChatBody(messages=said).sampling(99)[0]["max_tokens"] == 99
