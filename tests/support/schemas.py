"""Random JSON schemas, and answers of tokens drawn at random among those that a grammar allows."""

import random
import re
from typing import Any

import numpy as np
from hypothesis import strategies as st

KEYS = st.text(st.characters(max_codepoint=0x1FFFF, exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)
WORDS = st.sampled_from(
    ["red", "grün", "日本", "a b", 'say "hi"', "back\\slash", "naïve", "🦉", "", "line\nbreak"]
)
SMALL = st.integers(-50, 50)


@st.composite
def numbers(draw) -> dict[str, Any]:
    kind = draw(st.sampled_from(["integer", "number"]))
    low = draw(st.none() | SMALL)
    high = draw(st.none() | st.integers(0, 30))
    bounds = {} if low is None else {draw(st.sampled_from(["minimum", "exclusiveMinimum"])): low}
    if high is not None:
        bounds[draw(st.sampled_from(["maximum", "exclusiveMaximum"]))] = (low or 0) + high + 2
    return {"type": kind, **bounds}


@st.composite
def strings(draw) -> dict[str, Any]:
    low = draw(st.integers(0, 4))
    return {"type": "string", "minLength": low, "maxLength": low + draw(st.integers(0, 8))}


LEAVES = st.one_of(
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["integer", "null"]}]),
    st.sampled_from(["^[a-c]{1,4}$", r"^\d{3}-\d{2}$", "^x+y$"]).map(
        lambda p: {"type": "string", "pattern": p}
    ),
    st.sampled_from(["date", "uuid", "ipv4"]).map(lambda f: {"type": "string", "format": f}),
    st.lists(WORDS | SMALL | st.none(), min_size=1, max_size=5, unique=True).map(lambda v: {"enum": v}),
    (WORDS | SMALL | st.booleans()).map(lambda value: {"const": value}),
    numbers(),
    strings(),
)


@st.composite
def objects(draw, inner) -> dict[str, Any]:
    names = draw(st.lists(KEYS, max_size=4, unique=True))
    required = [name for name in names if draw(st.booleans())]
    more = draw(st.sampled_from([False, False, {"type": "boolean"}]))
    shape = {"properties": {name: draw(inner) for name in names}, "required": required}
    return {"type": "object", **shape, "additionalProperties": more}


@st.composite
def arrays(draw, inner) -> dict[str, Any]:
    low = draw(st.integers(0, 2))
    return {"type": "array", "items": draw(inner), "minItems": low, "maxItems": low + draw(st.integers(0, 2))}


def _compound(inner):
    return st.one_of(
        objects(inner), arrays(inner), st.lists(inner, min_size=1, max_size=3).map(lambda v: {"anyOf": v})
    )


ANY = st.recursive(LEAVES, _compound, max_leaves=8)
OBJECTS = objects(ANY)
INSIDE, OUTSIDE = (
    ['"'],
    ["}", "]", '"', "}}", "\n", ","],
)  # what comes to an end soonest, in a string and elsewhere


def draw_answer(
    matcher, tokenizer, ends: set[int], rng: random.Random, *, most: int = 600, free: int = 60
) -> str:
    """The text of an answer whose tokens are drawn from those allowed; after `free` tokens it tries to come to an
    end. Fails where `most` tokens do not suffice."""
    tokens: list[int] = []
    while not matcher.is_stopped():
        assert len(tokens) < most, tokenizer.decode(tokens)
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
        assert len(allowed) and not matcher.is_error(), matcher.get_error()
        ending = _closing(tokenizer, tokens, ends) if len(tokens) >= free else []
        token = next(
            (token for token in ending if token in allowed), int(allowed[rng.randrange(len(allowed))])
        )
        if token in ends:
            break
        assert matcher.consume_token(token), matcher.get_error()
        tokens.append(token)
    return str(tokenizer.decode(tokens))


def _closing(tokenizer, tokens: list[int], ends: set[int]) -> list[int]:
    quotes = re.sub(r"\\.", "", tokenizer.decode(tokens)).count('"')
    return [*ends, *map(tokenizer.convert_tokens_to_ids, INSIDE if quotes % 2 else OUTSIDE)]
