"""Requests that run together answer as each would alone."""

import copy
import random
import threading
from dataclasses import replace

import pytest
import torch

from common.config import RecallConfig
from common.errors import InvalidInput
from models.encoders.encoding_queue import RecalledMemory
from models.engine.bias_overlay import Overlay, logit_bias, values_of
from models.engine.kv_cache import KVCache
from models.engine.request import Request
from models.engine.sampling import Sampling, choose
from models.weights.adapters import BASE
from tests.support.models import (
    WORDS,
    alone,
    assert_same_answers,
    case_of,
    encode,
    make_engine,
    memory,
    question,
    ragged,
    run_all,
    run_alone,
    submit,
    text_of,
    together,
)


def test_ragged_requests_that_join_and_leave_in_random_order_answer_as_alone(shallow, tmp_path):
    rng = random.Random(7)
    engine = make_engine(shallow, tmp_path, max_batch=4, prefill_tokens=16)
    memories = [memory(i, rng) for i in range(10)]
    encode(engine, memories)
    cases = ragged(rng, memories, [BASE], 8)
    expected = [run_alone(engine, case) for case in cases]
    assert len({text_of(answer) for answer in expected}) > 5

    answers, most = together(engine, cases, rng)
    assert most >= 3
    assert_same_answers(engine, cases, answers, expected)


def test_a_long_prompt_in_parts_answers_as_in_one_and_others_keep_their_pace(shallow, tmp_path):
    rng = random.Random(3)
    engine = make_engine(shallow, tmp_path, prefill_tokens=16)
    short = (question(rng), [], "off", BASE, Sampling(max_tokens=20))
    text = " ".join(rng.choices(WORDS, k=80))
    long = (
        [{"role": "user", "content": f"{text}\nRepeat the first word."}],
        [],
        "off",
        BASE,
        Sampling(max_tokens=6),
    )
    expected = run_alone(engine, short), run_alone(engine, long)

    first = submit(engine, short)
    engine.step()
    second = submit(engine, long)
    parts = 0
    while second.prefill or second in engine.scheduler.waiting:
        before = first.turn.completion_tokens
        engine.step()
        parts += 1
        assert first.turn.completion_tokens == before + 1  # one token a part
    assert parts > 3
    while engine.busy:
        engine.step()
    assert_same_answers(engine, [short, long], [first, second], expected)


def test_the_first_question_after_a_write_waits_for_no_more_than_the_batch_in_hand(
    shallow, tmp_path, monkeypatch
):
    monkeypatch.setattr("models.engine.scheduler.PREFILL_ALONE", 16)
    monkeypatch.setattr("models.engine.engine.ENCODE_BATCH", 2)
    rng = random.Random(29)
    engine = make_engine(shallow, tmp_path)
    memories = [memory(i, rng) for i in range(12)]
    engine.queue.enqueue("n", memories, BASE)
    engine.step()  # the batch in hand
    assert engine.queue.pending_blocks == 10
    answer = submit(engine, (question(rng), memories[:1], "prefix", BASE, Sampling(max_tokens=3)))
    steps = 0
    while not answer.turn.completion_tokens:
        engine.step()
        steps += 1
        assert engine.queue.pending_blocks == 10
    assert steps > 2 and answer.turn.fallback is None  # a prompt in several parts, behind its block
    while engine.busy:
        engine.step()
    assert engine.queue.pending_blocks == 0


def test_a_request_that_waits_holds_the_blocks_themselves_and_no_copy(shallow, tmp_path):
    rng = random.Random(31)
    engine = make_engine(shallow, tmp_path)
    memories = [memory(i, rng) for i in range(3)]
    encode(engine, memories)
    blocks = engine.queue.find_blocks("n", memories, BASE)
    answers = [
        submit(engine, (question(rng), memories, "hybrid", BASE, Sampling(max_tokens=1))) for _ in range(2)
    ]
    held = {block.states.data_ptr() for block in blocks}
    for answer in answers:
        assert {piece.block.states.data_ptr() for piece in answer.prompt.prefix.pieces} == held
        engine.cancel(answer)


def test_cancelled_requests_leave_at_any_stage_and_harm_nobody(shallow, tmp_path):
    rng = random.Random(5)
    engine = make_engine(shallow, tmp_path, max_batch=2, prefill_tokens=16)
    cases = [(question(rng), [], "off", BASE, Sampling(max_tokens=12)) for _ in range(4)]
    expected = run_alone(engine, cases[1])
    running, kept, filling, waiting = (submit(engine, case) for case in cases)
    engine.step()
    engine.step()
    for answer in (running, filling, waiting):
        engine.cancel(answer)
        engine.cancel(answer)  # twice is fine
    while engine.busy:
        engine.step()
    assert_same_answers(engine, [cases[1]], [kept], [expected])
    assert not running.done and not waiting.done


