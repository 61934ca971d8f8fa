"""Where things live: homes, stability, balance."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.layout.placement import Placement

NAMES = st.text("abcdefgh0123._:-", min_size=1, max_size=12)
KINDS = st.sampled_from(["episodic", "relational", "spatial"])


@st.composite
def placements(draw, homes=True):
    shards = draw(st.integers(1, 12))
    return Placement(shards=shards, spread=draw(st.integers(1, shards)), homes=homes)


@given(placements(), NAMES, NAMES, KINDS)
def test_everything_lives_on_the_namespaces_shards_and_is_looked_up_where_it_lives(where, space, id, kind):
    places = where.places(space)
    assert len(set(places)) == where.spread and set(places) <= set(where.numbers)
    assert where.home(space) == places[0]
    assert where.owner(space, id, kind) in where.lookups(space, id)
    assert set(where.lookups(space, id)) <= set(places)
    if kind != "episodic":
        assert where.owner(space, id, kind) == where.home(space)
    assert where.asked([space]) == sorted(places)


@given(placements(), NAMES, NAMES)
def test_a_shard_more_takes_only_its_own_share(where, space, id):
    more = Placement(shards=where.shards + 1, spread=where.spread)
    new = where.shards
    before, after = where.places(space), more.places(space)
    assert [number for number in after if number != new] == [*before][: len(after) - (new in after)]
    assert more.home(space) in (where.home(space), new)
    if new not in after:
        assert more.pick(space, id) == where.pick(space, id)
    elif (old := where.pick(space, id)) in after:
        assert more.pick(space, id) in (old, new)


@given(st.integers(1, 12), NAMES, NAMES, KINDS)
def test_a_layout_without_homes_goes_by_the_id_alone(shards, space, id, kind):
    where = Placement(shards=shards, spread=shards, homes=False)
    everywhere = Placement(shards=shards, spread=shards)
    assert where.owner(space, id, kind) == everywhere.pick(space, id)
    assert where.lookups(space, id) == [where.owner(space, id, kind)]
    assert where.asked([space]) == [*range(shards)]


@pytest.mark.parametrize(("shards", "spread"), [(2, 1), (5, 2), (5, 4), (9, 3)])
def test_load_is_even(shards, spread):
    """Counts are binomial: with 20,000 draws none may be further than 5.5 deviations from its mean.

    For all the counts of this test together the odds of that are under one in a hundred thousand.
    """
    draws, where = 20_000, Placement(shards=shards, spread=spread)
    held = Counter(number for i in range(draws) for number in where.places(f"n{i}"))
    homes = Counter(where.home(f"n{i}") for i in range(draws))
    ids = Counter(where.pick("tenant", f"id-{i}") for i in range(draws))
    for counts, odds, count in (
        (held, spread / shards, shards),
        (homes, 1 / shards, shards),
        (ids, 1 / spread, spread),
    ):
        assert len(counts) == count
        deviation = (draws * odds * (1 - odds)) ** 0.5
        assert all(abs(n - draws * odds) <= 5.5 * deviation for n in counts.values())
