"""What a grammar allows is what its schema allows: random tokens under the masks, and the model's own."""

import copy
import json
import random
import re
import threading
from types import SimpleNamespace

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from common.errors import InvalidInput
from models.engine import masks
from models.engine.masks import Grammars, Number
from models.text.grammar import MAX_SCHEMA_BYTES, Grammar, schema_text
from serve.tool_calls import CallReader
from tests.support.schemas import ANY, OBJECTS, draw_answer

SLOW = dict(deadline=None, database=None, suppress_health_check=[*HealthCheck])


@pytest.fixture(scope="module")
def grammars(loaded):
    return Grammars(loaded)


STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
JSONS = st.recursive(st.floats() | st.integers() | st.text() | st.booleans(), lambda inner: st.lists(inner))


@settings(max_examples=300, **SLOW)
@given(value=JSONS, called=st.booleans(), seed=st.integers(0, 1 << 30))
def test_the_length_of_a_number_is_known_at_every_place(value, called, seed):
    rng, number = random.Random(seed), Number(called=called)
    written = json.dumps(value)
    text = f'It is 12" and {"9" * 50}.\n<tool_call>{written}' if called else written
    start, place = len(text) - len(written), 0
    while place < len(text):
        step = rng.randint(1, 9)
        number.push(text[place : place + step].encode())
        place += step
        outside = STRING.sub(" ", text[start:place])
        naive = len(re.search(r"[-+.0-9eE]*$", outside)[0]) if '"' not in outside else 0
        assert number.length == naive


def answer_of(loaded, grammars, grammar, rng) -> str:
    matcher = grammars.matcher(grammar)
    return draw_answer(matcher, loaded.tokenizer, loaded.end_ids, rng)


@settings(max_examples=500, **SLOW)
@given(schema=ANY, seed=st.integers(0, 1 << 30))
def test_random_tokens_of_random_schemas_are_json_that_validates(loaded, grammars, schema, seed):
    grammar = Grammar(schema=schema_text(schema, "response_format"))
    text = answer_of(loaded, grammars, grammar, random.Random(seed))
    jsonschema.validate(json.loads(text), schema)


@settings(max_examples=150, **SLOW)
@given(
    parameters=st.lists(OBJECTS, min_size=1, max_size=3),
    must_call=st.booleans(),
    several=st.booleans(),
    seed=st.integers(0, 1 << 30),
)
def test_random_tokens_of_random_tools_are_calls_whose_arguments_validate(
    loaded, grammars, parameters, must_call, several, seed
):
    tools = tuple((f"tool_{i}", schema_text(each, "tools")) for i, each in enumerate(parameters))
    grammar = Grammar(tools=tools, must_call=must_call, several=several)
    matcher = grammars.matcher(grammar)
    opening = "" if must_call else "Well.\n<tool_call>"
    assert matcher.consume_tokens(loaded.tokenizer.encode(opening))
    reader = CallReader()
    reader.push(opening + draw_answer(matcher, loaded.tokenizer, loaded.end_ids, random.Random(seed)))
    assert not reader.finish() and reader.content == ("" if must_call else "Well.")
    assert reader.calls and (several or len(reader.calls) == 1)
    for call in reader.calls:
        arguments = json.loads(call["function"]["arguments"])
        jsonschema.validate(arguments, parameters[int(call["function"]["name"].removeprefix("tool_"))])


def test_text_is_free_until_the_opener_of_a_call(loaded, grammars):
    tools = (("look", schema_text({"type": "object", "additionalProperties": False}, "tools")),)
    for text, fits in (
        ("Any text, 日本 < tool {", True),
        ('A\n<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>', True),
        ('<tool_call>\n{"name": "other"', False),
        ('<tool_call>\n{"name": "look", "arguments": {"a"', False),
        ('<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call> and more', False),
    ):
        matcher = grammars.matcher(Grammar(tools=tools))
        ids = loaded.tokenizer.encode(text, add_special_tokens=False)
        assert (matcher.try_consume_tokens(ids) == len(ids)) == fits, text
        if fits:
            assert matcher.is_accepting()


