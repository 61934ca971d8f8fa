"""A shard's phases and the layout's record, without Ray."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.layout.file_record import LayoutFile
from actors.layout.layout import BY_ID_ALONE, ShardLayout, from_json
from actors.layout.records import keys_record
from actors.shards.shard_phase import Phase, PhaseGuard
from common.config import load
from common.errors import Conflict, NotReady
from common.files import write_json

OLD = ShardLayout(shards=2, spread=2)
MOVING = ShardLayout(shards=2, spread=2, moving="m")
NEW = ShardLayout(shards=3, spread=3, generation=2)


@pytest.fixture
def record(tmp_path):
    found = LayoutFile(tmp_path)
    assert found.swap(None, OLD) and not found.swap(None, NEW)
    return found


class Shard(PhaseGuard):
    def __init__(self, record, generation, lease_s=30.0):
        self.ends = []
        super().__init__(record, generation, self.ends.append, lease_s=lease_s)


def waits(shard, group):
    try:
        with shard.turn(shard.generation, group):
            return None
    except NotReady as error:
        return error.code


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


layouts = st.builds(
    ShardLayout,
    shards=st.integers(1, 99),
    spread=st.integers(1, 99),
    generation=st.integers(1, 99),
    moving=st.none() | st.text(max_size=5),
)


@given(layouts)
def test_a_layout_survives_its_json(layout):
    assert from_json(layout.to_json()) == layout
    names = {layout.actor_name(i) for i in range(layout.shards)}
    folders = {layout.folder(i) for i in range(layout.shards)}
    assert len(names) == len(folders) == layout.shards


def test_the_first_layout_is_read_and_a_later_one_refused(tmp_path):
    write_json(tmp_path / "layout.json", {"shards": 3})
    assert LayoutFile(tmp_path).read() == ShardLayout(shards=3, spread=3, version=BY_ID_ALONE)
    write_json(tmp_path / "layout.json", {"version": 99, "shards": 3})
    with pytest.raises(Conflict, match="version 99"):
        LayoutFile(tmp_path).read()


def test_only_one_of_many_swaps_wins(record):
    won = []

    def swap(i):
        if record.swap(OLD, ShardLayout(shards=2, spread=2, moving=str(i))):
            won.append(str(i))

    threads = [threading.Thread(target=swap, args=(i,)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [record.read().moving]


def test_a_reshard_holds_writes_then_reads_and_switches(record):
    old, new = Shard(record, 1), Shard(record, 2)
    assert (old.phase, new.phase) == (Phase.SERVING, Phase.BUILDING)
    assert waits(old, "write") is waits(old, "read") is None and waits(new, "read") == "moved"
    with pytest.raises(Conflict):
        old.hold("m", reads=False)
    record.swap(OLD, MOVING)
    old.hold("m", reads=False)
    assert (waits(old, "write"), waits(old, "read")) == ("held", None)
    old.hold("m", reads=True)
    assert waits(old, "read") == waits(old, "write") == "held"
    assert record.swap(MOVING, NEW)
    assert waits(new, "read") is None, "a client that knows the new layout is proof that it holds"
    assert old.settle() is Phase.ENDED and old.ends == [NEW] and old.settle() is Phase.ENDED
    assert waits(old, "read") == "moved" and new.phase is Phase.SERVING


def test_holding_waits_for_the_writes_that_run(record):
    old = Shard(record, 1)
    record.swap(OLD, MOVING)
    held = threading.Event()
    with old.turn(1, "write"):
        thread = threading.Thread(target=lambda: (old.hold("m", reads=False), held.set()))
        thread.start()
        until(lambda: old.phase is Phase.HELD)
        assert not held.is_set()
    thread.join(60)
    assert held.is_set()


def test_without_a_sign_the_old_layout_goes_on_and_the_reshard_cannot_switch(record):
    old, new = Shard(record, 1, lease_s=0.2), Shard(record, 2, lease_s=0.4)
    record.swap(OLD, MOVING)
    old.hold("m", reads=True)
    until(lambda: old.phase is Phase.SERVING)
    assert waits(old, "write") is None and record.read() == OLD
    assert not record.swap(MOVING, NEW)
    until(lambda: new.phase is Phase.ENDED)
    assert new.ends == [OLD]
    with pytest.raises(Conflict):
        new.keep()


def test_a_reshard_that_dies_after_the_switch_is_finished_by_the_shards(record):
    old, new = Shard(record, 1, lease_s=0.2), Shard(record, 2, lease_s=0.2)
    record.swap(OLD, MOVING)
    old.hold("m", reads=True)
    new.keep()
    record.swap(MOVING, NEW)
    until(lambda: (old.phase, new.phase) == (Phase.ENDED, Phase.SERVING))


def test_a_shard_that_restarts_while_it_is_held_stays_closed(record):
    record.swap(OLD, MOVING)
    old = Shard(record, 1, lease_s=0.3)
    assert old.phase is Phase.CLOSED and waits(old, "write") == "held"
    until(lambda: old.phase is Phase.SERVING)


def test_callers_of_another_generation_are_sent_away(record):
    shard = Shard(record, 1)
    for generation in (0, 2):
        with pytest.raises(NotReady) as caught, shard.turn(generation, "read"):
            pass
        assert caught.value.code == "moved"


def test_only_one_may_build(record):
    with record.exclusive(), pytest.raises(Conflict, match="being resharded"), record.exclusive():
        pass
    with record.exclusive():
        pass


def test_keys_that_lie_apart_go_with_their_generation(tmp_path):
    apart = {"master_key": "env:NOT_READ_HERE", "keys_dir": str(tmp_path / "keys")}
    config = load(
        overrides={f"store.{name}": value for name, value in (apart | {"dir": str(tmp_path / "s")}).items()}
    )
    for folder in ("0000", "0001", "g2/0000"):
        (tmp_path / "keys" / "shards" / folder).mkdir(parents=True)
    keys = keys_record(config)
    assert keys is not None
    keys.drop("0001")
    assert sorted(path.name for path in (tmp_path / "keys" / "shards").iterdir()) == ["0000", "g2"]
    keys.drop_others(ShardLayout(shards=1, spread=1, generation=2))
    assert [path.name for path in (tmp_path / "keys" / "shards").iterdir()] == ["g2"]
    assert keys_record(load(overrides={"store.dir": str(tmp_path / "s")})) is None