def test_a_full_cache_makes_requests_wait_and_one_that_never_fits_is_refused(shallow, tmp_path):
    slots = KVCache.bytes_for(128, shallow.model.config, shallow.dtype)
    engine = make_engine(shallow, tmp_path, kv_cache_bytes=2 * slots)
    rng = random.Random(1)
    case = (question(rng), [], "off", BASE, Sampling(max_tokens=8))
    expected = run_alone(engine, case)
    answers = [submit(engine, case) for _ in range(3)]
    most = 0
    while engine.busy:
        engine.step()
        most = max(most, len(engine.scheduler.running))
        assert engine.status()["kv_cache_bytes"] <= 2 * slots
    assert most == 2
    assert_same_answers(engine, [case] * 3, answers, [expected] * 3)
    with pytest.raises(InvalidInput, match=r"serve\.kv_cache_bytes"):
        submit(engine, (*case[:4], Sampling(max_tokens=500)))


def test_a_failing_step_fails_its_requests_and_the_next_ones_run(shallow, tmp_path, monkeypatch):
    engine = make_engine(shallow, tmp_path)
    rng = random.Random(2)
    case = (question(rng), [], "off", BASE, Sampling(max_tokens=8))
    expected = run_alone(engine, case)
    broken = [submit(engine, case) for _ in range(2)]
    engine.step()

    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine.scheduler.cache, "begin_pass", fail)
    engine.step()
    assert all(isinstance(answer.error, RuntimeError) for answer in broken)
    monkeypatch.undo()
    assert_same_answers(engine, [case], [run_alone(engine, case)], [expected])


def test_versions_of_the_weights_share_a_batch(loaded, tmp_path, trained):
    own = replace(loaded, model=copy.deepcopy(loaded.model))
    engine = make_engine(own, tmp_path)
    adapters = engine.versions.store
    manifest = {"namespace": "n", "created": 1.0, "model_digest": loaded.digest}
    versions = [BASE, *(adapters.publish(folder, manifest) for folder in trained)]
    rng = random.Random(11)
    memories = [memory(i, rng) for i in range(4)]
    for version in versions:
        encode(engine, memories, version)
    asked = question(rng)
    cases = [(asked, memories[:2], "prefix", version, Sampling(max_tokens=5)) for version in versions * 2]
    expected = [run_alone(engine, case) for case in cases]
    assert len({text_of(answer) for answer in expected}) == 3
    answers = [submit(engine, case) for case in cases]
    engine.step()
    assert len(engine.scheduler.running) == 6
    while engine.busy:
        engine.step()
    assert_same_answers(engine, cases, answers, expected)
    assert all(answer.turn.fallback is None for answer in answers)


def test_a_version_in_use_is_not_dropped_for_another(loaded, tmp_path, trained):
    own = replace(loaded, model=copy.deepcopy(loaded.model))
    engine = make_engine(own, tmp_path)
    engine.versions.max_adapters = 1
    manifest = {"namespace": "n", "created": 1.0, "model_digest": loaded.digest}
    versions = [engine.versions.store.publish(folder, manifest) for folder in trained]
    rng = random.Random(13)
    cases = [(question(rng), [], "off", version, Sampling(max_tokens=6)) for version in versions]
    expected = [run_alone(engine, case) for case in cases]
    answers = [submit(engine, case) for case in cases]
    assert len(engine.versions.loaded) == 2  # more than it would keep
    while engine.busy:
        engine.step()
    assert len(engine.versions.loaded) == 1
    assert_same_answers(engine, cases, answers, expected)


def test_when_the_last_version_retires_the_base_answers_on_and_another_can_come(loaded, tmp_path, trained):
    engine = make_engine(replace(loaded, model=copy.deepcopy(loaded.model)), tmp_path)
    adapters = engine.versions.store
    manifest = {"namespace": "n", "created": 1.0, "model_digest": loaded.digest}
    asked = question(random.Random(37))
    base = (asked, [], "off", BASE, Sampling(max_tokens=8))
    plain = alone(engine, base)
    told = []
    for folder in (trained[0], trained[1], trained[0]):
        version = adapters.publish(folder, manifest, alias=None)
        told.append(alone(engine, (*base[:3], version, base[4])))
        adapters.retire(version)
        engine.retire(version)
        assert alone(engine, base) == plain
    assert told[0] == told[2] != told[1] and plain not in told


