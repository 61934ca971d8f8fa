import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidInput
from stores.memory.filters import MAX_DEPTH, OPS, compile_filter
from stores.memory.memory import to_json
from tests.support.stores import memory

ADA = to_json(
    memory(
        "m1",
        text="Ada moved to Lisbon.",
        time="2026-03-01T10:00:00Z",
        conversation="c1",
        context={
            "source": "chat",
            "turn": 3,
            "tags": ["move", "city"],
            "flag": True,
            "deep": {"er": 1.5, "est.er": 2},
            "mail.to": "Bo",
            "a.b": {"c": 7},
            "trailing.": 3,
        },
    )
)


def admits(field, op, value):
    return compile_filter({"field": field, "op": op, "value": value})(ADA)


@pytest.mark.parametrize(
    ("field", "op", "value", "expected"),
    [
        ("kind", "eq", "episodic", True),
        ("kind", "ne", "spatial", True),
        ("text", "contains", "Lisbon", True),
        ("text", "contains", "Porto", False),
        ("time", "gte", "2026-03-01T10:00:00Z", True),
        ("time", "gt", "2026-03-01T10:00:00Z", False),
        ("time", "lt", "2026-03-02", True),
        ("time", "in", ["2026-03-01T12:00:00+02:00"], True),
        ("context.turn", "gt", 2, True),
        ("context.turn", "eq", 3.0, True),
        ("context.turn", "gt", "2", False),
        ("context.source", "in", ["chat", "mail"], True),
        ("context.source", "nin", ["chat"], False),
        ("context.tags", "contains", "city", True),
        ("context.tags", "contains", 1, False),
        ("context.flag", "eq", 1, False),
        ("context.flag", "gt", 0, False),
        ("context.deep.er", "lte", 1.5, True),
        ("context.deep.er.est", "eq", 1, False),
        ("context.mail.to", "eq", "Bo", True),
        ("context.a.b.c", "eq", 7, True),
        ("context.deep.est.er", "eq", 2, True),
        ("context.trailing.", "eq", 3, True),
        ("context..", "eq", None, True),
        ("context.absent", "eq", "x", False),
        ("context.absent", "ne", "x", True),
        ("context.absent", "nin", ["x"], True),
        ("context.absent", "eq", None, True),
        ("context.absent", "lt", 5, False),
        ("subject", "eq", "Ada", False),
        ("conversation", "eq", "c1", True),
        ("pin", "eq", False, True),
    ],
)
def test_comparisons(field, op, value, expected):
    assert admits(field, op, value) is expected


comparisons = st.builds(
    lambda field, op, value: {"field": field, "op": op, "value": [value] if op in ("in", "nin") else value},
    st.sampled_from(["context.turn", "reward", "context.absent"]),
    st.sampled_from([op for op in OPS if op != "contains"]),
    st.integers(-1, 4),
)
trees = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        inner.map(lambda part: {"not": part}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"and": parts}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"or": parts}),
    ),
    max_leaves=12,
)


def naive(spec):
    """The filter language again, straight from its description."""
    if "not" in spec:
        return not naive(spec["not"])
    if "and" in spec:
        return min(naive(part) for part in spec["and"])
    if "or" in spec:
        return max(naive(part) for part in spec["or"])
    found = {"context.turn": 3, "reward": 0.0, "context.absent": None}[spec["field"]]
    op, value = spec["op"], spec["value"]
    if op in ("in", "nin"):
        return (found in value) == (op == "in")
    if op in ("eq", "ne"):
        return (found == value) == (op == "eq")
    return (
        found is not None
        and {
            "gt": found > value,
            "gte": found >= value,
            "lt": found < value,
            "lte": found <= value,
        }[op]
    )


@given(trees)
def test_trees_mean_what_the_naive_reading_means(spec):
    assert compile_filter(spec)(ADA) == naive(spec)
    assert compile_filter({"not": spec})(ADA) != naive(spec)


def test_no_filter_admits_everything():
    assert compile_filter(None)(ADA) is True


def nested(depth):
    spec = {"field": "pin", "op": "eq", "value": False}
    for _ in range(depth):
        spec = {"not": spec}
    return spec


@pytest.mark.parametrize(
    "spec",
    [
        {},
        [],
        "kind",
        {"and": []},
        {"or": {}},
        {"and": [], "or": []},
        {"xor": []},
        {"field": "kind", "op": "eq"},
        {"field": "kind", "op": "like", "value": "x"},
        {"field": "mood", "op": "eq", "value": "x"},
        {"field": "context", "op": "eq", "value": "x"},
        {"field": "context.", "op": "eq", "value": "x"},
        {"field": "context" + ".a" * (MAX_DEPTH + 1), "op": "eq", "value": "x"},
        {"field": ["kind"], "op": "eq", "value": "x"},
        {"field": "kind", "op": ["eq"], "value": "x"},
        {"field": "kind", "op": "in", "value": "episodic"},
        {"field": "time", "op": "gt", "value": "soon"},
        {"field": "reward", "op": "gt", "value": float("nan")},
        {"field": "reward", "op": "gt", "value": [1]},
        {"field": "reward", "op": "gt", "value": True},
        {"not": {"not": 5}},
        nested(MAX_DEPTH + 1),
        nested(5000),
    ],
)
def test_bad_filters_are_refused_by_name(spec):
    with pytest.raises(InvalidInput) as caught:
        compile_filter(spec)
    assert caught.value.param == "filter" and len(caught.value.message) < 400


def test_the_deepest_filter_allowed_works():
    assert compile_filter(nested(MAX_DEPTH))(ADA) is True
