"""The place map against worlds that were drawn first: exact coordinates, simulated walks, Dijkstra."""

import itertools
import math
from typing import Any

import networkx as nx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stores.places import directions
from stores.places.directions import COMPASS, by_sector, read
from stores.places.map import PlaceMap
from stores.places.near_duplicate_places import similar

Json = dict[str, Any]

PLACES = "abcdefg"
ROOMS = ("kitchen", "hall", "garden")


def told(id: str, place: str, relation: str, other: str, time: float = 0.0) -> Json:
    return {"id": id, "place": place, "relation": relation, "other": other, "time": time}


def located(id: str, place: str, x: float, y: float, time: float = 0.0) -> Json:
    return {"id": id, "place": place, "x": x, "y": y, "time": time}


def build(memories: list[Json], **options: Any) -> PlaceMap:
    places = PlaceMap(**options)
    for seq, memory in enumerate(memories):
        places.add(memory, seq)
    return places


# Words


@pytest.mark.parametrize(
    ("relation", "step"),
    [
        ("left_of", (-1, 0)),
        ("to the right of", (1, 0)),
        ("north-east_of", (1, 1)),
        ("north_east_of", (1, 1)),
        ("southwest of", (-1, -1)),
        ("upper_left_of", (-1, 1)),
        ("below and to the right of", None),
        ("on top of", (0, 1)),
        ("is directly beneath", (0, -1)),
        ("left and right of", None),
        ("painted_by", None),
    ],
)
def test_directions_are_read(relation: str, step: tuple[int, int] | None) -> None:
    reading = read(relation)
    if relation.startswith("below and"):
        assert reading and reading.step == (1, -1)
    else:
        assert (reading.step if reading else None) == step


def test_every_known_relation_is_read_as_its_kind() -> None:
    for kind, relations in directions._KINDS.items():
        for relation in relations.split():
            assert read(relation).kind == kind, relation
    assert read("moved_north").kind == read("went left").kind == "moved"
    assert read("carries").swapped and not read("carried_by").swapped


WORDS = st.text(max_size=12) | st.sampled_from([*PLACES, "2 steps", "9" * 400, "_", "!?", "the"])
RELATIONS = WORDS | st.sampled_from(
    "left_of near in carried_by dropped_by moved_north moved contains same_as connected_to leads_to not_in".split()
)
ANY = st.fixed_dictionaries(
    {"place": WORDS, "relation": RELATIONS, "other": WORDS, "time": st.floats(-1e10, 1e10)}
) | st.fixed_dictionaries(
    {
        "place": WORDS,
        "x": st.floats(allow_nan=False, allow_infinity=False),
        "y": st.just(-1e308),
        "time": st.just(0.0),
    }
)


@settings(max_examples=150, deadline=None)
@given(st.lists(ANY, max_size=14))
def test_whatever_the_api_accepts_is_taken_in_and_can_be_asked_for(memories: list[Json]) -> None:
    """A record that could not be applied would keep the shard from opening."""
    numbered = [{**m, "id": f"m{i}"} for i, m in enumerate(memories) if m["place"].strip()]
    numbered = [m for m in numbered if "x" in m or (m["relation"].strip() and m["other"].strip())]
    places = PlaceMap()
    for seq, memory in enumerate(numbered):
        assert places.plan(memory).action == "insert"
        places.add(memory, seq)
    for memory in numbered:
        name = memory["place"]
        position = places.position_of(name)
        assert position is None or math.isfinite(position.x + position.y)
        places.where(name), places.trail(name), places.nearest(name)
        places.path(name, numbered[0]["place"], by="observed"), places.relation_of(name, numbered[0]["place"])
    places.contradictions(), places.macros()
    for memory in numbered:
        places.remove(memory["id"])
    assert not len(places) and not places._constraints and not places._roads


# Positions