def test_drawn_answers_depend_on_their_seed_alone(shallow, tmp_path):
    engine = make_engine(shallow, tmp_path)
    rng = random.Random(17)
    asked = question(rng)
    cases = [
        (asked, [], "off", BASE, Sampling(max_tokens=10, temperature=1.2, top_p=0.9, seed=seed))
        for seed in (1, 2, 1)
    ]
    expected = [run_alone(engine, case) for case in cases]
    assert_same_answers(engine, cases, run_all(engine, cases), expected)
    assert expected[0].tokens == expected[2].tokens != expected[1].tokens  # the same company: the same bits


@pytest.mark.parametrize("sign", [1, -1])
def test_answers_survive_a_small_change_of_the_logits(shallow, tmp_path, monkeypatch, sign):
    """As rounding changes them with the batch and the processor; `assert_same_answers` bounds what it may cost."""
    engine = make_engine(shallow, tmp_path)
    rng = random.Random(41)
    cases = [
        (
            question(rng),
            [],
            "off",
            BASE,
            Sampling(max_tokens=12, temperature=temperature, top_p=0.9, seed=seed),
        )
        for seed, temperature in enumerate((0.0, 0.0, 0.7, 1.0, 1.2, 1.2))
    ]
    expected = run_all(engine, cases)
    noise = 1e-4 * sign * torch.randn(49152, generator=torch.Generator().manual_seed(43))
    hook = shallow.model.lm_head.register_forward_hook(lambda head, given, out: out + noise.to(out))
    try:
        changed = run_all(engine, cases)
    finally:
        hook.remove()
    assert_same_answers(engine, cases, changed, expected)


def test_a_wrong_position_is_no_near_tie(shallow, tmp_path, monkeypatch):
    """What `assert_same_answers` is worth: positions off by 8 in company fail it."""
    engine = make_engine(shallow, tmp_path)
    rng = random.Random(47)
    cases = [(question(rng), [], "off", BASE, Sampling(max_tokens=12)) for _ in range(3)]
    expected = [run_alone(engine, case) for case in cases]
    begin_pass = engine.scheduler.cache.begin_pass
    monkeypatch.setattr(
        engine.scheduler.cache,
        "begin_pass",
        lambda ids, positions: begin_pass(ids, [p + 8 for p in positions]),
    )
    changed = run_all(engine, cases)
    with pytest.raises(AssertionError, match="no near-tie"):
        assert_same_answers(engine, cases, changed, expected)


def test_a_hidden_slot_is_no_near_tie(loaded, tmp_path, monkeypatch):
    """A mask that hides the one slot of the prefix that holds the answer fails `assert_same_answers`."""
    engine = make_engine(loaded, tmp_path, recall=RecallConfig(reprocess="none"))
    text = "Ada Quill lives in Lisbon."
    memories = [RecalledMemory(id="ada", text=text)]
    encode(engine, memories)
    cases = [case_of(memories, "prefix") for _ in range(2)]
    expected = [run_alone(engine, case) for case in cases]
    builder = engine.queue.builder
    tokens = [*builder.head, *builder.memory(text)]
    [slot] = [n for n, token in enumerate(tokens) if "Lisbon" in loaded.tokenizer.decode([token])]
    begin_pass = engine.scheduler.cache.begin_pass

    def hide(ids, positions):
        states, new = begin_pass(ids, positions)
        assert new.places == new.positions
        order = torch.arange(new.slots)
        order[slot] = new.slots
        return states, replace(new, order=order)

    monkeypatch.setattr(engine.scheduler.cache, "begin_pass", hide)
    changed = run_all(engine, cases)
    with pytest.raises(AssertionError, match="no near-tie"):
        assert_same_answers(engine, cases, changed, expected)


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_draws_are_of_the_softmax_over_the_nucleus(top_p):
    """Each frequency of 20,000 draws within 5 standard deviations: fails by chance in fewer than 1 of 10^5 runs."""
    logits = torch.tensor([2.0, 1.5, 1.5, 0.3, -1.0, -6.0])
    sampling = Sampling(max_tokens=1, temperature=0.8, top_p=top_p)
    draws, generator = 20_000, torch.Generator().manual_seed(0)
    counts = torch.zeros(6)
    for _ in range(draws):
        counts[choose(logits, sampling, generator)] += 1
    expected = torch.softmax(logits / 0.8, 0)
    if top_p < 1:
        expected[3:] = 0.0  # the first three hold 0.46, 0.71, 0.95 of the mass
    expected /= expected.sum()
    assert (counts - draws * expected).abs().le(5 * (draws * expected * (1 - expected)).sqrt()).all()


