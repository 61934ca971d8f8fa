"""The fact graph against a list of facts that is filtered by brute force, and against what its rules say."""

import math
from itertools import permutations
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InvalidInput
from stores.facts import traversal
from stores.facts.fact import as_episodic, not_a_triple
from stores.facts.graph import FactGraph
from stores.facts.names import Aliases, Mentions, normalise, normalise_relation
from stores.memory.memory import from_json, to_json
from tests.support.stores import memory as parsed

Json = dict[str, Any]

NAMES = ("Ada", "Bob", "Eve", "Lisbon", "Paris")
RELATIONS = ("lives_in", "likes", "parent_of", "child_of", "married_to")
INVERSE = {"parent_of": "child_of", "child_of": "parent_of", "married_to": "married_to"}
FUNCTIONAL = ("lives_in", "married_to")
TIMES = st.integers(0, 6).map(float)


def fact(id: str, subject: str, relation: str, object: str, time: float, **fields: Any) -> Json:
    return {"id": id, "subject": subject, "relation": relation, "object": object, "time": time, **fields}


@st.composite
def facts(draw: st.DrawFn, size: int = 10) -> list[Json]:
    told = []
    for i in range(draw(st.integers(0, size))):
        fields: Json = {"confidence": draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))}
        start = draw(st.none() | TIMES)
        if start is not None:
            fields["valid_from"] = start
        if draw(st.booleans()) and draw(st.booleans()):
            fields["valid_to"] = (0.0 if start is None else start) + draw(TIMES)
        names = draw(st.permutations(NAMES))
        told.append(
            fact(f"f{i}", names[0], draw(st.sampled_from(RELATIONS)), names[1], draw(TIMES), **fields)
        )
    return told


def build(told: list[tuple[int, Json]]) -> FactGraph:
    graph = FactGraph(functional=FUNCTIONAL)
    for seq, memory in told:
        graph.add(memory, seq)
    return graph


def start_of(memory: Json) -> float:
    return memory.get("valid_from", memory["time"])


def readings(memory: Json) -> list[tuple[str, str, str]]:
    s, r, o = memory["subject"], memory["relation"], memory["object"]
    return [(s, r, o), (o, INVERSE[r], s)] if r in INVERSE else [(s, r, o)]


def end_of(memory: Json, seq: int, told: list[tuple[int, Json]]) -> float:
    """Its own end, or the start of the next fact that says something else of a functional relation."""
    ends = [memory.get("valid_to", math.inf)]
    for s, r, o in readings(memory):
        for other_seq, other in told:
            if r in FUNCTIONAL and (start_of(other), other_seq) > (start_of(memory), seq):
                ends += [start_of(other) for s2, r2, o2 in readings(other) if (s2, r2) == (s, r) and o2 != o]
    return min(ends)


def brute_force(told: list[tuple[int, Json]], pattern: tuple, at: float | None) -> set[tuple]:
    found = set()
    for seq, memory in told:
        holds = at is None or start_of(memory) <= at < end_of(memory, seq, told)
        # with nothing asked for, a fact is listed once, as it was told
        read = readings(memory) if any(pattern) else readings(memory)[:1]
        for triple in read if holds else ():
            if all(p is None or p == part for p, part in zip(pattern, triple, strict=True)):
                found.add((memory["id"], *triple))
    return found


def rows(graph: FactGraph, pattern: tuple, at: float | None) -> set[tuple]:
    return {(r["id"], r["subject"], r["relation"], r["object"]) for r in graph.query(*pattern, at=at)}


PATTERNS = st.tuples(
    st.none() | st.sampled_from(NAMES),
    st.none() | st.sampled_from(RELATIONS),
    st.none() | st.sampled_from(NAMES),
)


@settings(max_examples=150, deadline=None)
@given(facts(), PATTERNS, st.none() | TIMES)
def test_a_query_equals_brute_force_over_the_list(told: list[Json], pattern: tuple, at: float | None) -> None:
    numbered = [*enumerate(told)]
    assert rows(build(numbered), pattern, at) == brute_force(numbered, pattern, at)