POINTS = st.tuples(st.integers(-3, 3), st.integers(-3, 3))


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[str, tuple[int, int]], list[Json]]:
    """Places on a grid, each one step from an earlier one, and what is told of neighbours."""
    at = {"a": (0, 0)}
    pairs = []
    for name in PLACES[1 : draw(st.integers(2, len(PLACES)))]:
        other, step = draw(st.sampled_from(sorted(at))), draw(st.sampled_from(sorted(COMPASS)))
        at[name] = at[other][0] + step[0], at[other][1] + step[1]
        pairs.append((name, other))
    for one, other in itertools.combinations(sorted(at), 2):
        if max(abs(at[one][i] - at[other][i]) for i in (0, 1)) == 1 and draw(st.booleans()):
            pairs.append((one, other))
    memories = []
    for i, (one, other) in enumerate(draw(st.permutations(pairs))):
        if draw(st.booleans()):
            one, other = other, one
        step = at[one][0] - at[other][0], at[one][1] - at[other][1]
        memories.append(told(f"m{i}", one, f"{COMPASS[step]}_of", other, float(draw(st.integers(0, 3)))))
    return at, memories


@settings(max_examples=100, deadline=None)
@given(worlds())
def test_relations_equal_those_of_the_world_that_was_told(world: tuple[dict, list[Json]]) -> None:
    at, memories = world
    places = build(memories)
    for one, other in itertools.permutations(at, 2):
        bearing = places.relation_of(one, other)
        assert bearing is not None
        assert (bearing.dx, bearing.dy) == pytest.approx(
            (at[one][0] - at[other][0], at[one][1] - at[other][1])
        )
        told_of = {name for m in memories if m["id"] in bearing.memories for name in (m["place"], m["other"])}
        assert {one, other} <= told_of, "an answer names what it rests on"
        rebuilt = build([m for m in memories if m["id"] in bearing.memories]).relation_of(one, other)
        assert rebuilt is not None and rebuilt.relation == bearing.relation, "and that is enough"
    assert places.contradictions() == []


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(PLACES), POINTS, min_size=2), POINTS, st.integers(0, 5))
def test_nearest_and_within_equal_brute_force(
    at: dict[str, tuple[int, int]], centre: tuple[int, int], radius: int
) -> None:
    places = build([located(name, name, *point) for name, point in at.items()])
    order = sorted(at, key=lambda name: (math.dist(at[name], centre), name))
    assert [f.place for f in places.nearest(x=centre[0], y=centre[1], k=3)] == order[:3]
    near = [name for name in order if math.dist(at[name], centre) <= radius]
    assert [f.place for f in places.within(radius, x=centre[0], y=centre[1])] == near
    assert [f.memories for f in places.within(radius, x=centre[0], y=centre[1])] == [(n,) for n in near]
    one = min(at)
    others = sorted(at.keys() - {one}, key=lambda name: (math.dist(at[name], at[one]), name))
    assert [f.place for f in places.nearest(one, k=9)] == others
    for name, other in itertools.permutations(at, 2):
        dx, dy = at[name][0] - at[other][0], at[name][1] - at[other][1]
        assert places.relation_of(name, other).step == by_sector(dx, dy)


def test_words_and_coordinates_share_a_frame() -> None:
    places = build([located("m", "museum", 3.0, 4.0), told("c", "cafe", "left_of", "museum")])
    cafe = places.position_of("the Cafe")
    assert (cafe.x, cafe.y, cafe.frame, cafe.memories) == (2.0, 4.0, "", ("c", "m"))
    places.add(located("z", "zoo", 3.0, 9.0), 5)
    assert places.relation_of("zoo", "cafe").memories == ("z", "c", "m")
    assert places.relation_of("zoo", "nowhere") is None
    assert places.nearest("nowhere") == []


def test_observations_that_close_a_loop_are_settled_together() -> None:
    """c left of b, a left of b, a left of c: unit steps do not fit, but every word holds."""
    places = build(
        [told("1", "a", "left_of", "b"), told("2", "c", "left_of", "b"), told("3", "a", "left_of", "c")]
    )
    assert places.contradictions() == []
    assert {places.relation_of(*pair).relation for pair in ("ab", "cb", "ac")} == {"west_of"}