def test_a_tokenizer_with_tokens_for_calls_uses_them_and_spelled_ones_open_a_call_too(loaded):
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.add_tokens([AddedToken(text, special=True) for text in ("<tool_call>", "</tool_call>")])
    model = SimpleNamespace(config=SimpleNamespace(vocab_size=len(tokenizer) + 10))
    grammars = Grammars(
        SimpleNamespace(tokenizer=tokenizer, model=model, end_ids=loaded.end_ids, name="made")
    )
    tools = (("look", schema_text({"type": "object", "additionalProperties": False}, "tools")),)
    call = '\n{"name": "look", "arguments": {}}\n</tool_call>'
    opener = tokenizer.convert_tokens_to_ids("<tool_call>")
    spelled = loaded.tokenizer.encode("<tool_call>", add_special_tokens=False)
    assert tokenizer.encode("<tool_call>", add_special_tokens=False) == [opener] != spelled
    for must_call in (False, True):
        for opening in ([opener], spelled):
            matcher = grammars.matcher(Grammar(tools=tools, must_call=must_call))
            said = [] if must_call else tokenizer.encode("Well. ", add_special_tokens=False)
            ids = [*said, *opening, *tokenizer.encode(call, add_special_tokens=False)]
            taken = matcher.try_consume_tokens(ids)
            if must_call and opening == spelled:
                assert taken == 0  # the token is meant
            else:
                assert taken == len(ids) and matcher.is_accepting()
                assert matcher.try_consume_tokens(tokenizer.encode(" more")) == 0


@pytest.mark.parametrize(
    ("schema", "feature"),
    [
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "format": "iri"}, "iri"),
        ({"if": {}, "then": {}}, "if"),
        ({"type": "object", "propertyNames": {"pattern": "a"}}, "propertyNames"),
        ({"type": "array", "contains": {"const": 1}}, "contains"),
        ({"$ref": "https://example.org/schema"}, "https://example.org/schema"),
        ({"$ref": "#/$defs/nothing"}, "nothing"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-ahead|regex"),
        ({"type": "object", "minProperties": 3}, "minProperties"),
        ({"type": "strange"}, "strange"),
        ({"type": "integer", "minimum": 5, "maximum": 1}, "minimum"),
        ({"enum": []}, "empty"),
        ({"$ref": "#"}, "cannot be followed"),
        (False, "not"),
    ],
)
def test_what_cannot_be_kept_to_is_refused_by_name(grammars, schema, feature):
    with pytest.raises(InvalidInput, match=feature) as caught:
        grammars.matcher(Grammar(schema=schema_text(schema, "response_format")))
    assert caught.value.param == "response_format" and "\n" not in str(caught.value)
    if schema == {"$ref": "#"}:
        return  # of a part it is no end of the whole
    good = ("good", schema_text({"type": "object"}, "tools"))
    with pytest.raises(InvalidInput, match=f"{feature}|'bad' cannot be followed: Unsatisfiable"):
        needs = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
        grammars.matcher(Grammar(tools=(good, ("bad", schema_text(needs, "tools"))), must_call=True))


def test_a_character_that_the_tokenizer_cannot_write_is_refused(grammars):
    with pytest.raises(InvalidInput, match="U\\+40000"):
        grammars.matcher(Grammar(schema=schema_text({"enum": ["a\U00040000"]}, "response_format")))


def test_every_keyword_of_the_standard_is_kept_to_or_refused(grammars):
    """`KEYWORDS` has a schema for each, and a value that it forbids, which must not come."""
    for keyword, (schema, forbidden) in KEYWORDS.items():
        try:
            matcher = grammars.matcher(Grammar(schema=schema_text(schema, "response_format")))
        except InvalidInput as error:
            assert keyword in str(error) or "Unimplemented" in str(error), (keyword, str(error))
            continue
        validator = jsonschema.Draft202012Validator(schema)
        assert not validator.is_valid(forbidden), keyword
        text = json.dumps(forbidden)
        taken = matcher.deep_copy()
        ids = grammars.tokenizer.tokenize_str(text)
        assert taken.try_consume_tokens(ids) < len(ids) or not taken.is_accepting(), keyword