@settings(max_examples=80, deadline=None)
@given(facts(), st.sets(st.integers(0, 9)), PATTERNS, st.none() | TIMES, st.randoms(use_true_random=False))
def test_removing_equals_building_from_the_survivors(
    told: list[Json], gone: set[int], pattern: tuple, at: float | None, random: Any
) -> None:
    numbered = [*enumerate(told)]
    graph = build(random.sample(numbered, len(numbered)))
    for i in gone:
        graph.query(*pattern, at=at)  # a cache that is now out of date
        graph.remove(f"f{i}")
    rebuilt = build([(i, memory) for i, memory in numbered if i not in gone])
    assert graph.query(*pattern, at=at) == rebuilt.query(*pattern, at=at)
    assert graph.recall("Ada and Bob", at=at) == rebuilt.recall("Ada and Bob", at=at)
    assert len(graph) == len(rebuilt)


@settings(max_examples=120, deadline=None)
@given(facts(), facts(1))
def test_what_a_plan_says_of_ends_is_what_happens(told: list[Json], new: list[Json]) -> None:
    graph = build([*enumerate(told)])
    for memory in ({**m, "id": "new"} for m in new):
        before = {row["id"]: row["valid_to"] for row in graph.query()}
        decision = graph.plan(memory)
        assert {row["id"]: row["valid_to"] for row in graph.query()} == before, "planning changes nothing"
        if decision.action == "aggregate":
            same = graph.query(memory["subject"], memory["relation"], memory["object"])
            assert decision.into in {row["id"] for row in same}
            continue
        graph.add(memory, 99)
        after = {row["id"]: row["valid_to"] for row in graph.query()}
        changed = {id: end for id, end in after.items() if id in before and end != before[id]}
        if after["new"] != memory.get("valid_to"):
            changed["new"] = after["new"]
        assert changed == {closing.id: closing.valid_to for closing in decision.closes}


@settings(max_examples=80, deadline=None)
@given(facts(12), st.sets(st.integers(0, 11)))
def test_nothing_that_was_told_is_lost(told: list[Json], gone: set[int]) -> None:
    """Every memory becomes a fact or a telling of one; one that is removed leaves the others as they were."""
    graph = FactGraph(functional=FUNCTIONAL)
    for seq, memory in enumerate(told):
        decision = graph.plan(memory)
        if decision.action == "insert":
            graph.add(memory, seq)
        else:
            graph.aggregate(decision.into or "", memory)
            (fact,) = (row for row in graph.query() if row["id"] == decision.into)
            assert fact["confidence"] == pytest.approx(decision.confidence)
    tellings = {p["id"]: row["id"] for row in graph.query() for p in row["provenance"]}
    assert tellings.keys() == {memory["id"] for memory in told}
    for i in gone:
        graph.remove(f"f{i}")
    left = {id for id, into in tellings.items() if not {id, into} & {f"f{i}" for i in gone}}
    assert {p["id"] for row in graph.query() for p in row["provenance"]} == left
    for row in graph.query():
        doubt = np.prod([1.0 - p["confidence"] for p in row["provenance"]])
        assert row["confidence"] == pytest.approx(1.0 - doubt)


ANY_TEXT = st.text(min_size=1, max_size=12).filter(str.strip) | st.sampled_from(
    ["The", "_", "🙂", "a b", "A"]
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(ANY_TEXT, ANY_TEXT | st.just("alias_of"), ANY_TEXT), max_size=10))
def test_whatever_the_api_accepts_is_taken_in_and_can_be_asked_for(told: list[tuple[str, str, str]]) -> None:
    """A record that could not be applied would keep the shard from opening."""
    graph = FactGraph()
    memories = [fact(f"f{i}", *triple, float(i)) for i, triple in enumerate(told)]
    for seq, memory in enumerate(memories):
        graph.plan(memory)
        graph.add(memory, seq)
    for s, r, o in told:
        assert graph.query(s, r, o) and graph.query(s) and graph.query(object=o)
        graph.recall(f"{s} {o}"), graph.path(s, o)
    for memory in memories:
        graph.remove(memory["id"])
    assert not len(graph) and not graph._index and not graph._mentions._counts and not graph._assertions