def test_the_newest_of_contradicting_observations_wins_and_the_other_is_reported() -> None:
    old, new = told("old", "a", "left_of", "b", 1.0), told("new", "a", "right_of", "b", 2.0)
    places = build([old])
    assert places.plan(new).contradicts == ("old",)
    assert places.plan(told("same", "b", "east_of", "a", 2.0)).contradicts == ()
    places.add(new, 7)
    assert places.relation_of("a", "b").relation == "east_of" and places.contradictions() == ["old"]
    places.remove("new")
    assert places.relation_of("a", "b").relation == "west_of" and places.contradictions() == []


def test_a_contradiction_over_a_chain_leaves_out_the_oldest() -> None:
    chain = [
        told(str(i), *pair, time=float(i))
        for i, pair in enumerate((("a", "left_of", "b"), ("b", "left_of", "c")))
    ]
    places = build([*chain, told("2", "c", "left_of", "a", 2.0)])
    assert places.contradictions() == ["0"]
    assert places.relation_of("b", "a").relation == "west_of"


def test_coordinates_beat_words_and_newer_coordinates_older() -> None:
    places = build(
        [located("1", "a", 0, 0, 1.0), located("2", "b", 5, 0, 1.0), told("3", "a", "right_of", "b", 2.0)]
    )
    assert places.relation_of("a", "b").relation == "west_of" and places.contradictions() == ["3"]
    places.add(located("4", "a", 9, 0, 3.0), 9)
    assert places.relation_of("a", "b").relation == "east_of" and places.contradictions() == ["1"]


def test_places_told_so_come_before_those_that_follow() -> None:
    places = build(
        [told("1", "b", "north_of", "a"), told("2", "c", "north_of", "b"), told("3", "d", "near", "a")]
    )
    assert [f.place for f in places.related("north of", "a")] == ["b", "c"]
    assert places.related("south_of", "c")[1].memories == ("1", "2")
    assert [f.place for f in places.related("near", "a")] == ["d"]


# Merging


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("cafe luna", "luna café", True),
        ("central libary", "central library", True),
        ("room 1", "room 2", False),
        ("north gate", "south gate", False),
        ("gate a", "gate b", False),
        ("museum", "museum entrance", False),
    ],
)
def test_names_with_a_slip_are_similar(one: str, other: str, same: bool) -> None:
    assert similar(one, other) == same


def test_near_duplicates_merge_and_come_apart_again() -> None:
    places = build(
        [located("1", "Central Library", 2.0, 2.0), told("2", "cafe", "left_of", "central library")]
    )
    twin = located("3", "central libary", 2.1, 2.0)
    assert places.plan(twin).merges == ("central library",)
    places.add(twin, 4)
    places.add(told("4", "park", "right_of", "central libary"), 5)
    assert places.relation_of("cafe", "park").relation == "west_of"
    assert [f.place for f in places.nearest("cafe", k=9)] == ["Central Library", "park"]
    assert set(places.relation_of("cafe", "park").memories) == {"2", "4"}
    places.remove("3")
    assert places.relation_of("cafe", "park") is None
    places.add(told("5", "central libary", "same_as", "Central Library"), 6)
    assert places.relation_of("cafe", "park").relation == "west_of"


# Locations

THINGS = ("ball", "cup")
PEOPLE = ("ada", "bob")


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, str, str]]:
    """Events of a household in order: (relation, who or what, other)."""
    held: dict[str, str | None] = dict.fromkeys(THINGS)
    events = [("moved_to", person, draw(st.sampled_from(ROOMS))) for person in PEOPLE]
    events += [("in", thing, draw(st.sampled_from(ROOMS))) for thing in THINGS]
    for _ in range(draw(st.integers(0, 12))):
        person, thing = draw(st.sampled_from(PEOPLE)), draw(st.sampled_from(THINGS))
        if draw(st.booleans()):
            events.append(("moved_to", person, draw(st.sampled_from(ROOMS))))
        elif held[thing] is None:
            held[thing] = person
            events.append(("carried_by", thing, person))
        elif draw(st.booleans()):
            events.append(("dropped_by", thing, held[thing]))
            held[thing] = None
        else:
            held[thing] = person
            events.append(("given_to", thing, person))
    return events


