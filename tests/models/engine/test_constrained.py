"""Constrained answers of the real model, in batches, beside memories, and with other controls of the choice."""

import json
import math
import random

import jsonschema
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import InvalidInput
from models.engine.generation_stats import GenerationStats
from models.engine.sampling import Controls, Sampling, TextStream
from models.text.grammar import Grammar, schema_text
from models.weights.adapters import BASE
from serve.tool_calls import CallReader
from tests.support.models import (
    assert_same_answers,
    case_of,
    encode,
    make_engine,
    memory,
    question,
    run_all,
    run_alone,
    text_of,
)
from tests.support.schemas import OBJECTS

CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"enum": ["C", "F"]}},
        "required": ["city", "unit"], "additionalProperties": False}  # fmt: skip
TOOLS = [
    {"type": "function", "function": {"name": n, "description": "", "parameters": CITY}} for n in ("a", "b")
]
SPEC = tuple((tool["function"]["name"], schema_text(CITY, "tools")) for tool in TOOLS)
JSON = Grammar(schema=schema_text(CITY, "response_format"))
CALL = Grammar(tools=SPEC, must_call=True, several=False)


@pytest.fixture(scope="module")
def engine(loaded, tmp_path_factory):
    return make_engine(loaded, tmp_path_factory.mktemp("engine"), max_batch=8)


@pytest.fixture(scope="module")
def quick(shallow, tmp_path_factory):
    return make_engine(shallow, tmp_path_factory.mktemp("quick"), max_batch=8)


CASES = st.tuples(OBJECTS, st.sampled_from([{}, {"temperature": 1.0, "seed": 5}]), st.booleans())


@pytest.mark.parametrize("batches", [1, pytest.param(34, marks=pytest.mark.slow)])
def test_answers_to_random_schemas_parse_and_validate(quick, batches):
    @settings(max_examples=batches, database=None, derandomize=True, suppress_health_check=[*HealthCheck])
    @given(drawn=st.lists(CASES, min_size=6, max_size=6))
    def run(drawn):
        cases = []
        for schema, sampled, called in drawn:
            text = schema_text(schema, "response_format")
            grammar = Grammar(tools=(("a", text),), must_call=True) if called else Grammar(schema=text)
            cases.append(case_of([], "off", max_tokens=150, grammar=grammar, **sampled))
        for (schema, _, called), request in zip(drawn, run_all(quick, cases), strict=True):
            if request.turn.finish_reason == "length":
                continue
            answers = [text_of(request)]
            if called:
                reader = CallReader()
                reader.push(answers[0])
                answers = [call["function"]["arguments"] for call in reader.calls]
            assert answers
            for each in answers:
                jsonschema.validate(json.loads(each), schema)

    run()


@pytest.mark.parametrize(
    ("field", "digits"),
    [({"type": "number"}, 40), ({"type": "integer"}, 40), ({"type": "string", "pattern": "^9{50}$"}, 50)],
)
def test_no_number_goes_on_for_ever(engine, loaded, field, digits):
    """Pushed towards one digit, the model ends the number all the same; a text may have more digits."""
    [nine] = loaded.tokenizer.encode("9", add_special_tokens=False)
    schema = {"type": "object", "properties": {"x": field}, "required": ["x"], "additionalProperties": False}
    grammar = Grammar(schema=schema_text(schema, "response_format"))
    pushed = {"logit_bias": {nine: 100.0}, "max_tokens": 120, "grammar": grammar}
    request = run_alone(engine, case_of([], "off", **pushed))
    assert request.turn.finish_reason == "stop" and text_of(request).count("9") == digits
    jsonschema.validate(json.loads(text_of(request)), schema)


def test_rows_with_and_without_grammars_answer_together_as_alone(engine):
    rng = random.Random(3)
    grammars = [None, JSON, CALL, Grammar(tools=SPEC)]
    drawn = {"temperature": 1.0, "seed": 5}
    cases = [
        case_of([], "off", messages=question(rng), max_tokens=36, grammar=grammar, **sampling)
        for grammar, sampling in [*((grammar, {}) for grammar in grammars), (None, drawn), (JSON, drawn)]
    ]
    expected = [run_alone(engine, case) for case in cases]
    together = run_all(engine, cases)
    for case, request, lone in zip(cases, together, expected, strict=True):
        if case[4].grammar is None:
            assert_same_answers(engine, [case], [request], [lone])
        elif case[4].grammar == JSON:
            for each in (request, lone):
                assert each.turn.finish_reason == "stop"
                jsonschema.validate(json.loads(text_of(each)), CITY)


@pytest.mark.parametrize("mode", ["full", "text", "prefix", "hybrid", "off"])
def test_tools_stand_beside_memories_in_every_mode(engine, mode):
    memories = [memory(i, random.Random(i)) for i in range(3)]
    encode(engine, memories)
    turn = GenerationStats(mode=mode)
    pieces = engine.answer(
        [{"role": "user", "content": "What does box 1 hold?"}],
        memories,
        namespace="n",
        adapter=BASE,
        sampling=Sampling(max_tokens=60, grammar=CALL),
        turn=turn,
        tools=TOOLS * 2,
    )
    reader = CallReader()
    reader.push("".join(pieces))
    [call] = reader.calls
    jsonschema.validate(json.loads(call["function"]["arguments"]), CITY)
    assert turn.fallback is None and turn.finish_reason == "stop"
    assert turn.prompt_tokens > 150 and bool(turn.prefix_tokens) == (mode in ("prefix", "hybrid"))
    assert len(turn.injected) == (0 if mode == "off" else 3)