def test_a_newer_fact_closes_the_older_and_forgetting_it_opens_it_again() -> None:
    graph = FactGraph()
    graph.add(fact("old", "Ada", "lives in", "Lisbon", 10.0), 1)
    decision = graph.plan(fact("new", "ada", "Lives-in", "Paris", 30.0, valid_from=20.0))
    (closing,) = decision.closes
    assert (closing.id, closing.valid_to, closing.by) == ("old", 20.0, "new")
    graph.add(fact("new", "ada", "Lives-in", "Paris", 30.0, valid_from=20.0), 2)
    assert [row["object"] for row in graph.query("Ada", "lives_in", at=15.0)] == ["Lisbon"]
    assert [row["object"] for row in graph.query("Ada", "lives_in", at=25.0)] == ["Paris"]
    assert [row["valid_to"] for row in graph.query("Ada", "lives_in")] == [20.0, None]
    graph.close("old", 20.0, by="new")  # the shard may log what the plan said: nothing changes
    graph.remove("new")
    assert [row["valid_to"] for row in graph.query("Ada")] == [None]


def test_a_fact_told_late_is_filed_between() -> None:
    graph = FactGraph()
    graph.add(fact("a", "Ada", "lives_in", "Lisbon", 10.0), 1)
    graph.add(fact("c", "Ada", "lives_in", "Rome", 30.0), 2)
    late = fact("b", "Ada", "lives_in", "Paris", 40.0, valid_from=20.0)
    ends = {(c.id, c.valid_to, c.by) for c in graph.plan(late).closes}
    assert ends == {("a", 20.0, "b"), ("b", 30.0, "c")}
    graph.add(late, 3)
    for at, city in ((15.0, "Lisbon"), (25.0, "Paris"), (35.0, "Rome")):
        assert [row["object"] for row in graph.query("Ada", "lives_in", at=at)] == [city]


def test_duplicates_are_aggregated_by_noisy_or_with_their_provenance() -> None:
    graph = FactGraph()
    first = fact("a", "The Beatles", "from", "Liverpool", 1.0, confidence=0.5, conversation="c1")
    second = fact("b", "the beatles", "From", "Liverpool!", 2.0, confidence=0.8, context={"source": "web"})
    graph.add(first, 1)
    decision = graph.plan(second)
    assert (decision.action, decision.into, decision.confidence) == ("aggregate", "a", pytest.approx(0.9))
    graph.aggregate("a", second)
    graph.aggregate("a", second)
    (row,) = graph.query("Beatles")
    assert row["confidence"] == pytest.approx(0.9)
    assert [(p["id"], p["conversation"], p["source"]) for p in row["provenance"]] == [
        ("a", "c1", None),
        ("b", None, "web"),
    ]
    assert graph.plan(second).action == "existing"
    graph.remove("b")
    assert graph.query("Beatles")[0]["confidence"] == 0.5
    graph.aggregate("a", second)
    graph.remove("a")
    assert not graph.query() and graph.plan(second).action == "insert"


def test_a_fact_that_was_true_before_is_told_again() -> None:
    """Back in Lisbon after Paris: a new period, not a duplicate of the first."""
    graph = FactGraph()
    for seq, city in enumerate(("Lisbon", "Paris")):
        graph.add(fact(city, "Ada", "lives_in", city, float(seq)), seq)
    again = fact("again", "Ada", "lives_in", "Lisbon", 5.0)
    assert graph.plan(again).action == "insert"
    graph.add(again, 7)
    assert [(r["object"], r["valid_to"]) for r in graph.query("Ada")] == [
        ("Lisbon", 1.0),
        ("Paris", 5.0),
        ("Lisbon", None),
    ]


def test_a_marriage_is_one_fact_and_closes_both_sides() -> None:
    graph = FactGraph()
    graph.add(fact("a", "Bob", "married_to", "Ada", 1.0), 1)
    assert graph.plan(fact("b", "Ada", "married_to", "Bob", 2.0)).action == "aggregate"
    assert [c.id for c in graph.plan(fact("c", "Ada", "married_to", "Eve", 3.0)).closes] == ["a"]
    assert graph.query("Ada", "married_to")[0]["object"] == "Bob"