def simulate(events: list[tuple[str, str, str]]) -> list[dict[str, str]]:
    """The room of everything after each event."""
    room: dict[str, str] = {}
    carrier: dict[str, str] = {}
    states = []
    for relation, who, other in events:
        if relation in ("moved_to", "in"):
            room[who] = other
        elif relation == "dropped_by":
            del carrier[who]
        else:
            carrier[who] = other
        for thing, person in carrier.items():
            room[thing] = room[person]
        states.append(dict(room))
    return states


@settings(max_examples=100, deadline=None)
@given(histories())
def test_whereabouts_equal_a_simulation_at_every_moment(events: list[tuple[str, str, str]]) -> None:
    places = build([told(f"m{i}", who, rel, other, float(i)) for i, (rel, who, other) in enumerate(events)])
    states = simulate(events)
    for moment, state in enumerate(states):
        for who, room in state.items():
            assert places.where(who, at=float(moment)).place == room
        for who in {*THINGS, *PEOPLE} - state.keys():
            assert places.where(who, at=float(moment)).place not in ROOMS
    for who in (*THINGS, *PEOPLE):
        rooms = [state[who] for state in states if who in state]
        assert [v.place for v in places.trail(who)] == [room for room, _ in itertools.groupby(rooms)]


@settings(max_examples=60, deadline=None)
@given(histories(), worlds(), st.sets(st.integers(0, 30)), st.randoms(use_true_random=False))
def test_removing_equals_building_from_the_survivors(
    events: list[tuple[str, str, str]], world: tuple[dict, list[Json]], gone: set[int], random: Any
) -> None:
    memories = [told(f"m{i}", who, rel, other, float(i)) for i, (rel, who, other) in enumerate(events)]
    memories += [{**m, "id": f"w{m['id']}"} for m in world[1]]
    memories += [told("s0", "ada", "moved_north", "2", 4.5), told("s1", "bob", "moved_east", "hall", 3.5)]
    memories += [located("s2", "kitchen", 1.0, 2.0, 1.0), located("s3", "Kitchen", 4.0, 2.0, 2.0)]
    memories += [
        told("s4", "kitchen", "same_as", "a", 0.0),
        told("s5", "hall", "connected_to", "garden", 0.0),
    ]
    numbered = [*enumerate(memories)]
    places = PlaceMap()
    for seq, memory in random.sample(numbered, len(numbered)):
        places.add(memory, seq)
        places.position_of("a")  # a cache that the next memory makes out of date
    for seq in sorted(gone & set(range(len(memories)))):
        places.remove(memories[seq]["id"])
        places.path("hall", "garden")
    rebuilt = PlaceMap()
    for seq, memory in numbered:
        if seq not in gone:
            rebuilt.add(memory, seq)
    names = [*ROOMS, *THINGS, *PEOPLE, *PLACES]
    assert places.contradictions() == rebuilt.contradictions()
    for name in names:
        assert places.where(name) == rebuilt.where(name)
        assert places.trail(name) == rebuilt.trail(name)
        assert places.position_of(name) == rebuilt.position_of(name)
        assert places.nearest(name) == rebuilt.nearest(name)
        assert places.path("hall", name) == rebuilt.path("hall", name)
        assert places.relation_of(name, "a") == rebuilt.relation_of(name, "a")
    assert places.macros() == rebuilt.macros()
    for memory in memories:
        places.remove(memory["id"])
    assert not len(places) and not places._labels and not places._edges and not places._points


