"""What each injected memory did to the answer just given, against a pass of its own for each."""

import random

import pytest
import torch

from common.config import RecallConfig
from common.errors import InvalidInput
from models.encoders.encoding_queue import RecalledMemory
from models.kv import prefix as kv
from models.text.prompt import Response, Transcript
from models.weights.adapters import BASE
from tests.support.hidden import naive, without
from tests.support.models import (
    QUESTION,
    ask,
    assert_same_answers,
    case_of,
    encode,
    make_engine,
    memory,
    ragged,
    run_alone,
    submit,
    text_of,
)

TOLERANCE = 5e-4  # nats, summed over an answer, float32
MEMORIES = [
    RecalledMemory(id="ada", text="Ada Quill lives in Lisbon."),
    RecalledMemory(id="bo", text="Bo Tarn works as a baker."),
    RecalledMemory(id="cy", text="Cy Vale keeps a goat."),
]


@pytest.fixture(scope="module")
def engine(loaded, tmp_path_factory):
    made = make_engine(loaded, tmp_path_factory.mktemp("engine"), max_batch=4, prefill_tokens=16)
    encode(made, MEMORIES)
    return made


@pytest.fixture(scope="module")
def quick(shallow, tmp_path_factory):
    made = make_engine(shallow, tmp_path_factory.mktemp("quick"), max_batch=4, prefill_tokens=16)
    encode(made, MEMORIES)
    return made


def answer_of(request) -> list[int]:
    return [token for token in request.tokens if token not in request._ends]


def as_blocks(engine, ids, *, hybrid=False):
    """log p of an answer behind the prefix, and behind it without each memory. Hybrid: the first is also text."""
    queue, model = engine.queue, engine.loaded.model
    blocks = queue.find_blocks("n", MEMORIES, BASE)
    policy = kv.INDEPENDENT if hybrid else kv.Policy(kind="best_last", best=RecallConfig().best)
    prefix = kv.assemble(queue.head(model, BASE), blocks, model.model.rotary_emb.inv_freq, policy)
    if hybrid:
        prefix = kv.followed(prefix, [(0, queue.builder.memory(MEMORIES[0].text))])
    tail = queue.builder.tail(QUESTION)
    told = Transcript(tail + ids, [Response(0, len(tail), len(tail) + len(ids))])
    rows = [prefix, *(without(prefix, [i], {each.id}) for i, each in enumerate(MEMORIES))]
    return [float(naive(model, row, [told])[0]) for row in rows]


def as_both(engine, ids):
    return as_blocks(engine, ids, hybrid=True)


def as_text(engine, ids):
    """The same of the text prompt, in one pass of transformers each: a mask hides a memory's tokens from all others."""
    builder, model = engine.queue.builder, engine.loaded.model
    pieces = [
        builder.head,
        *(builder.memory(each.text) for each in MEMORIES[::-1]),
        builder.tail(QUESTION),
        ids,
    ]
    whole = [token for piece in pieces for token in piece]
    owner = torch.tensor([i for i, piece in enumerate(pieces) for _ in piece])
    places, found = torch.arange(len(whole)), []
    for hidden in (None, 3, 2, 1):
        seen = (places <= places[:, None]) & ((owner != hidden) | (owner[:, None] == hidden))
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([whole]), attention_mask=seen[None, None]).logits[0]
        first = len(whole) - len(ids)
        logprobs = logits.float().log_softmax(-1)[range(first - 1, len(whole) - 1), ids]
        found.append(float(logprobs.double().sum()))
    return found


@pytest.mark.parametrize(("mode", "oracle"), [("prefix", as_blocks), ("hybrid", as_both), ("text", as_text)])
def test_each_divergence_is_that_of_a_pass_without_the_memory(engine, mode, oracle):
    request = submit(engine, case_of(MEMORIES, mode), attribute=True)
    while not request.done:
        engine.step()
    turn, (base, *rows) = request.turn, oracle(engine, answer_of(request))
    assert turn.fallback is None and turn.injected == ["ada", "bo", "cy"] == [*turn.influence]
    assert [*turn.influence.values()] == pytest.approx([base - row for row in rows], abs=TOLERANCE)
    assert mode == "hybrid" or turn.influence["ada"] > max(turn.influence["bo"], turn.influence["cy"], 1.0)
    assert 0 <= turn.influence_noise < TOLERANCE and turn.attribute_s > 0
    plain = run_alone(engine, case_of(MEMORIES, mode))
    assert plain.turn.influence is None and plain.turn.attribute_s == 0
    assert_same_answers(engine, [case_of(MEMORIES, mode)], [request], [plain])


@pytest.mark.parametrize(("memories", "mode"), [([], "prefix"), (MEMORIES, "off")])
def test_without_memories_nothing_mattered(quick, memories, mode):
    _, turn = ask(quick, memories, mode, attribute=True)
    assert turn.influence == {}


def test_an_answer_of_no_tokens_stood_on_nothing(quick):
    _, turn = ask(quick, MEMORIES, "prefix", attribute=True, max_tokens=0)
    assert turn.influence == {"ada": 0.0, "bo": 0.0, "cy": 0.0}


def test_requests_beside_it_answer_as_alone_and_leaving_takes_it_back(quick):
    rng = random.Random(5)
    boxes = [memory(i, rng) for i in range(6)]
    encode(quick, boxes)
    cases = ragged(rng, boxes, [BASE], 6)
    lone = [run_alone(quick, case) for case in cases]
    expected = [ask(quick, case[1], case[2], messages=case[0], attribute=True) for case in cases]
    left = submit(quick, case_of(MEMORIES, "prefix", max_tokens=3, ignore_eos=True), attribute=True)
    requests = [submit(quick, case, attribute=i % 2 == 0) for i, case in enumerate(cases)]
    while quick.busy:
        quick.step()
        if left in quick.scheduler.attributing:
            quick.cancel(left)
    assert not left.done and left.turn.influence is None
    assert_same_answers(quick, cases, requests, lone)
    for i, (request, (answer, turn)) in enumerate(zip(requests, expected, strict=True)):
        assert (request.turn.influence is not None) == (i % 2 == 0)
        if i % 2 == 0 and text_of(request) == answer:
            assert request.turn.influence == pytest.approx(turn.influence, abs=2 * TOLERANCE)
    assert not len(quick.scheduler.cache)


@pytest.mark.parametrize(
    ("recall", "mode", "count", "says"),
    [
        ({"encoder": "kv_exact"}, "prefix", 1, "use mode text"),
        ({"bias": 2.0}, "prefix", 1, "set them to 0"),
        ({}, "values", 1, "set them to 0"),
        ({}, "text", 65, "lower memory.k"),
    ],
)
def test_what_cannot_be_attributed_is_refused_with_what_to_do(shallow, tmp_path, recall, mode, count, says):
    engine = make_engine(shallow, tmp_path, recall=RecallConfig(**recall))
    many = [RecalledMemory(id=str(i), text=f"Fact {i}.") for i in range(count)]
    with pytest.raises(InvalidInput, match=says) as caught:
        submit(engine, case_of(many, mode), attribute=True)
    assert caught.value.param == "memory.attribute" and not engine.busy
