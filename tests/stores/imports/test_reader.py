import json
import tracemalloc
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidInput
from stores.imports import documents
from stores.imports.chat import Skipped
from stores.imports.reader import FileReader
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
    def teach(data, now=1000.0, limit=1000):
        """Memories and what was wrong; not what the rules of a format leave out."""
        path = tmp_path / "experiences"
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        found = FileReader(path, namespace="acme", max_text_bytes=limit, now=now)
        return [each for each in found if isinstance(each, Memory) or each.fault]

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
    reasons = [m.reason for m in found if isinstance(m, Skipped)]
    for reason, word in zip(reasons, ["text", "kind", "y = nan", "JSON list", "not JSON"], strict=True):
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


GOOD = {"role": "user", "content": "hello"}


@pytest.mark.parametrize("messages", [[], {}, None, "hello"])
def test_a_transcript_without_messages_is_reported(teach, messages):
    found = teach(lines({"messages": messages}, {"text": "next"}))
    assert found[0].line == 1 and "messages" in found[0].reason
    assert isinstance(found[1], Memory)


@pytest.mark.parametrize(
    "bad",
    [
        5,
        {"role": "robot", "content": "x"},
        {"role": "user", "content": ""},
        {"role": "user", "content": None},
        {"role": ["user"]},
        {"role": "user", "content": "x", "time": "no time"},
        {"role": "user", "content": "half \ud800 of a pair"},
    ],
)
def test_one_bad_message_costs_only_itself(teach, bad):
    after = {"role": "assistant", "content": "good bye"}
    first, skipped, last, following = teach(lines({"messages": [GOOD, bad, after]}, {"text": "next"}))
    assert (first.text, last.text, following.text) == ("user: hello", "assistant: good bye", "next")
    assert (first.context["turn"], last.context["turn"]) == (0, 2)
    assert skipped.line == 1 and skipped.reason.startswith("messages[1]: ")


def test_bytes_that_are_no_text_cost_one_message(teach):
    data = lines({"messages": [GOOD, {"role": "user", "content": "bad #"}, GOOD]}).encode()
    for each in (data, b"[" + data + b"," + data.replace(b"#", b"!") + b"]"):
        found = teach(each.replace(b"#", b"\xff\xfe"))
        (skipped,) = [one for one in found if isinstance(one, Skipped)]
        assert skipped.line == 1 and "messages[1]" in skipped.reason and "UTF-8" in skipped.reason
        assert len(found) in (3, 6)


LONG = " ".join(f"Sentence number {i} says that Ada went to shelf {i * 7}." for i in range(90))


@pytest.mark.parametrize("time", [None, "2026-03-01T10:00:00Z"])
def test_a_long_message_is_split_and_nothing_is_lost(teach, time):
    chat = {"id": "c1", "messages": [GOOD, {"role": "assistant", "content": LONG}, GOOD]}
    data = lines(chat | ({"time": time} if time else {}), {"text": "next"})
    found = teach(data)
    first, *parts, last, following = found
    assert (first.text, last.text, following.text) == ("user: hello", "user: hello", "next")
    assert len(parts) > 3 and {part.conversation for part in parts} == {"c1"}
    assert " ".join(part.text.removeprefix("assistant: ") for part in parts) == LONG
    assert all(part.text.endswith(".") and len(part.text) <= 1000 for part in parts)
    assert [part.context["part"]["number"] for part in parts] == list(range(1, len(parts) + 1))
    assert {(part.context["part"]["of"], part.context["part"]["parts"]) for part in parts} == {
        (parts[0].context["part"]["of"], len(parts))
    }
    assert {part.context["role"] for part in parts} == {"assistant"}
    times = [each.time for each in found]
    assert times[:-1] == sorted(set(times[:-1]))
    assert [each.id for each in teach(data, now=2000.0)] == [each.id for each in found]


def test_a_long_experience_keeps_its_cues_where_the_answer_is(teach):
    cues = [{"question": "How far?", "answer": f"shelf {i * 7}"} for i in (2, 80)]
    parts = teach(lines({"id": "own", "text": LONG, "cues": [*cues, {"question": "?", "answer": "nowhere"}]}))
    assert {part.context["part"]["of"] for part in parts} == {"own"}
    asked = {cue.answer: i for i, part in enumerate(parts) for cue in part.cues}
    assert asked["shelf 14"] == 0 and asked["shelf 560"] == len(parts) - 1 and asked["nowhere"] == 0
    for answer in ("shelf 14", "shelf 560"):
        assert answer in parts[asked[answer]].text