def test_aliases_are_one_entity_as_long_as_they_are_told() -> None:
    graph = FactGraph(aliases={"Big Apple": "New York"})
    graph.add(fact("a", "Eve", "lives_in", "NYC", 1.0), 1)
    assert graph.plan(fact("b", "Eve", "lives_in", "the Big Apple", 2.0)).closes
    graph.add(fact("same", "NYC", "also_known_as", "New York", 0.0), 2)
    assert graph.plan(fact("b", "Eve", "lives_in", "the Big Apple", 2.0)).into == "a"
    assert [row["id"] for row in graph.query(object="Big Apple", relation="lives_in")] == ["a"]
    assert graph.recall("What of the big apple?") == []  # no fact has that name
    assert {row["id"] for row in graph.recall("Who is in new york?")} == {"a", "same"}
    graph.remove("same")
    assert not graph.query(object="Big Apple")


@pytest.mark.parametrize(
    ("subject", "relation", "object", "why"),
    [
        ("Ada", "said", "I moved to Lisbon last year.", "sentence"),
        (
            "Ada",
            "likes",
            "one two three four five six seven eight nine ten eleven twelve thirteen",
            "13 words",
        ),
        ("She", "lives_in", "Lisbon", "pronoun"),
        ("Ada", "lives in a small town not far from", "Lisbon", "relation has 8 words"),
        ("Ada", "!?", "Lisbon", "relation has 0 words"),
        ("Ada", "wrote", "first line\nsecond line", "sentence"),
    ],
)
def test_what_is_no_triple_is_routed_with_a_reason(
    subject: str, relation: str, object: str, why: str
) -> None:
    decision = FactGraph().plan(fact("x", subject, relation, object, 0.0))
    assert decision.action == "route" and why in decision.reason


@pytest.mark.parametrize("object", ["Dr. Smith", "U.S.A.", "42", "The Lord of the Keyrings", "C++", "東京"])
def test_names_are_no_sentences(object: str) -> None:
    assert not_a_triple(fact("x", "Ada", "likes", object, 0.0)) is None


def test_a_routed_memory_loses_nothing() -> None:
    memory = parsed(kind="relational", subject="She", relation="lives_in", object="Lisbon", confidence=0.5)
    routed = as_episodic(memory)
    assert (routed.kind, routed.text, routed.id) == ("episodic", "She lives in Lisbon.", memory.id)
    assert routed.context["relational"] == memory.fields
    assert from_json(to_json(routed)) == routed


def test_names_and_relations_have_one_spelling() -> None:
    assert {normalise(n) for n in ("The Hague", "hague", " HAGUE's ")} == {"hague"}
    assert len({normalise(n) for n in ("C", "C++", "C#", "-5", "5", "2.5", "25", "🙂", "🙃", "the")}) == 10
    assert {normalise_relation(r) for r in ("Lives in", "lives-in", "lives_in")} == {"lives_in"}


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("abcdef"), st.booleans()), max_size=12))
def test_aliases_equal_connected_components(links: list[tuple[str, str, bool]]) -> None:
    aliases, graph = Aliases(), nx.Graph()
    graph.add_nodes_from("abcdef")
    for i, (a, b, _) in enumerate(links):
        aliases.link(a, b, str(i))
    for i, (a, b, stays) in enumerate(links):
        if stays:
            graph.add_edge(a, b)
        else:
            aliases.unlink(str(i))
    for name in "abcdef":
        assert aliases.group(name) == sorted(nx.node_connected_component(graph, name))


def test_the_longest_name_is_found() -> None:
    mentions = Mentions()
    for name in ("new york", "new york times", "york", "ada"):
        mentions.add(name)
    assert [*mentions.find("Ada's New York Times, in new York and York")] == [
        "ada",
        "new york times",
        "new york",
        "york",
    ]
    mentions.discard("new york times")
    assert [*mentions.find("the New York Times")] == ["new york"]


