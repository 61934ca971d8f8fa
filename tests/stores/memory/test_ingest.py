import json
import tracemalloc
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidInput
from stores.memory import ingest
from stores.memory.ingest import BadLine, read_experiences
from stores.memory.memory import Memory

CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "I moved to Lisbon."},
        {"role": "assistant", "content": [{"type": "text", "text": "Noted."}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "t"}]},
        {"role": "tool", "content": "done"},
        {"role": "user", "content": "Noted."},
    ]
}


@pytest.fixture
def teach(tmp_path):
    def teach(data, now=1000.0):
        path = tmp_path / "experiences"
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return list(read_experiences(path, namespace="acme", max_text_bytes=1000, now=now))

    return teach


def lines(*values):
    return "\n".join(json.dumps(value) for value in values)


def test_every_kind_and_bad_lines_between_good_ones(teach):
    found = teach(
        lines(
            {"text": "Ada moved."},
            {"text": ""},
            {"kind": "relational", "subject": "Ada", "relation": "lives_in", "object": "Lisbon"},
            {"kind": "dream", "text": "x"},
            {"kind": "spatial", "place": "museum", "x": 1, "y": float("nan")},
            [1],
            {"kind": "spatial", "place": "library", "relation": "left_of", "other": "cafe"},
        )
        + '\n{"text": "cut'
    )
    assert [m.kind if isinstance(m, Memory) else m.line for m in found] == [
        *("episodic", 2, "relational", 4, 5, 6, "spatial", 8)
    ]
    reasons = [m.reason for m in found if isinstance(m, BadLine)]
    for reason, word in zip(reasons, ["text", "kind", "y = nan", "object", "not JSON"], strict=True):
        assert word in reason


def test_teaching_twice_gives_the_same_ids_and_content(teach):
    data = lines({"text": "a"}, {"text": "b", "time": 5}, {"id": "own", "text": "c"}, CHAT)
    first, second = teach(data), teach(data, now=2000.0)
    assert [m.id for m in first] == [m.id for m in second]
    assert len({m.id for m in first}) == len(first) and first[2].id == "own"


def test_memories_without_a_time_keep_the_order_of_the_file(teach):
    times = [memory.time for memory in teach(lines({"text": "a"}, CHAT, {"text": "b"}, CHAT))]
    assert times == sorted(set(times))


def test_a_transcript_becomes_one_memory_for_each_thing_said(teach):
    for data in (lines(CHAT), json.dumps(CHAT, indent=2), json.dumps([CHAT], indent=2)):
        found = teach(data)
        assert [m.text for m in found] == ["user: I moved to Lisbon.", "assistant: Noted.", "user: Noted."]
        assert [m.context["turn"] for m in found] == [1, 2, 5]
        assert len({m.conversation for m in found}) == 1


def test_a_transcripts_own_id_and_time_are_kept(teach):
    found = teach(lines({**CHAT, "id": "c7", "time": "2026-03-01"}))
    assert {m.conversation for m in found} == {"c7"}
    assert all(m.timed for m in found)
    assert [m.time for m in found] == sorted({m.time for m in found})


@pytest.mark.parametrize(
    "messages",
    [
        [],
        {},
        [5],
        [{"role": "robot", "content": "x"}],
        [{"role": "user", "content": ""}],
        [{"role": ["user"]}],
    ],
)
def test_one_bad_message_refuses_its_whole_transcript(teach, messages):
    good = {"role": "user", "content": "hello"}
    bad = {"messages": [good, *messages, good] if messages and isinstance(messages, list) else messages}
    found = teach(lines(bad, {"text": "next"}))
    assert found[0].line == 1 and "messages" in found[0].reason
    assert isinstance(found[1], Memory)


def test_an_empty_file_is_one_bad_line(teach):
    for data in ("", "\n \n", "[]"):
        (bad,) = teach(data)
        assert bad.line == 0 and "empty" in bad.reason


def test_a_byte_order_mark_and_windows_line_ends_are_fine(teach):
    assert len(teach(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}\r\n')) == 2
    assert len(teach(b'\xef\xbb\xbf{\r\n"text": "a"\r\n}')) == 1


def test_a_line_that_is_too_long_or_not_text_is_skipped(teach, monkeypatch):
    monkeypatch.setattr(ingest, "MAX_LINE_BYTES", 100)
    found = teach(b'{"text": "a"}\n"' + b"x" * 500 + b'"\n\xff\xfe\n' + b"[" * 90 + b'\n{"text": "b"}')
    assert [m.line if isinstance(m, BadLine) else m.text for m in found] == ["a", 2, 3, 4, "b"]


def test_a_line_nested_beyond_the_parser_is_a_bad_line(teach):
    found = teach(lines({"text": "a"}) + "\n" + "[" * 200_000)
    assert isinstance(found[0], Memory) and found[1].line == 2


@given(data=st.binary(max_size=200) | st.text(alphabet='{}[]",:ab1 \n', max_size=60).map(str.encode))
def test_no_bytes_can_stop_the_reader(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz"
    path.write_bytes(data)
    for found in read_experiences(path, namespace="acme", max_text_bytes=100):
        assert isinstance(found, BadLine | Memory)


def test_a_large_file_is_never_held_whole(tmp_path):
    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        for i in range(3_000):
            file.write(json.dumps({"text": f"{i} " + "x" * 900}) + "\n")
    tracemalloc.start()
    count = sum(1 for _ in read_experiences(path, namespace="acme", max_text_bytes=1000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 3_000 and peak < path.stat().st_size / 10
    assert len(list(islice(read_experiences(path, namespace="acme", max_text_bytes=1000), 3))) == 3


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidInput) as caught:
        next(read_experiences(tmp_path / "absent", namespace="acme", max_text_bytes=1000))
    assert caught.value.param == "file" and "absent" in caught.value.message
