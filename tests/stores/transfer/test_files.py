"""Export -> import gives the same memories, statistics, versions and order; what was changed is refused."""

import json
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from common.errors import Conflict, InvalidInput
from stores.index.vectors import Vectors
from stores.shard.shard import Shard
from stores.transfer import files
from stores.writes.batch import MemoryBatch
from tests.support.snapshots import IDS, NAMESPACES, experiences, made
from tests.support.stores import DIM, NOW, memory, open_shard, unit

FORMS = ("jsonl", "parquet")
MAX_TEXT = 10_000
once = settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.generate])
contents = st.dictionaries(st.tuples(st.sampled_from(NAMESPACES), st.sampled_from(IDS)), experiences)


def fill(shard: Shard, given_contents: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Memories, of which some are used, measured and given a second version."""
    for number, ((namespace, id), fields) in enumerate(given_contents.items()):
        shard.memories.put(
            MemoryBatch.of([(made(id, namespace, fields), unit(number))]),
            op_id=f"put-{number}",
            now=NOW + number,
        )
        if number % 2:
            shard.memories.touch(namespace, [id], op_id=f"touch-{number}", now=NOW + 100)
            shard.memories.score(namespace, [(id, number / 3)], op_id=f"score-{number}", now=NOW + 200)
        found = shard.memories.get(namespace, id)
        if number % 3 == 0 and found is not None:
            generation = found["statistics"]["generation"]
            new = made(id, namespace, {**fields, "reward": 7.0})
            shard.memories.supersede(
                new, unit(number + 50), generation=generation, op_id=f"new-{number}", now=NOW + 300
            )


def told(shard: Shard, namespace: str) -> list[dict[str, Any]]:
    """Everything that must survive, in order; numbers of this log are not among it."""
    found = []
    for each in shard.memories.list(namespace, limit=10_000):
        statistics = {name: value for name, value in each["statistics"].items() if name != "generation"}
        origin = each["origin"] or {"shard": shard.number, "seq": each["seq"], "anchor": each["anchor"]}
        versions = [version["content"] for version in shard.memories.history(namespace, each["id"]) or []]
        nearest = shard.search.find(namespace, vector_of(shard, namespace, each["seq"]), 1)
        found.append(
            {
                **{name: value for name, value in each.items() if name not in ("seq", "shard", "versions")},
                "statistics": statistics,
                "anchor": None,
                "origin": {name: origin[name] for name in ("shard", "seq", "anchor")},
                "versions": versions,
                "nearest": nearest[0]["memory"]["id"],
            }
        )
    return found


def vector_of(shard: Shard, namespace: str, seq: int) -> Vectors:
    return shard.core.view.spaces[namespace].index.vectors_of([seq])[0]


def take_all(shard: Shard, path: Path, op_id: str = "import", **options: Any) -> int:
    embed = options.pop("embed", None)
    _, found = files.load(path, max_text_bytes=MAX_TEXT, **options)
    return files.import_rows(found, shard.memories.import_rows, op_id=op_id, now=NOW + 999, embed=embed)


@pytest.mark.parametrize("form", FORMS)
@given(contents)
@once
def test_export_then_import_gives_the_same(form: str, given_contents: dict[Any, Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shard, empty = open_shard(folder / "a"), open_shard(folder / "b")
        fill(shard, given_contents)
        path = folder / f"s1.{form}"
        header = files.save(path, shard.memories.export_rows(), now=NOW)
        assert header == files.save(folder / "same.jsonl", shard.memories.export_rows(), now=NOW)
        assert header["memories"] == len(given_contents) == take_all(empty, path)
        assert take_all(empty, path, op_id="again") == len(given_contents)  # and adds nothing
        for namespace in NAMESPACES:
            assert told(empty, namespace) == told(shard, namespace)

        second = folder / f"s2.{form}"
        files.save(second, empty.memories.export_rows(), now=NOW)
        _, once_more = files.load(second, max_text_bytes=MAX_TEXT)
        _, first = files.load(path, max_text_bytes=MAX_TEXT)
        assert [plain(row) for row in once_more] == [plain(row) for row in first]
        shard.close()
        empty.close()


def plain(row: dict[str, Any]) -> dict[str, Any]:
    older = [{**version, "foreign": True} for version in row["older"]]
    return {**row, "older": older, "vector": row["vector"].tobytes()}


@pytest.fixture
def shard(tmp_path: Path) -> Any:
    opened = open_shard(tmp_path / "shard")
    for number in range(5):
        fields = {"conversation": f"c{number % 2}"}
        opened.memories.put(
            MemoryBatch.of([(memory(f"m{number}", **fields), unit(number))]), op_id=f"put-{number}", now=NOW
        )
    opened.memories.put(
        MemoryBatch.of([(memory("g1", namespace="globex"), unit(9))]), op_id="globex", now=NOW
    )
    yield opened
    opened.close()


def test_one_namespace_or_conversation(shard: Shard) -> None:
    assert [row["memory"]["id"] for row in shard.memories.export_rows("globex")] == ["g1"]
    chosen = shard.memories.export_rows("acme", conversation="c1")
    assert [row["memory"]["id"] for row in chosen] == ["m1", "m3"]
    assert [*shard.memories.export_rows("unknown")] == []


def test_an_export_is_of_one_moment_and_leaves_out_what_is_erased(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "BATCH", 2)
    rows = shard.memories.export_rows("acme")
    assert next(rows)["memory"]["id"] == "m0"
    shard.erasure.forget("acme", ids=["m2"], op_id="forget", now=NOW)
    shard.memories.touch("acme", ["m4"], op_id="touch", now=NOW)
    shard.memories.put(MemoryBatch.of([(memory("late"), unit(77))]), op_id="late", now=NOW)
    rest = [*rows]
    assert [row["memory"]["id"] for row in rest] == ["m1", "m3", "m4"]
    assert rest[-1]["statistics"]["usage"] == 0


@pytest.mark.parametrize("form", FORMS)
def test_without_vectors_the_caller_embeds(shard: Shard, tmp_path: Path, form: str) -> None:
    path = tmp_path / f"bare.{form}"
    files.save(path, shard.memories.export_rows("acme"), now=NOW, vectors=False)
    other = open_shard(tmp_path / "other")
    with pytest.raises(InvalidInput, match="embedder"):
        take_all(other, path)

    def embed(texts: Sequence[str]) -> Vectors:
        return np.stack([unit(int(text[-1])) for text in texts])

    assert take_all(other, path, op_id="second", embed=embed) == 5
    assert told(other, "acme") == told(shard, "acme")
    other.close()


@pytest.mark.parametrize("form", FORMS)
def test_into_another_namespace(shard: Shard, tmp_path: Path, form: str) -> None:
    path = tmp_path / f"acme.{form}"
    files.save(path, shard.memories.export_rows("acme"), now=NOW)
    take_all(shard, path, into="copy")
    assert [each["id"] for each in shard.memories.list("copy")] == [
        each["id"] for each in shard.memories.list("acme")
    ]


def test_an_id_with_other_content_is_a_conflict(shard: Shard, tmp_path: Path) -> None:
    path = tmp_path / "acme.jsonl"
    files.save(path, shard.memories.export_rows("acme"), now=NOW)
    other = open_shard(tmp_path / "other")
    other.memories.put(MemoryBatch.of([(memory("m3", text="something else"), unit(3))]), op_id="put", now=NOW)
    with pytest.raises(Conflict):
        take_all(other, path)
    assert other.counts()["memories"] == 1
    other.close()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("damage", ["flipped", "cut off", "empty", "foreign"])
def test_what_was_changed_is_refused(shard: Shard, tmp_path: Path, form: str, damage: str) -> None:
    path = tmp_path / f"acme.{form}"
    files.save(path, shard.memories.export_rows(), now=NOW)
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        at = data.index(b"this is m2") if form == "jsonl" else len(data) // 4
        data[at] ^= 1
    kept = {"flipped": data, "cut off": data[: len(data) * 2 // 3], "empty": b"", "foreign": b"{}\n"}[damage]
    path.write_bytes(kept)
    with pytest.raises(InvalidInput) as caught:
        files.load(path, max_text_bytes=MAX_TEXT)
    assert caught.value.param == "file"


def test_a_newer_schema_is_refused(shard: Shard, tmp_path: Path) -> None:
    path = tmp_path / "acme.jsonl"
    files.save(path, shard.memories.export_rows(), now=NOW)
    head, body = path.read_bytes().split(b"\n", 1)
    newer = json.dumps({**json.loads(head), "schema": 2}).encode()
    path.write_bytes(newer + b"\n" + body)
    with pytest.raises(InvalidInput, match="upgrade"):
        files.load(path, max_text_bytes=MAX_TEXT)


@pytest.mark.parametrize(
    "change",
    [
        {"memory": {"id": "m1"}},
        {"statistics": {"usage": float("inf")}},
        {"statistics": 3},
        {"vector": "AAAA"},
        {"older": [{}]},
        {"memory": {"id": "a ", "namespace": "acme", "kind": "episodic", "text": "x", "time": 1.0}},
        {"statistics": {"memory": {"id": "m1", "namespace": "globex", "kind": "episodic", "text": "x"}}},
        {"statistics": {"seq": 1}},
        {"statistics": {"usage": 1 << 70}},
        {"statistics": {"usage": "many"}},
        {"statistics": {"rivals": {"x": "strong"}}},
        {"statistics": {"tellings": [{"text": "no triple"}]}},
        {"older": [{"seq": 1, "memory": {"text": "x", "time": 1.0, "namespace": "acme"}}]},
        {"origin": None},
        {"novelty": "none"},
    ],
)
def test_rows_are_checked_like_any_input(shard: Shard, tmp_path: Path, change: dict[str, Any]) -> None:
    def packed(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "vector": None, **change}

    vectors = {"vector"} & change.keys()  # it is none: no file of ours says so
    path, other = tmp_path / "acme.jsonl", open_shard(tmp_path / "other")
    with pytest.raises((AttributeError, ValueError) if vectors or _infinite(change) else InvalidInput):
        files.save(path, map(packed, shard.memories.export_rows("acme")), now=NOW)
        take_all(other, path, embed=lambda texts: np.stack([unit(1)] * len(texts)))
    assert other.counts()["memories"] == 0
    other.close()


def _infinite(change: dict[str, Any]) -> bool:
    return change.get("statistics") == {"usage": float("inf")}


def test_an_import_speaks_of_its_own_namespace_only(shard: Shard, tmp_path: Path) -> None:
    """A file made by hand, with a good digest, cannot put anything into another tenant's namespace, nor
    make a log that no longer opens."""
    rows = [*shard.memories.export_rows("acme")]
    elsewhere = {**rows[0]["memory"], "namespace": "globex"}
    planted = {**rows[0], "statistics": {**rows[0]["statistics"], "memory": elsewhere}}
    path = tmp_path / "planted.jsonl"
    files.save(path, [planted], now=NOW)
    with pytest.raises(InvalidInput, match=r"statistics\.memory"):
        take_all(shard, path, into="mine")
    told = {**rows[0], "older": [{**_version(rows[0]), "memory": elsewhere}]}
    files.save(path, [told], now=NOW)
    take_all(shard, path, into="mine")
    assert [each["content"]["namespace"] for each in shard.memories.history("mine", "m0") or []] == [
        "mine"
    ] * 2
    assert [each["id"] for each in shard.memories.list("globex")] == ["g1"]


def _version(row: dict[str, Any]) -> dict[str, Any]:
    return {**row["origin"], "memory": row["memory"]}


def test_a_save_that_fails_leaves_the_old_file(shard: Shard, tmp_path: Path) -> None:
    path = tmp_path / "acme.jsonl"
    files.save(path, shard.memories.export_rows("globex"), now=NOW)
    before = path.read_bytes()

    def broken() -> Any:
        yield next(shard.memories.export_rows("acme"))
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        files.save(path, broken(), now=NOW)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["acme.jsonl"]


def test_many_threads_save_the_same_file(shard: Shard, tmp_path: Path) -> None:
    path = tmp_path / "s1.jsonl"
    threads = [
        threading.Thread(target=lambda: files.save(path, shard.memories.export_rows(), now=NOW))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    header, found = files.load(path, max_text_bytes=MAX_TEXT)
    assert header["memories"] == len([*found]) == 6
    assert header["dim"] == DIM


def test_facts_that_come_in_end_those_that_they_contradict(tmp_path: Path) -> None:
    """As if they had been put, whichever side the older fact comes from; what they bring along counts once."""

    def told(shard: Shard, id: str, place: str, at: float) -> None:
        fact = {"subject": "Ada", "relation": "lives_in", "object": place, "time": at}
        item = memory(id, kind="relational", text=f"Ada lives in {place}.", **fact)
        shard.memories.put(MemoryBatch.of([(item, unit(len(place)))]), op_id=id, now=at)

    def ends(shard: Shard) -> dict[str, Any]:
        return {each["id"]: each.get("valid_to") for each in shard.memories.list("acme")}

    one, other, both = (open_shard(tmp_path / name) for name in ("one", "other", "both"))
    for shard in (one, both):
        told(shard, "rome", "Rome", NOW)
        told(shard, "bonn", "Bonn", NOW + 20)
    for shard in (other, both):
        told(shard, "oslo", "Oslo", NOW + 10)
    other.memories.import_rows([*one.memories.export_rows("acme")], op_id="take", now=NOW)
    assert ends(other) == ends(both) == {"rome": NOW + 10, "oslo": NOW + 20, "bonn": None}
    closings = other.core.view.find("acme", "rome").closings
    assert closings == {"bonn": NOW + 20, "oslo": NOW + 10}
    other.erasure.forget("acme", ids=["oslo"], op_id="forget", now=NOW)
    assert ends(other) == {"rome": NOW + 20, "bonn": None} and other.chain.verify() is None
    for shard in (one, other, both):
        shard.close()