def test_a_draw_changes_only_where_the_best_two_are_nearly_equal():
    """A change of 1e-4 in the logits changes about 1e-4 of the draws: of 2,000 at most 5, by chance or not."""
    generator = torch.Generator().manual_seed(5)
    logits = 2 * torch.randn(5000, generator=generator)
    changed = logits + 1e-4 * torch.randn(5000, generator=generator)
    sampling = Sampling(max_tokens=1, temperature=1.0, top_p=0.9)
    one, other = (torch.Generator().manual_seed(6) for _ in range(2))
    differ = sum(choose(logits, sampling, one) != choose(changed, sampling, other) for _ in range(2000))
    assert differ <= 5


def test_logprobs_are_the_models_own(shallow, tmp_path):
    engine = make_engine(shallow, tmp_path)
    case = (question(random.Random(19)), [], "off", BASE, Sampling(max_tokens=4, logprobs=2))
    answer = submit(engine, case)
    while not answer.done:
        engine.step()
    ids = engine.queue.builder.plain(case[0])
    for entry in answer.turn.logprobs:
        logits = shallow.model(input_ids=torch.tensor([ids], device=shallow.device)).logits[0, -1].float()
        best = logits.log_softmax(-1).topk(2)
        told = [top["logprob"] for top in entry["top_logprobs"]]
        assert told == pytest.approx(best.values.tolist(), abs=1e-3)
        assert entry["logprob"] == told[0] and entry["token"] == shallow.tokenizer.decode(
            [int(best.indices[0])]
        )
        ids = [*ids, int(best.indices[0])]
    assert len(answer.turn.logprobs) == answer.turn.completion_tokens


def test_threads_may_share_an_engine(shallow, tmp_path):
    engine = make_engine(shallow, tmp_path)
    rng = random.Random(23)
    cases = [(question(rng), [], "off", BASE, Sampling(max_tokens=8)) for _ in range(4)]
    expected = [run_alone(engine, case) for case in cases]
    found: dict[int, Request] = {}

    def ask(number: int) -> None:
        found[number] = run_alone(engine, cases[number])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same_answers(engine, cases, [found[number] for number in range(4)], expected)


def test_bias_and_overlay_are_their_formulas(shallow, tmp_path):
    engine = make_engine(shallow, tmp_path)
    rng = random.Random(29)
    memories = [memory(i, rng) for i in range(2)]
    encode(engine, memories)
    values = values_of(engine.queue.find_blocks("n", memories, BASE), shallow.model.config, shallow.device)
    projection = shallow.model.model.layers[-1].self_attn.o_proj
    overlay = Overlay(shallow.model, 0.5)
    with torch.inference_mode():
        said = [projection.weight @ vector for vector in values.vectors]
        whole = 2 / 3 * said[0] + 1 / 3 * said[1]
        scores = shallow.model.lm_head(shallow.model.model.norm(whole / whole.norm()))
        expected = 3.0 * (scores - scores.mean()) / scores.std()
        assert torch.allclose(logit_bias(shallow.model, values, 3.0), expected, atol=1e-3)

        changed = projection.weight.clone()
        for weight, out, vector in zip((2 / 3, 1 / 3), said, values.vectors, strict=True):
            changed += 0.5 * weight * torch.outer(out, vector) / vector.square().sum()
        given = torch.randn(2, 3, projection.in_features, device=shallow.device)
        with overlay.rows([values, None]):
            found = projection(given)
        overlay.remove()
        assert torch.allclose(found[0], given[0] @ changed.T, atol=1e-4)
        assert torch.allclose(found[1], projection(given)[1], atol=1e-6)


def test_each_row_of_a_batch_keeps_its_own_bias_and_overlay(loaded, tmp_path):
    recall = RecallConfig(bias=4.0, overlay=2.0)
    engine = make_engine(loaded, tmp_path, recall=recall)
    rng = random.Random(31)
    memories = [memory(i, rng) for i in range(4)]
    encode(engine, memories)
    asked = question(rng)
    cases = [(asked, memories[i : i + 2], "values", BASE, Sampling(max_tokens=6)) for i in (0, 2)]
    cases.append((asked, [], "off", BASE, Sampling(max_tokens=6)))
    expected = [run_alone(engine, case) for case in cases]
    answers = run_all(engine, cases)
    try:
        assert_same_answers(engine, cases, answers, expected)
    finally:
        engine.overlay.remove()  # the model is shared with other tests
    texts = [text_of(answer) for answer in expected]
    assert len(set(texts)) == 3 and texts[2] == alone(make_engine(loaded, tmp_path), cases[2])
