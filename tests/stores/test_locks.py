"""Reads that take long: writers go on meanwhile. Each test stops one in the middle of what it does, writes,
and lets it go on; nothing is timed."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stores import locks
from stores.erasure.disk_probe import Canaries, ReportRow
from stores.index import bm25
from stores.locks import ReadWriteLock
from stores.log.base import records as records_of_logs
from stores.places.map import PlaceMap
from stores.shard import memories as memories_module
from stores.shard.shard import Shard
from stores.writes.batch import MemoryBatch
from tests.support.stores import NOW, axis, memory, open_shard, unit

WAIT_S = 30.0


@pytest.fixture
def shard(tmp_path: Any) -> Iterator[Shard]:
    opened = open_shard(tmp_path / "shard")
    yield opened
    opened.close()


class Stopped:
    """A call in a thread of its own that stops at `halt`, once, and goes on after the `with` block."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._there, self._go = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.passed = 0  # times that the call came by `halt`
        self.answer: Any = None
        self.error: BaseException | None = None

    def halt(self) -> None:
        if threading.current_thread() is not self._thread:
            return
        self.passed += 1
        if not self._there.is_set():
            self._there.set()
            assert self._go.wait(WAIT_S)

    def _run(self) -> None:
        try:
            self.answer = self._call()
        except BaseException as error:
            self.error = error
            self._there.set()

    def __enter__(self) -> "Stopped":
        self._thread.start()
        assert self._there.wait(WAIT_S) and self.error is None, self.error
        return self

    def __exit__(self, *_: object) -> None:
        self._go.set()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive() and self.error is None, self.error


def before(monkeypatch: Any, owner: Any, name: str, halt: Callable[[], None]) -> None:
    """`halt` before each call of what `owner` has under `name`."""
    real = getattr(owner, name)

    def stopping(*args: Any, **options: Any) -> Any:
        halt()
        return real(*args, **options)

    monkeypatch.setattr(owner, name, stopping)


def write(shard: Shard, name: str = "new") -> None:
    """In a thread, so that one that is kept waiting fails the test instead of hanging it."""
    fact = {"kind": "relational", "subject": "node0", "relation": "knows", "object": name}
    item = memory(name, text=f"node0 knows {name}", **fact), unit(7)
    writer = threading.Thread(
        target=shard.memories.put,
        args=(MemoryBatch.of([item]),),
        kwargs={"op_id": name, "now": NOW},
        daemon=True,
    )
    writer.start()
    writer.join(WAIT_S)
    assert not writer.is_alive(), "the write waits for the reader"


def chained(shard: Shard, count: int = 12) -> None:
    facts = [
        memory(
            f"f{i}",
            kind="relational",
            text=f"node{i} knows node{i + 1}",
            **{"subject": f"node{i}", "relation": "knows", "object": f"node{i + 1}"},
        )
        for i in range(count)
    ]
    shard.memories.put(
        MemoryBatch.of([(fact, unit(i)) for i, fact in enumerate(facts)]), op_id="facts", now=NOW
    )