def test_what_is_in_a_box_that_is_carried_goes_with_it() -> None:
    places = build(
        [
            told("1", "coin", "in", "box", 1.0),
            told("2", "Ada", "carries", "box", 2.0),
            told("3", "Ada", "went_to", "The Park", 3.0),
        ]
    )
    where = places.where("coin")
    assert (where.place, where.chain, where.memories) == ("box", ("box", "Ada", "The Park"), ("1", "2", "3"))
    assert places.where("box").place == "The Park" and places.where("coin", at=2.5).chain == ("box", "Ada")
    places.add(told("4", "Ada", "no_longer_in", "the park", 4.0), 9)
    assert places.where("box").place is None
    places.add(located("5", "the park", 3.0, 3.0, 0.0), 10)
    assert places.where("box").place is None and places.position_of("box") is None
    places.add(told("6", "Ada", "went north", "2", 5.0), 11)
    assert (places.position_of("coin").x, places.position_of("coin").y) == (3.0, 5.0)
    assert places.where("nobody") == places.where("nobody", at=3.0)


def test_things_in_each_other_do_not_hang() -> None:
    places = build([told("1", "a", "in", "b"), told("2", "b", "in", "a"), told("3", "c", "dropped_by", "c")])
    assert places.where("a").place == "b" and places.where("c").place is None
    assert places.position_of("a") is None and places.trail("a")[0].place == "b"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["north", "east", "south", "west"]), st.integers(1, 2)), max_size=8)
)
def test_a_walk_by_steps_ends_where_dead_reckoning_says(walk: list[tuple[str, int]]) -> None:
    names = {(x, y): f"room {x} {y}" for x in range(-2, 3) for y in range(-2, 3)}
    memories = [located(name, name, *point) for point, name in names.items()]
    memories.append(told("start", "robot", "in", "room 0 0", 1.0))
    x = y = 0
    for i, (word, steps) in enumerate(walk):
        step = next(step for step, name in COMPASS.items() if name == word)
        x, y = x + step[0] * steps, y + step[1] * steps
        memories.append(told(f"w{i}", "robot", f"moved_{word}", f"{steps} steps", 2.0 + i))
    places = build(memories)
    position = places.position_of("robot")
    assert (position.x, position.y) == (x, y)
    assert places.where("robot").place == names.get((x, y))
    assert {f"w{i}" for i in range(len(walk))} <= set(position.memories)


def test_a_thing_is_tracked_by_its_coordinates() -> None:
    places = build([located(str(t), "van", float(t), 0.0, float(t)) for t in (1, 2, 3)])
    places.add(told("m", "van", "moved_north", "2", 2.5), 9)
    places.add(told("in", "box", "carried_by", "van", 0.0), 10)
    for at, point in ((1.5, (1.0, 0.0)), (2.0, (2.0, 0.0)), (2.7, (2.0, 2.0)), (9.0, (3.0, 0.0))):
        for thing in ("van", "box"):
            position = places.position_of(thing, at=at)
            assert (position.x, position.y) == point


def test_a_move_to_a_named_place_tells_where_that_is() -> None:
    places = build(
        [
            told("1", "robot", "in", "hall", 1.0),
            told("2", "robot", "moved_north", "library", 2.0),
            told("3", "robot", "moved_east", "tower", 3.0),
        ]
    )
    assert places.relation_of("tower", "hall").relation == "north_east_of"
    assert places.path("hall", "tower").directions == ("north", "east")
    places.remove("2")
    assert places.relation_of("tower", "hall").relation == "east_of"


# Paths


@st.composite
def roads(draw: st.DrawFn) -> tuple[nx.DiGraph, list[Json]]:
    pairs = draw(st.lists(st.permutations(PLACES).map(lambda p: (p[0], p[1])), max_size=14))
    graph: nx.DiGraph = nx.DiGraph()
    graph.add_nodes_from(PLACES)
    located_names = draw(st.sampled_from([PLACES, PLACES[:4], ""]))
    at = {name: draw(POINTS) for name in located_names}
    memories = [located(f"p{name}", name, *point) for name, point in at.items()]
    for i, (a, b) in enumerate(pairs):
        one_way = draw(st.booleans())
        memories.append(told(f"r{i}", a, "leads_to" if one_way else "connected_to", b, float(i)))
        cost = math.dist(at[a], at[b]) or 1.0 if a in at and b in at else 1.0
        graph.add_edge(a, b, cost=cost)
        if not one_way:
            graph.add_edge(b, a, cost=cost)
    return graph, memories


