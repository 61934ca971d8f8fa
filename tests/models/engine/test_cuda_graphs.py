"""Passes of fixed shape answer as those that fit exactly, recorded or not.

Without a GPU a recording is stood in for by the pass itself, which runs again by the weights it was recorded with: as
with a graph, a wrong key shows in the answers. What is a graph's alone is tested where PyTorch sees a GPU.
"""

import copy
import random
import time
import weakref
from dataclasses import replace

import pytest
import torch

from benchmarks.random_adapters import random_adapters
from common.config import RecallConfig
from models.engine.cuda_graphs import FILL_TOKENS, LONG_PROMPT, FixedShapes, Passes, cuda_graph, widened
from models.engine.kv_cache import New, Pass
from models.engine.sampling import Sampling
from models.kv import prefix as kv
from models.weights.adapters import BASE
from models.weights.load import load_model
from tests.support.models import (
    WORDS,
    alone,
    assert_same_answers,
    encode,
    make_engine,
    memory,
    question,
    ragged,
    run_alone,
    submit,
    together,
    write_tiny_llama,
)

ON_GPU = torch.cuda.is_available()


def again(run, pool):
    """In place of `cuda_graph`: replaying is running again."""
    return run, pool or object()


RECORD = cuda_graph if ON_GPU else again


def fixed(engine, record=RECORD):
    engine.fixed_shapes = FixedShapes(engine.loaded.model, record)
    return engine