QUESTIONS: dict[str, Callable[[Shard], Any]] = {
    "all facts": lambda shard: {fact["id"] for fact in shard.graph.query_facts("acme")},
    "joined": lambda shard: len(
        shard.graph.solve_facts("acme", [("?x", "knows", "?y"), ("?y", "knows", "?z")])
    ),
    "near": lambda shard: len(shard.graph.recall_facts("acme", "Whom does node5 know?")),
    "path": lambda shard: [fact["id"] for fact in shard.graph.fact_path("acme", "node3", "node6") or ()],
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_questions_to_facts_let_writers_in(shard: Shard, monkeypatch: Any, question: str) -> None:
    """Between two parts, whatever those are; a question of one part sees one moment."""
    chained(shard)
    ask = QUESTIONS[question]
    alone = ask(shard)
    monkeypatch.setattr(locks, "PART", 3)
    assert ask(shard) == alone, "in parts, and nobody writes"
    stopped = Stopped(lambda: ask(shard))
    leave = ReadWriteLock._leave
    monkeypatch.setattr(ReadWriteLock, "_leave", lambda lock: (leave(lock), stopped.halt()))
    with stopped:
        write(shard)
        shard.erasure.forget("acme", ids=["f9"], op_id="forget", now=NOW)
    assert stopped.passed > 1, "it was in the middle"
    if question == "path":
        assert stopped.answer == alone
    elif question == "all facts":
        assert {f"f{i}" for i in range(9)} <= stopped.answer <= {*alone, "new"}


def test_what_is_forgotten_between_two_parts_is_not_answered(shard: Shard, monkeypatch: Any) -> None:
    chained(shard)
    monkeypatch.setattr(locks, "PART", 3)
    stopped = Stopped(lambda: shard.graph.query_facts("acme", relation="knows"))
    leave = ReadWriteLock._leave
    monkeypatch.setattr(ReadWriteLock, "_leave", lambda lock: (leave(lock), stopped.halt()))
    with stopped:
        shard.erasure.forget("acme", ids=["f8", "f11"], op_id="forget", now=NOW)
    assert [fact["id"] for fact in stopped.answer] == [f"f{i}" for i in range(12) if i not in (8, 11)]


@pytest.mark.parametrize(
    ("op", "asked"),
    [
        ("path", {"place": "p0", "other": "p3"}),
        ("nearest", {"place": "p0"}),
        ("relation", {"place": "p3", "other": "p0"}),
    ],
)
def test_questions_to_places_let_writers_in(shard: Shard, monkeypatch: Any, op: str, asked: Any) -> None:
    """They are asked of a copy: the answer is that of the moment when it was taken."""
    told = [("north_of", "p1", "p0"), ("north_of", "p2", "p1"), ("north_of", "p3", "p2")]
    told += [("connected_to", "p1", "p0"), ("connected_to", "p2", "p1"), ("connected_to", "p3", "p2")]

    def put(name: str, relation: str, place: str, other: str) -> None:
        fields = {"kind": "spatial", "place": place, "relation": relation, "other": other}
        shard.memories.put(
            MemoryBatch.of([(memory(name, text=name, **fields), unit(3))]), op_id=name, now=NOW
        )

    for number, (relation, place, other) in enumerate(told):
        put(f"s{number}", relation, place, other)
    alone = shard.graph.query_places("acme", op, **asked)
    put("touched", "north_of", "far", "away")  # so that everything is worked out again
    stopped = Stopped(lambda: shard.graph.query_places("acme", op, **asked))
    before(monkeypatch, PlaceMap, "position", stopped.halt)
    with stopped:
        write(shard)
        put("later", "south_of", "p3", "p0")
        shard.erasure.forget("acme", ids=["s2", "s5"], op_id="forget", now=NOW)
    assert stopped.answer == alone
    assert shard.graph.query_places("acme", op, **asked) != alone


def test_what_a_question_worked_out_is_kept_for_the_next_ones(shard: Shard) -> None:
    for name, place, other in (("a", "p1", "p0"), ("b", "q1", "q0")):
        fields = {"kind": "spatial", "place": place, "relation": "north_of", "other": other}
        shard.memories.put(
            MemoryBatch.of([(memory(name, text=name, **fields), unit(3))]), op_id=name, now=NOW
        )
    shard.graph.query_places("acme", "relation", place="p1", other="p0")
    known = shard.core.view.spaces["acme"].places.map._layouts["p0"]
    fields = {"kind": "spatial", "place": "q2", "relation": "north_of", "other": "q1"}
    shard.memories.put(MemoryBatch.of([(memory("c", text="c", **fields), unit(3))]), op_id="c", now=NOW)
    assert shard.graph.query_places("acme", "relation", place="q2", other="q0")["relation"] == "north_of"
    assert shard.core.view.spaces["acme"].places.still().layout("p0") is known, (
        "nothing was told of its group"
    )


def test_writers_wait_for_no_flush_and_no_merge(shard: Shard, monkeypatch: Any) -> None:
    """A search puts what was written before it into the lexical index first, and holds no lock meanwhile."""
    shard.memories.put(
        MemoryBatch.of([(memory("old", text="a harbor by the sea"), axis(0))]), op_id="old", now=NOW
    )
    stopped = Stopped(lambda: shard.search.find("acme", axis(0), 5, query="harbor"))
    before(monkeypatch, bm25.LexicalIndex, "_write", stopped.halt)
    with stopped:
        write(shard)
        shard.memories.put(
            MemoryBatch.of([(memory("other", text="another harbor"), axis(1))]), op_id="other", now=NOW
        )
        shard.erasure.forget("acme", ids=["new"], op_id="forget", now=NOW)
    lexically = {hit["memory"]["id"]: hit["scores"]["lexical"] for hit in stopped.answer}
    assert lexically["old"] and "new" not in lexically, "what was forgotten meanwhile is not found"
    found = {
        hit["memory"]["id"]: hit["scores"]["lexical"]
        for hit in shard.search.find("acme", axis(0), 5, query="harbor")
    }
    assert found["old"] and found["other"], "seen by the next search"


def test_many_writes_flush_in_the_background(monkeypatch: Any) -> None:
    monkeypatch.setattr(bm25, "BUFFER", 4)
    index, go = bm25.LexicalIndex(), threading.Event()
    real = bm25.LexicalIndex._write
    monkeypatch.setattr(bm25.LexicalIndex, "_write", lambda *args: (go.wait(WAIT_S), real(*args))[1])
    for row in range(20):  # more than a buffer, while the first flush does not end
        index.put([row], [f"harbor number{row}"])
    index.drop([0, 19], ["harbor number0", "harbor number19"])
    go.set()
    assert sorted(index.search("harbor", 50)[1]) == [*range(1, 19)]


def test_verify_lets_writers_in_and_looks_as_far_as_the_log_reached(shard: Shard, monkeypatch: Any) -> None:
    chained(shard)
    stopped = Stopped(shard.chain.verify)
    before(monkeypatch, records_of_logs, "intact", stopped.halt)
    with stopped:
        write(shard)
        assert shard.erasure.forget("acme", ids=["f3"], op_id="forget", now=NOW)["scrubbed"], (
            "another file, meanwhile"
        )
    assert stopped.answer is None and shard.chain.verify() is None


@pytest.mark.parametrize("read", ["probe", "statistics"])
def test_looking_at_everything_lets_writers_in(shard: Shard, monkeypatch: Any, read: str) -> None:
    chained(shard)
    if read == "probe":
        monkeypatch.setattr(locks, "PART", 3)
        stopped = Stopped(lambda: shard.erasure.probe(Canaries(texts=["node5 knows node6"])))
        before(monkeypatch, ReportRow, "look", stopped.halt)
    else:
        stopped = Stopped(lambda: shard.memories.statistics("acme").num_rows)
        before(monkeypatch, memories_module, "statistics", stopped.halt)
    with stopped:
        write(shard)
    assert stopped.answer if read == "probe" else stopped.answer == 12