@settings(max_examples=150, deadline=None)
@given(roads(), st.lists(st.lists(st.sampled_from(PLACES), max_size=6), max_size=6))
def test_a_path_costs_what_dijkstra_says_with_macros_and_without(
    world: tuple[nx.DiGraph, list[Json]], walks: list[list[str]]
) -> None:
    graph, memories = world
    plain = build(memories)
    repeated = [(f"{n}.{r}", walk) for n, walk in enumerate(walks) for r in range(3)]
    moves = [
        told(f"w{who}.{i}", f"walker {who}", "moved_to", place, 100.0 + i)
        for who, walk in repeated
        for i, place in enumerate(walk)
    ]
    walked = build([*memories, *moves])
    for a, b in itertools.permutations(PLACES, 2):
        for places in (plain, walked):
            path = places.path(a, b)
            if not nx.has_path(graph, a, b):
                assert path is None
                continue
            assert path is not None
            assert path.cost == pytest.approx(nx.dijkstra_path_length(graph, a, b, weight="cost"))
            assert nx.path_weight(graph, path.places, "cost") == pytest.approx(path.cost)
            assert (path.places[0], path.places[-1]) == (a, b)
            assert path.memories and {id[0] for id in path.memories} == {"r"}
    for macro in walked.macros():
        path = walked.path(macro.places[0], macro.places[-1])
        assert path.expanded == 0, "a macro needs no search"


def test_a_macro_shortens_the_search() -> None:
    grid = [(x, y) for x in range(8) for y in range(8)]
    memories = [
        told(f"{x}{y}{dx}", f"r {x} {y}", "connected_to", f"r {x + dx} {y + 1 - dx}")
        for x, y in grid
        for dx in (0, 1)
        if (x + dx, y + 1 - dx) in grid
    ]
    plain = build(memories)
    route = ["r 3 3", "r 3 4", "r 4 4", "r 4 5"]
    moves = [
        told(f"m{day}{i}", "postman", "moved_to", place, 10.0 * day + i)
        for day in range(3)
        for i, place in enumerate(route)
    ]
    walked = build([*memories, *moves])
    assert walked.macros()[0].places == tuple(route) and walked.macros()[0].count == 3
    for start in ("r 3 3", "r 2 3", "r 0 0"):
        assert walked.path(start, "r 4 5").cost == plain.path(start, "r 4 5").cost
        assert walked.path(start, "r 4 5").expanded < plain.path(start, "r 4 5").expanded
    walked.remove("m00")
    assert tuple(route) not in [macro.places for macro in walked.macros()], "walked twice only"


def test_the_straight_line_guides_the_search() -> None:
    line = [located(f"p{i}", f"stop {i}", float(i), 0.0) for i in range(40)]
    line += [told(f"r{i}", f"stop {i}", "connected_to", f"stop {i + 1}") for i in range(39)]
    assert build(line).path("stop 20", "stop 24").expanded <= 5
    assert build(line[40:]).path("stop 20", "stop 24").expanded > 5


@settings(max_examples=60, deadline=None)
@given(worlds(), st.permutations(PLACES))
def test_observed_neighbours_can_be_walked(world: tuple[dict, list[Json]], names: list[str]) -> None:
    at, memories = world
    assume({names[0], names[1]} <= at.keys())
    path = build(memories).path(names[0], names[1], by="observed")
    x, y = at[names[0]]
    for word in path.directions:
        step = next(step for step, name in COMPASS.items() if name == word)
        x, y = x + step[0], y + step[1]
    assert (x, y) == at[names[1]]