@pytest.mark.parametrize(
    "broken", ['{"text": }', '{"text": "odd " quote"}', '{"text": "x" "y": [1}', "word", '{"text": "x"']
)
@pytest.mark.parametrize("indent", [None, 1])
def test_a_bad_item_of_a_list_costs_only_itself(teach, broken, indent):
    good = [
        json.dumps({"text": f"memory {i}", "context": {"a": ["b", {"c": "d"}]}}, indent=indent)
        for i in range(6)
    ]
    found = teach("[" + ",\n".join([*good[:3], broken, *good[3:]]) + "]\n")
    assert {m.text for m in found if isinstance(m, Memory)} >= {f"memory {i}" for i in (0, 1, 2, 4, 5)}
    assert any(isinstance(m, Skipped) and m.line == 4 and "not JSON" in m.reason for m in found)


@pytest.mark.parametrize("indent", [None, 1])
def test_of_a_file_that_is_cut_off_what_is_whole_is_kept(teach, indent):
    data = json.dumps([{"text": f"memory {i}"} for i in range(50)], indent=indent)
    for end in (len(data) - 1, len(data) // 2, len(data) // 2 + 3, 40):
        found = teach(data[:end])
        kept = [m.text for m in found if isinstance(m, Memory)]
        assert kept == [f"memory {i}" for i in range(len(kept))]
        assert len(kept) == data[:end].count("}") and isinstance(found[-1], Skipped)


def test_documents_one_after_another_and_lines_that_end_in_commas(teach):
    pretty = "\n".join(json.dumps({"text": str(i)}, indent=2) for i in range(3))
    assert [m.text for m in teach(pretty)] == ["0", "1", "2"]
    assert [m.text for m in teach('{"text": "0"},\n{"text": "1"},\n{"text": "2"}')] == ["0", "1", "2"]


def test_one_long_line_among_items_does_not_stop_the_reader(teach):
    big = {"text": "x", "context": {"a": "y" * 300_000}}
    found = teach("[" + ",".join(map(json.dumps, [{"text": "a"}, big, {"text": "b"}])) + "]")
    assert [m.text if isinstance(m, Memory) else m.line for m in found] == ["a", 2, "b"]


def test_an_empty_file_is_one_bad_line(teach):
    for data in ("", "\n \n", "[]", b"\xef\xbb\xbf"):
        (bad,) = teach(data)
        assert bad.line == 0 and "empty" in bad.reason


def test_a_byte_order_mark_and_windows_line_ends_are_fine(teach):
    assert len(teach(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}\r\n')) == 2
    assert len(teach(b'\xef\xbb\xbf{\r\n"text": "a"\r\n}')) == 1
    assert [m.text for m in teach('[{"text": "Zoë"}]'.encode("utf-16"))] == ["Zoë"]


def test_a_line_that_is_too_long_or_not_text_is_skipped(teach, monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENT", 100)
    found = teach(b'{"text": "a"}\n"' + b"x" * 500 + b'"\n\xff\xfe\n' + b"[" * 90 + b'\n{"text": "b"}')
    assert [m.line if isinstance(m, Skipped) else m.text for m in found] == ["a", 2, 3, 4, "b"]


def test_a_line_nested_beyond_the_parser_is_a_bad_line(teach):
    found = teach(lines({"text": "a"}) + "\n" + "[" * 200_000)
    assert isinstance(found[0], Memory) and found[1].line == 2


@given(data=st.binary(max_size=200) | st.text(alphabet='{}[]",:ab1 \n', max_size=60).map(str.encode))
def test_no_bytes_can_stop_the_reader(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz"
    path.write_bytes(data)
    for found in FileReader(path, namespace="acme", max_text_bytes=100):
        assert isinstance(found, Skipped | Memory)


def test_a_large_file_is_never_held_whole(tmp_path):
    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        for i in range(6_000):
            file.write(json.dumps({"text": f"{i} " + "x" * 900}) + "\n")
    tracemalloc.start()
    count = sum(1 for _ in FileReader(path, namespace="acme", max_text_bytes=1000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 6_000 and peak < path.stat().st_size / 10
    assert len(list(islice(FileReader(path, namespace="acme", max_text_bytes=1000), 3))) == 3


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidInput) as caught:
        next(iter(FileReader(tmp_path / "absent", namespace="acme", max_text_bytes=1000)))
    assert caught.value.param == "file" and "absent" in caught.value.message