KEYWORDS = {
    "minimum": ({"type": "integer", "minimum": 3}, 2),
    "maximum": ({"type": "integer", "maximum": 3}, 4),
    "exclusiveMinimum": ({"type": "number", "exclusiveMinimum": 3}, 3),
    "exclusiveMaximum": ({"type": "number", "exclusiveMaximum": 3}, 3),
    "multipleOf": ({"type": "integer", "multipleOf": 3}, 4),
    "minLength": ({"type": "string", "minLength": 3}, "ab"),
    "maxLength": ({"type": "string", "maxLength": 3}, "abcd"),
    "pattern": ({"type": "string", "pattern": "^a$"}, "b"),
    "minItems": ({"type": "array", "minItems": 2}, [1]),
    "maxItems": ({"type": "array", "maxItems": 1}, [1, 1]),
    "uniqueItems": ({"type": "array", "uniqueItems": True}, [1, 1]),
    "prefixItems": ({"type": "array", "prefixItems": [{"type": "string"}]}, [1]),
    "items": ({"type": "array", "items": {"type": "string"}}, [1]),
    "contains": ({"type": "array", "contains": {"const": 1}}, [2]),
    "minContains": ({"type": "array", "contains": {"const": 1}, "minContains": 2}, [1]),
    "unevaluatedItems": ({"type": "array", "unevaluatedItems": False}, [1]),
    "required": ({"type": "object", "required": ["a"]}, {}),
    "minProperties": ({"type": "object", "minProperties": 1}, {}),
    "maxProperties": ({"type": "object", "maxProperties": 1}, {"a": 1, "b": 1}),
    "additionalProperties": ({"type": "object", "additionalProperties": False}, {"a": 1}),
    "unevaluatedProperties": ({"type": "object", "unevaluatedProperties": False}, {"a": 1}),
    "patternProperties": ({"type": "object", "patternProperties": {"^a": {"type": "string"}}}, {"a": 1}),
    "propertyNames": ({"type": "object", "propertyNames": {"maxLength": 1}}, {"ab": 1}),
    "dependentRequired": ({"type": "object", "dependentRequired": {"a": ["b"]}}, {"a": 1}),
    "dependentSchemas": ({"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}}, {"a": 1}),
    "not": ({"not": {"type": "integer"}}, 1),
    "if": ({"if": {"type": "integer"}, "then": {"minimum": 2}}, 1),
    "allOf": ({"allOf": [{"type": "integer"}, {"minimum": 2}]}, 1),
    "anyOf": ({"anyOf": [{"type": "string"}, {"type": "null"}]}, 1),
    "oneOf": ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, 1),
    "const": ({"const": 2}, 1),
    "enum": ({"enum": [2, 3]}, 1),
    "$dynamicRef": ({"$dynamicRef": "#a", "$defs": {"a": {"$dynamicAnchor": "a", "type": "string"}}}, 1),
}  # fmt: skip


def test_a_schema_that_is_too_large_or_too_deep_is_refused(grammars):
    with pytest.raises(InvalidInput, match=f"may have {MAX_SCHEMA_BYTES}"):
        schema_text({"enum": ["x" * MAX_SCHEMA_BYTES]}, "response_format")
    deep = {"type": "string"}
    for _ in range(300):
        deep = {"type": "array", "items": deep}
    with pytest.raises(InvalidInput, match="recursion limit"):
        grammars.matcher(Grammar(schema=schema_text(deep, "response_format")))


def test_compiled_grammars_are_kept_and_bounded_and_each_request_has_its_own(loaded, monkeypatch):
    monkeypatch.setattr(masks, "KEPT", 2)
    grammars = Grammars(loaded)
    made = [Grammar(schema=json.dumps({"const": i})) for i in range(3)]
    one, other = grammars.matcher(made[0]), grammars.matcher(made[0])
    assert one.consume_tokens(loaded.tokenizer.encode("0")) and one.is_stopped() and not other.is_stopped()
    for grammar in made:
        grammars.matcher(grammar)
    assert [*grammars._compiled] == made[1:]


def test_a_slow_compilation_keeps_no_other_one_waiting(loaded, grammars, monkeypatch):
    begun, go = threading.Event(), threading.Event()
    slow, quick = (Grammar(schema=json.dumps({"const": text})) for text in ("slow", "quick"))
    compile = Grammars._compile

    def waiting(self, grammar):
        if grammar == slow:
            begun.set()
            assert go.wait(60)
        return compile(self, grammar)

    monkeypatch.setattr(Grammars, "_compile", waiting)
    thread = threading.Thread(target=grammars.matcher, args=(slow,))
    thread.start()
    assert begun.wait(60)
    assert grammars.matcher(quick) and grammars.matcher(quick)
    go.set()
    thread.join()