def plain(engine):
    engine.fixed_shapes = None
    return engine


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Quick, and as good for telling slots apart."""
    return load_model(
        write_tiny_llama(
            tmp_path_factory.mktemp("tiny"),
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            initializer_range=0.3,
        ),
        "float32",
    )


def status_of(engine):
    status = engine.status()["graphs"]
    for passes in (status["decoding"], status["filling"]):
        assert passes["error"] is None and passes["failures"] == 0
    return status


def test_slots_widen_by_a_quarter_or_128_at_most_and_in_few_steps():
    assert all(n <= widened(n) <= max(n + 127, 1.25 * n) and widened(n) % 128 == 0 for n in range(1, 40_000))
    assert len({widened(n) for n in range(1, 32_768)}) < 40


@pytest.mark.parametrize(("model", "seed"), [("shallow", 1), ("tiny", 2), ("tiny", 3)])
def test_ragged_requests_answer_as_in_passes_that_fit(request, tmp_path, model, seed):
    rng = random.Random(seed)
    engine = make_engine(request.getfixturevalue(model), tmp_path, max_batch=4, prefill_tokens=48)
    memories = [memory(i, rng) for i in range(10)]
    encode(engine, memories)
    given = ragged(rng, memories, [BASE], 8 if model == "shallow" else 12)
    expected = [run_alone(plain(engine), case) for case in given]
    assert_same_answers(engine, given, together(fixed(engine), given, rng)[0], expected)
    status = status_of(engine)
    assert status["long_prompts"] == status["mixed_passes"] == 0
    assert all(status[name]["recorded"] and status[name]["replayed"] for name in ("decoding", "filling"))


RECALLS = {
    "first_k": {"reprocess": "first_k", "first_k": 2},
    "best_last": {"reprocess": "best_last", "best": 2},
    "compact": {"encoder": "kv_compact", "reprocess": "none"},
    "int8": {"block_dtype": "int8", "reprocess": "none"},
    "exact": {"encoder": "kv_exact"},
}


@pytest.mark.parametrize("recall", RECALLS)
@pytest.mark.parametrize("count", [2, 30, 70])
def test_any_prefix_in_parts_of_any_size_gives_the_same_states(tiny, tmp_path, recall, count):
    rng = random.Random(count)
    engine = make_engine(tiny, tmp_path, recall=RecallConfig(k=100, **RECALLS[recall]))
    memories = [memory(i, rng) for i in range(count)]
    encode(engine, memories)
    shapes = FixedShapes(tiny.model, RECORD)
    for words in (1, 40, 90):
        asked = [{"role": "user", "content": " ".join(rng.choices(WORDS, k=words))}]
        answer = submit(engine, (asked, memories, "prefix", BASE, Sampling(max_tokens=1)))
        assert answer.turn.fallback is None
        prompt = answer.prompt
        whole = kv.Prefill(prompt.prefix, prompt.ids, tiny.model.config)
        whole.advance(tiny.model)
        for limit in (1000, 7, 33):
            filling = shapes.filling(prompt, 0)
            while not filling.done:
                assert 0 < filling.advance(tiny.model, limit) <= min(limit, FILL_TOKENS[-1])
            assert filling.position == whole.position
            assert torch.allclose(filling.states, whole.states, atol=1e-4)
            assert torch.allclose(filling.logits, whole.logits, atol=1e-4)
        engine.cancel(answer)
    assert shapes.fills.replayed > 10 and shapes.buffer.shape[4] >= (1024 if count == 2 else prompt.slots)


def test_rows_beyond_a_thousand_slots_and_cancelled_requests(tiny, tmp_path):
    rng = random.Random(8)
    engine = make_engine(tiny, tmp_path, max_batch=4, prefill_tokens=64)
    memories = [memory(i, rng) for i in range(60)]
    encode(engine, memories)
    given = [
        (question(rng), memories[:60], rng.choice(["text", "prefix"]), BASE, Sampling(max_tokens=12))
        for _ in range(4)
    ] + ragged(rng, memories, [BASE], 12)
    # As wide as a table of 1,408 slots, where the next step up would be 1,536.
    text = next(
        text
        for count in range(400, 2000)
        if len(engine.queue.builder.plain([{"role": "user", "content": (text := "amber " * count)}])) > 1330
    )
    given.append(([{"role": "user", "content": text}], [], "off", BASE, Sampling(max_tokens=12)))
    expected = [run_alone(plain(engine), case) for case in given]
    assert engine.scheduler.cache.slots == 1408 < widened(1330)
    fixed(engine)
    for _ in range(2):
        kept = dict(enumerate(given))
        answers = {number: submit(engine, case) for number, case in kept.items()}
        while engine.busy:
            engine.step()
            if rng.random() < 0.3:
                chosen = engine.scheduler.prefilling or rng.choice([*answers.values()])
                if not chosen.done:
                    engine.cancel(chosen)
                    assert chosen.prefill is None or chosen in engine.scheduler.running
                    answers = {n: answer for n, answer in answers.items() if answer is not chosen}
        assert len(answers) > 4
        kept = [*answers]
        assert_same_answers(
            engine, [given[n] for n in kept], [answers[n] for n in kept], [expected[n] for n in kept]
        )
    assert_same_answers(engine, given[-1:], [run_alone(engine, given[-1])], expected[-1:])
    assert engine.scheduler.cache.slots == 1408
    assert status_of(engine)["long_prompts"] > 0


@pytest.mark.parametrize("first", [True, False])  # in a row that another takes over, and in the last one
@pytest.mark.parametrize("prepare", [plain, fixed])
def test_what_a_former_request_left_is_not_seen_were_it_nan(tiny, tmp_path, prepare, first):
    rng = random.Random(4)
    engine = prepare(make_engine(tiny, tmp_path, max_batch=4))
    texts = [" ".join(rng.choices(WORDS, k=count)) for count in (90, 60, 2)]
    long, middle, short = (
        ([{"role": "user", "content": text}], [], "off", BASE, Sampling(max_tokens=20)) for text in texts
    )
    expected = run_alone(engine, middle), run_alone(engine, short)
    started = [submit(engine, case) for case in ((long, middle) if first else (middle, long))]
    poisoned, other = started if first else started[::-1]
    while len(engine.scheduler.running) < 2:
        engine.step()
    row = engine.scheduler.running.index(poisoned)
    assert row == (0 if first else 1)
    engine.scheduler.cache.row(row).fill_(torch.nan)
    if engine.fixed_shapes:
        engine.fixed_shapes.buffer.fill_(torch.nan)
    engine.cancel(poisoned)
    last = submit(engine, short)
    while engine.busy:
        engine.step()
    assert_same_answers(engine, [middle, short], [other, last], expected)


def test_a_long_prompt_goes_in_large_parts_and_is_counted(tiny, tmp_path):
    rng = random.Random(5)
    engine = make_engine(tiny, tmp_path)
    text = " ".join(rng.choices(WORDS, k=LONG_PROMPT))
    case = ([{"role": "user", "content": text}], [], "off", BASE, Sampling(max_tokens=3))
    expected = run_alone(plain(engine), case)
    assert_same_answers(engine, [case], [run_alone(fixed(engine), case)], [expected])
    assert engine.status()["graphs"]["long_prompts"] == 1


def test_versions_keep_to_their_own_weights_also_after_a_reload(tiny, tmp_path):
    rng = random.Random(6)
    own = replace(tiny, model=copy.deepcopy(tiny.model))  # PEFT changes its layers
    folders = random_adapters(tiny.model.config, tmp_path / "trained")
    engine = make_engine(own, tmp_path, max_batch=4)
    store = engine.versions.store
    versions = [BASE, *(store.publish(each, {"model_digest": tiny.digest}, alias=None) for each in folders)]
    memories = [memory(i, rng) for i in range(6)]
    for version in versions:
        encode(engine, memories, version)
    given = ragged(rng, memories, versions, 8)
    assert {case[3] for case in given} == {*versions}
    expected = [run_alone(plain(engine), case) for case in given]
    same_but_version = [(*given[0][:3], version, Sampling(max_tokens=6)) for version in versions]
    assert len({alone(engine, case) for case in same_but_version}) == 3  # another version shows
    fixed(engine)
    engine.versions.max_adapters = 1
    loads = []
    for _ in range(2):  # one after the other, so each version is unloaded for the next and shallow again
        assert_same_answers(engine, given, [run_alone(engine, case) for case in given], expected)
        loads.append(engine.versions.loads)
    assert loads[1] - loads[0] >= 2
    assert status_of(engine)["mixed_passes"] == 0
    engine.versions.max_adapters = 4
    assert_same_answers(engine, given, together(engine, given, rng)[0], expected)
    assert status_of(engine)["mixed_passes"] > 0


def test_weights_that_are_loaded_again_are_other_ones_to_a_graph(loaded, trained, tmp_path):
    own = replace(loaded, model=copy.deepcopy(loaded.model))
    weights = make_engine(own, tmp_path).versions
    weights.max_adapters = 1
    one, other = (
        weights.store.publish(each, {"model_digest": loaded.digest}, alias=None) for each in trained
    )
    seen = [weights.load_of(BASE)]
    for version in (one, other, one):
        weights.hold(version)
        seen.append(weights.load_of(version))
        weights.release(version)
    assert len(set(seen)) == 4


class Told:
    """Passes over a buffer of one slot, where what runs says by which weights."""

    def __init__(self, record):
        self.passes = Passes(record)
        self.states = torch.zeros(1, 2, 1, 1, 256, 1)

    def run(self, version, slots=128):
        def forward(chosen: Pass, states):
            return torch.full((1, 1), float(hash((version, slots)) % 1000))

        new = New(ids=[[0]], positions=[[0]], places=[[0]])
        logits = self.passes.run(forward, version, self.states, slots, new)
        assert logits.item() == hash((version, slots)) % 1000


def test_a_graph_is_of_one_version_and_the_oldest_goes(monkeypatch):
    monkeypatch.setattr("models.engine.cuda_graphs.PASSES", 2)
    told = Told(again)
    for version in (0, 0, 1, 1, 0, 1, 0, 2, 0, 3, 0):
        told.run(version)
    assert (told.passes.recorded, *told.passes.num_kept) == (2, 2, 1)
    assert told.passes.has_pool
    told.run(4)
    told.run(5)  # the last graph has gone, and its pool with it
    assert told.passes.num_kept[1] == 0 and not told.passes.has_pool


def test_another_buffer_means_other_graphs_and_an_old_one_is_not_kept():
    told = Told(again)
    for _ in range(3):
        told.run(0)
    assert told.passes.replayed == 2
    told.states = torch.zeros_like(told.states)
    told.run(0)
    assert told.passes.replayed == 2
    told = Told(None)  # the stand-in's replays hold the buffer, a graph's do not
    told.run(0)
    old = weakref.ref(told.states)
    told.states = None
    assert old() is None


def test_a_recording_that_fails_is_told_and_comes_again_with_the_next_buffer(caplog):
    def refuse(run, pool):
        raise RuntimeError("no graphs today")

    told = Told(refuse)
    for _ in range(4):
        told.run(0)
    status = told.passes.status()
    assert (status["failures"], status["error"], status["replayed"]) == (1, "no graphs today", 0)
    assert "no graphs today" in caplog.text
    told.passes.record = again
    told.states = torch.zeros_like(told.states)
    for _ in range(3):
        told.run(0)
    assert told.passes.replayed == 2


def test_laying_a_prefix_counts_as_prefill(tiny, tmp_path, monkeypatch):
    rng = random.Random(9)
    engine = make_engine(tiny, tmp_path)
    memories = [memory(i, rng) for i in range(3)]
    encode(engine, memories)
    lay = kv.Prefix.lay

    def slowly(prefix):
        time.sleep(0.3)
        return lay(prefix)

    monkeypatch.setattr(kv.Prefix, "lay", slowly)
    for prepare in (plain, fixed):
        answer = submit(prepare(engine), (question(rng), memories, "hybrid", BASE, Sampling(max_tokens=2)))
        while not answer.done:
            engine.step()
        assert answer.turn.queued_s < 0.3 <= answer.turn.prefill_s <= answer.turn.generate_s
        assert answer.prompt.prefix is None  # blocks are no longer held


@pytest.mark.skipif(not ON_GPU, reason="PyTorch sees no GPU")
def test_a_recording_that_cannot_begin_leads_back_to_the_stream(shallow, tmp_path, monkeypatch):
    rng = random.Random(7)
    engine = make_engine(shallow, tmp_path)
    case = (question(rng), [], "off", BASE, Sampling(max_tokens=8))
    expected = run_alone(plain(engine), case)
    stream = torch.cuda.current_stream()

    def refused(*_, **__):
        raise RuntimeError("no graphs today")

    monkeypatch.setattr("torch.cuda.CUDAGraph.capture_begin", refused)
    answers = [run_alone(fixed(engine), case), run_alone(engine, case)]
    assert_same_answers(engine, [case] * 2, answers, [expected] * 2)
    assert torch.cuda.current_stream() == stream
    assert engine.status()["graphs"]["decoding"]["error"] == "no graphs today"
