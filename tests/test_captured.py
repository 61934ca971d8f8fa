"""Passes of fixed shape answer as those that fit exactly; on a GPU they are recorded and replayed as well."""

import copy
import random
from dataclasses import replace

import pytest
import torch
from model_helpers import encode, make_engine
from test_batching import WORDS, alone, memory, question, submit, together

from models import prefix as kv
from models.adapters import BASE
from models.captured import FILL_TOKENS, LONG_PROMPT, FixedShapes, widened
from models.sampling import Sampling

ON_GPU = torch.cuda.is_available()
MODES = ["prefix", "prefix", "hybrid", "text", "off"]


def fixed(engine):
    """The same engine with fixed shapes; on a CPU they run as they are."""
    engine._fixed = FixedShapes(engine.loaded.model, record=ON_GPU)
    return engine


def plain(engine):
    engine._fixed = None
    return engine


def cases(rng, memories, versions, count):
    return [
        (
            question(rng),
            rng.sample(memories, rng.randint(1, 4)),
            rng.choice(MODES),
            rng.choice(versions),
            Sampling(max_tokens=rng.randint(1, 12)),
        )
        for _ in range(count)
    ]


def test_slots_widen_by_a_quarter_or_128_at_most_and_in_few_steps():
    assert all(n <= widened(n) <= max(n + 127, 1.25 * n) and widened(n) % 128 == 0 for n in range(1, 40_000))
    assert len({widened(n) for n in range(1, 32_768)}) < 40


@pytest.mark.parametrize("seed", [1, 2])
def test_ragged_requests_answer_as_in_passes_that_fit(loaded, tmp_path, seed):
    rng = random.Random(seed)
    engine = make_engine(loaded, tmp_path, max_batch=4, prefill_tokens=48)
    memories = [memory(i, rng) for i in range(10)]
    encode(engine, memories)
    given = cases(rng, memories, [BASE], 12)
    expected = [alone(plain(engine), case) for case in given]
    assert together(fixed(engine), given, rng)[0] == expected
    status = engine.status()["graphs"]
    assert status["long_prompts"] == status["mixed_passes"] == 0
    for passes in (status["decoding"], status["filling"]):
        assert passes["error"] is None
        assert bool(passes["recorded"] and passes["replayed"]) == ON_GPU


def test_a_prompt_in_parts_of_any_size_gives_the_same_logits(loaded, tmp_path):
    rng = random.Random(3)
    engine = make_engine(loaded, tmp_path)
    memories = [memory(i, rng) for i in range(5)]
    encode(engine, memories)
    shapes = FixedShapes(loaded.model, record=ON_GPU)
    for words in (1, 60, 300):
        asked = [{"role": "user", "content": " ".join(rng.choices(WORDS, k=words))}]
        answer = submit(engine, (asked, memories[:3], "prefix", BASE, Sampling(max_tokens=1)))
        whole = kv.Prefill(answer.prompt.prefix, answer.prompt.ids, loaded.model.config)
        whole.advance(loaded.model)
        for limit in (1000, 7 if words < 300 else 100, 33):
            filling = shapes.filling(answer.prompt, 0)
            while not filling.done:
                assert 0 < filling.advance(loaded.model, limit) <= min(limit, FILL_TOKENS[-1])
            assert filling.position == whole.position
            assert torch.allclose(filling.states, whole.states, atol=1e-3)
            assert torch.allclose(filling.logits, whole.logits, atol=1e-3)
        engine.cancel(answer)


def test_what_a_former_prompt_left_in_the_buffer_is_not_seen(loaded, tmp_path):
    rng = random.Random(4)
    engine = make_engine(loaded, tmp_path)
    long = (question(rng) * 3, [], "off", BASE, Sampling(max_tokens=2))
    short = ([{"role": "user", "content": "Hm?"}], [], "off", BASE, Sampling(max_tokens=6))
    expected = alone(plain(engine), short)
    alone(fixed(engine), long)
    engine._fixed._buffer[..., 40:, :] = 1e4  # finite, as all that was ever written
    assert alone(engine, short) == expected


def test_a_long_prompt_goes_in_large_parts_and_is_counted(loaded, tmp_path):
    rng = random.Random(5)
    engine = make_engine(loaded, tmp_path)
    text = " ".join(rng.choices(WORDS, k=LONG_PROMPT))
    case = ([{"role": "user", "content": text}], [], "off", BASE, Sampling(max_tokens=3))
    expected = alone(plain(engine), case)
    assert alone(fixed(engine), case) == expected
    assert engine.status()["graphs"]["long_prompts"] == 1


def test_versions_keep_to_their_own_weights_also_after_a_reload(loaded, trained, tmp_path):
    rng = random.Random(6)
    own = replace(loaded, model=copy.deepcopy(loaded.model))  # PEFT changes its layers
    engine = make_engine(own, tmp_path, max_batch=4)
    store = engine._weights._store
    versions = [BASE, *(store.publish(each, {"model_digest": loaded.digest}, alias=None) for each in trained)]
    memories = [memory(i, rng) for i in range(6)]
    for version in versions:
        encode(engine, memories, version)
    given = cases(rng, memories, versions, 12)
    expected = [alone(plain(engine), case) for case in given]
    fixed(engine)
    engine._weights._max = 1
    for _ in range(2):  # one after the other, so each version is unloaded for the next and loaded again
        assert [alone(engine, case) for case in given] == expected
    assert engine.status()["graphs"]["mixed_passes"] == 0
    engine._weights._max = 4
    assert together(engine, given, rng)[0] == expected
    assert engine.status()["graphs"]["mixed_passes"] > 0


@pytest.mark.skipif(not ON_GPU, reason="PyTorch sees no GPU")
def test_a_recording_that_fails_is_told_and_answers_go_on(loaded, tmp_path, monkeypatch):
    rng = random.Random(7)
    engine = make_engine(loaded, tmp_path)
    case = (question(rng), [], "off", BASE, Sampling(max_tokens=8))
    expected = alone(plain(engine), case)

    def refused(*_, **__):
        raise RuntimeError("no graphs today")

    monkeypatch.setattr("torch.cuda.graph", refused)
    assert alone(fixed(engine), case) == alone(engine, case) == expected
    assert engine.status()["graphs"]["decoding"]["error"] == "no graphs today"