@settings(max_examples=40, deadline=None)
@given(facts(20), st.sampled_from(NAMES), st.none() | TIMES)
def test_pagerank_equals_the_dense_fixed_point(told: list[Json], seed: str, at: float | None) -> None:
    graph = build([*enumerate(told)])
    names = sorted(map(normalise, NAMES))
    number, walk = {name: i for i, name in enumerate(names)}, np.zeros((len(names), len(names)))
    for i, memory in enumerate(told):
        holds = at is None or start_of(memory) <= at < end_of(memory, i, [*enumerate(told)])
        a, b = number[normalise(memory["subject"])], number[normalise(memory["object"])]
        walk[a, b] += memory["confidence"] * holds
        walk[b, a] += memory["confidence"] * holds
    start = np.eye(len(names))[number[normalise(seed)]]
    sums = walk.sum(axis=0)
    step = np.where(sums > 0, walk / np.where(sums > 0, sums, 1.0), start[:, None])
    exact = np.linalg.solve(np.eye(len(names)) - 0.5 * step, 0.5 * start)
    ranks = traversal.pagerank({normalise(seed): 3.0}, lambda e: graph._edges(e, at))
    assert np.allclose([ranks.get(name, 0.0) for name in names], exact, atol=1e-3)


def test_recall_reaches_over_several_hops_and_ranks_the_near_first() -> None:
    graph = FactGraph()
    told = [("Ada", "works_at", "Acme"), ("Acme", "located_in", "Lisbon"), ("Lisbon", "mayor", "Eve")]
    for i, (s, r, o) in enumerate([*told, ("Bob", "works_at", "Initech")]):
        graph.add(fact(f"f{i}", s, r, o, float(i)), i)
    found = graph.recall("Who is the mayor where Ada works?", k=10)
    assert [row["id"] for row in found] == ["f0", "f1", "f2"], "what is not connected is not found"
    assert graph.recall("nobody here") == []
    assert [row["id"] for row in graph.path("Eve", "ada") or ()] == ["f2", "f1", "f0"]
    assert graph.path("Ada", "Bob") is None and graph.path("Ada", "Eve", max_hops=2) is None
    assert graph.path("Ada", "Ada") == []


@settings(max_examples=60, deadline=None)
@given(facts(14), st.permutations(NAMES))
def test_a_path_is_as_short_as_networkx_says(told: list[Json], names: list[str]) -> None:
    oracle = nx.Graph([(m["subject"], m["object"]) for m in told])
    oracle.add_nodes_from(NAMES)
    path = build([*enumerate(told)]).path(names[0], names[1])
    if nx.has_path(oracle, names[0], names[1]):
        assert path is not None
        assert len(path) == nx.shortest_path_length(oracle, names[0], names[1])
    else:
        assert path is None


def test_patterns_are_joined() -> None:
    graph = FactGraph()
    told = [("Winona", "is_a", "sheep"), ("sheep", "afraid_of", "wolf"), ("Ada", "is_a", "human")]
    for i, (s, r, o) in enumerate(told):
        graph.add(fact(f"f{i}", s, r, o, float(i)), i)
    (found,) = graph.solve([("Winona", "is_a", "?kind"), ("?kind", "afraid_of", "?what")])
    assert found.values == {"?kind": "sheep", "?what": "wolf"}
    assert [f["id"] for f in found.facts] == ["f0", "f1"]


@settings(max_examples=60, deadline=None)
@given(facts(8))
def test_a_join_equals_brute_force(told: list[Json]) -> None:
    graph = build([*enumerate(told)])
    triples = [triple for memory in told for triple in readings(memory)]
    expected = {
        (x, y, z)
        for (x, r, y), (y2, r2, z) in [*permutations(triples, 2), *((t, t) for t in triples)]
        if r == "parent_of" and r2 == "lives_in" and y == y2
    }
    solved = graph.solve([("?x", "parent_of", "?y"), ("?y", "lives_in", "?z")])
    assert {tuple(s.values[v] for v in ("?x", "?y", "?z")) for s in solved} == expected


def test_a_join_that_grows_too_large_is_refused() -> None:
    graph = FactGraph()
    for number in range(30):
        graph.add(fact(f"f{number}", f"e{number}", "knows", f"e{number + 1}", number), number)
    crossed = [("?a", "knows", "?b"), ("?c", "knows", "?d")]
    assert len(graph.solve(crossed, at_most=900)) == 900
    with pytest.raises(InvalidInput, match=r"patterns\[1\]: more than 899"):
        graph.solve(crossed, at_most=899)