def test_a_refused_grammar_and_a_bias_of_no_token_leave_nothing_behind(engine):
    bad = Grammar(schema=schema_text({"not": {}}, "response_format"))
    for sampling, says in (({"grammar": bad}, "not"), ({"logit_bias": {1 << 20: 1.0}}, "no token id")):
        with pytest.raises(InvalidInput, match=says):
            run_alone(engine, case_of([], "off", **sampling))
    assert not engine.busy


def test_an_answer_that_max_tokens_cuts_says_so_and_stop_strings_cut_json(engine):
    cut = run_alone(engine, case_of([], "off", max_tokens=4, grammar=JSON))
    assert cut.turn.finish_reason == "length" and JSON.schema and text_of(cut).startswith("{")
    whole = text_of(run_alone(engine, case_of([], "off", max_tokens=40, grammar=JSON)))
    stopped = run_alone(engine, case_of([], "off", max_tokens=40, grammar=JSON, stop=["unit"]))
    assert text_of(stopped) == whole[: whole.index("unit")] and stopped.turn.finish_reason == "stop"


def test_stop_strings_do_not_look_into_calls(loaded):
    text = 'Yes.\n<tool_call>\n{"name": "a", "arguments": {"b": "Stop"}}\n</tool_call>'
    tokens = loaded.tokenizer.encode(text, add_special_tokens=False)
    for grammar, stop, expected in (
        (CALL, ["Stop", "}"], text),
        (CALL, ["Yes"], ""),
        (None, ["Stop"], text.partition("Stop")[0]),
    ):
        stream = TextStream(loaded.tokenizer, Sampling(max_tokens=9, stop=stop, grammar=grammar))
        said = ""
        for token in tokens:
            said += stream.push(token)
            if stream.stopped:
                break
        assert said + ("" if stream.stopped else stream.finish()) == expected


def test_log_probabilities_are_those_of_the_model_and_not_of_the_mask(engine):
    plain = run_alone(engine, case_of([], "off", max_tokens=1, logprobs=3)).turn.logprobs[0]
    for controls in ({"grammar": JSON}, {"logit_bias": {5: 100.0}}):
        told = run_alone(engine, case_of([], "off", max_tokens=1, logprobs=3, **controls)).turn.logprobs[0]
        assert told["token"] != plain["token"] and told["logprob"] < plain["logprob"]
        for one, other in zip(told["top_logprobs"], plain["top_logprobs"], strict=True):
            assert one["token"] == other["token"] and math.isclose(
                one["logprob"], other["logprob"], abs_tol=1e-3
            )


def test_penalties_and_biases_are_openais_formula():
    rng = torch.Generator().manual_seed(1)
    logits = torch.randn(50, generator=rng)
    sampling = Sampling(
        max_tokens=9, presence_penalty=0.7, frequency_penalty=-0.3, logit_bias={3: 5.0, 4: -100.0}
    )
    controls, said = Controls(sampling, {0}), [3, 7, 3, 9, 3]
    for token in said:
        controls.count(token)
    expected = [
        float(logit) - said.count(j) * -0.3 - (j in said) * 0.7 + {3: 5.0, 4: -100.0}.get(j, 0.0)
        for j, logit in enumerate(logits)
    ]
    found = controls.apply(logits, None)
    assert torch.allclose(found, torch.tensor(expected), atol=1e-5)
    allowed = torch.arange(50) < 10
    masked = controls.apply(logits, allowed)
    assert torch.equal(masked[:10], found[:10]) and bool((masked[10:] == -torch.inf).all())
    assert Controls(Sampling(max_tokens=9), {0}).idle and not controls.idle


def test_biases_choose_and_penalties_vary(engine):
    token = engine.loaded.tokenizer.encode(" goat", add_special_tokens=False)[0]
    only = run_alone(engine, case_of([], "off", max_tokens=3, logit_bias={token: 100.0}))
    assert only.tokens == [token] * 3
    varied = run_alone(
        engine,
        case_of(
            [], "off", max_tokens=3, logit_bias={token: 100.0}, frequency_penalty=2.0, presence_penalty=2.0
        ),
    )
    assert varied.tokens == only.tokens  # a bias of 100 goes before
    banned = run_alone(engine, case_of([], "off", max_tokens=1)).tokens[0]
    other = run_alone(engine, case_of([], "off", max_tokens=1, logit_bias={banned: -100.0}))
    assert other.tokens != [banned]


def test_min_tokens_and_ignore_eos_put_off_the_end(engine, loaded):
    [end] = loaded.end_ids & {loaded.tokenizer.eos_token_id}
    to_end = {"logit_bias": {end: 100.0}}
    assert run_alone(engine, case_of([], "off", **to_end)).turn.completion_tokens == 0
    later = run_alone(engine, case_of([], "off", min_tokens=5, **to_end))
    assert later.turn.completion_tokens == 5 and later.turn.finish_reason == "stop"
    never = run_alone(engine, case_of([], "off", ignore_eos=True, max_tokens=7, **to_end))
    assert never.turn.completion_tokens == 7 and never.turn.finish_reason == "length" and text_of(never) == ""
    whole = text_of(run_alone(engine, case_of([], "off", max_tokens=12)))
    stop = [whole.split()[0]]
    assert text_of(run_alone(engine, case_of([], "off", max_tokens=12, stop=stop))) == ""
    assert text_of(run_alone(engine, case_of([], "off", max_tokens=12, stop=stop, min_tokens=8))).startswith(
        stop[0]
    )
    finished = run_alone(engine, case_of([], "off", max_tokens=60, min_tokens=60, grammar=JSON))
    jsonschema.validate(json.loads(text_of(finished)), CITY)  # a grammar's end goes before
