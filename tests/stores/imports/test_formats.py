"""Every format from a file as its system writes it: what is taken, in which order, with which roles and times."""

import json
import zipfile
from collections import Counter

import pytest

from stores.imports.chat import Skipped
from stores.imports.reader import FileReader
from stores.memory.memory import Memory, parse_time
from tests.support import exports
from tests.support.exports import T0, chatgpt, claude, claude_message, node


@pytest.fixture
def read(tmp_path):
    """Memories, and what was left out or is bad, of a file with this content and a name that says nothing."""

    def read(content, limit=10_000):
        path = tmp_path / "file"
        if not isinstance(content, bytes):
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        else:
            path.write_bytes(content)
        reader = FileReader(path, namespace="acme", max_text_bytes=limit, now=1000.0)
        found = list(reader)
        read.formats = dict(reader.formats)
        ids = [each.id for each in found if isinstance(each, Memory)]
        again = FileReader(path, namespace="acme", max_text_bytes=limit, now=2000.0)
        assert ids == [each.id for each in again if isinstance(each, Memory)]
        return [m for m in found if isinstance(m, Memory)], [s for s in found if isinstance(s, Skipped)]

    return read


def bad(skipped):
    return [each for each in skipped if each.fault]


def test_of_a_chatgpt_export_the_branch_of_the_current_node(read):
    memories, skipped = read([exports.branching()])
    assert [m.text for m in memories] == [
        "user: Where is Turku? 🧭",
        "tool: Turku, Finland",
        "assistant: In Finland.",
        "user: And this?",
        "assistant: A harbour.\n\nIn Åbo.",
    ]
    assert [m.context["role"] for m in memories] == "user tool assistant user assistant".split()
    assert {m.conversation for m in memories} == {"chat-1"}
    assert {m.context["source"] for m in memories} == {"chatgpt"}
    times = [m.time for m in memories]
    assert times == sorted(set(times)) and times[0] == T0 + 10 and times[-1] == T0 + 20
    assert not bad(skipped)
    reasons = Counter(each.reason for each in skipped)
    assert reasons["a message of another branch"] == 3 and reasons["a system message or a hidden one"] == 2
    assert reasons["an image or another attachment"] == 1 and reasons["a message without text"] == 2
    assert read.formats == {"ChatGPT export": 1}


def test_a_chatgpt_conversation_in_which_something_is_missing(read):
    def nodes():
        said = node("q", "r", "user", "Hi"), node("a", "q", "assistant", "Ho", time=T0)
        return [node("r", None), *said]

    cases = {
        "no current node": chatgpt(nodes(), None),
        "an unknown one": chatgpt(nodes(), "gone"),
        "no times": chatgpt(nodes(), "a", create_time=None),
        "a time as text": chatgpt(nodes(), "a", create_time="2026-03-01T08:00:00Z"),
        "a circle": chatgpt([node("q", "a", "user", "Hi"), node("a", "q", "assistant", "Ho")], "a"),
        "no id": chatgpt(nodes(), "a", conversation_id=None),
    }
    for what, conversation in cases.items():
        memories, skipped = read([conversation])
        assert [m.text for m in memories] == ["user: Hi", "assistant: Ho"], what
        assert not bad(skipped) and memories[0].time < memories[1].time
    empty = [
        chatgpt([], None),
        chatgpt([node("r", None)], "r"),
        chatgpt([node("r", None), node("x", "r", "robot", "?")], "x"),
    ]
    memories, skipped = read([*empty, exports.branching()])
    assert (
        len(memories) == 5
        and [each.line for each in bad(skipped)] == [3]
        and "robot" in bad(skipped)[0].reason
    )


def test_a_later_chatgpt_export_adds_only_what_is_new(read):
    before, _ = read([exports.branching()])
    later = exports.branching()
    later |= {"title": "Another title", "update_time": T0 + 999, "current_node": "more"}
    later["mapping"]["more"] = node("more", "a-3", "user", "Thanks.", time=T0 + 30)
    after, _ = read([later])
    assert [m.id for m in after[:-1]] == [m.id for m in before] and after[-1].text == "user: Thanks."


def test_of_a_claude_export_every_message(read):
    messages = [
        claude_message("human", "I moved to Turku.", created_at="2026-03-01T08:00:01.5Z"),
        claude_message("assistant", "Noted.", {"type": "tool_use", "name": "x"}, created_at=None),
        claude_message("assistant", "", {"type": "thinking", "thinking": "?"}),
        {
            "sender": "human",
            "text": "Only text.",
            "created_at": "2026-03-01T08:01:00Z",
            "attachments": [{"file_name": "f"}],
        },
        {"sender": "robot", "text": "?"},
        None,
    ]
    memories, skipped = read([claude(messages), claude([], uuid="c-2"), claude(messages[:1], uuid="c-3")])
    assert [m.text for m in memories] == [
        "user: I moved to Turku.",
        "assistant: Noted.",
        "user: Only text.",
        "user: I moved to Turku.",
    ]
    assert [m.conversation for m in memories] == ["c-1"] * 3 + ["c-3"]
    times = [m.time for m in memories[:3]]
    assert times == sorted(set(times)) and times[0] == parse_time("2026-03-01T08:00:01.5Z", "time")
    assert [each.reason.partition(":")[0] for each in bad(skipped)] == [
        "chat_messages[4]",
        "chat_messages[5]",
    ]
    assert {"an attachment", "a block of type tool_use"} <= {each.reason for each in skipped}


@pytest.mark.parametrize(
    "name", ["conversations.json", "export/conversations.json", "conversations-001.json"]
)
def test_a_zip_is_read_for_its_conversations(read, tmp_path, name):
    path = tmp_path / "zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("user.json", "{}")
        archive.writestr("chat.html", "<html>")
        archive.writestr(name, json.dumps([exports.branching()]))
    whole = path.read_bytes()
    assert len(read(whole)[0]) == 5
    _, skipped = read(whole[:-40])
    assert "cut off" in skipped[0].reason
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "x")
    _, skipped = read(path.read_bytes())
    assert "a.txt" in skipped[0].reason and "ChatGPT export" in skipped[0].reason


def test_mem0_memories_and_relations(read):
    export = exports.mem0()
    for content in (export, {**export, "count": 3, "next": None}):
        memories, skipped = read(content)
        assert [m.text for m in memories] == ["Ada likes tea.", "Ada moved.", "ada likes tea."]
        assert memories[0].time == parse_time("2026-03-01T07:00:00.5Z", "time")
        assert memories[0].context["user_id"] == "ada@example.org" and memories[0].context["metadata"] == {
            "topic": "drink"
        }
        assert memories[1].conversation == "r1" and not memories[1].timed
        assert memories[2].fields["object"] == "tea"
        assert [each.reason.partition(":")[0] for each in bad(skipped)] == ["results[1]", "relations[1]"]
    for content in (export["results"], "\n".join(map(json.dumps, export["results"]))):
        memories, skipped = read(content)
        assert [m.text for m in memories] == ["Ada likes tea.", "Ada moved."] and [
            s.line for s in bad(skipped)
        ] == [2]


def test_a_letta_agent_file(read):
    memories, skipped = read(json.dumps(exports.letta(), indent=2))
    assert [m.text for m in memories] == [
        "Name: Ada\nLives in Turku.",
        "user: I moved to Turku.",
        "assistant: Hello Ada.",
        "user: Plain text.",
    ]
    assert memories[0].context == {"source": "letta", "block": "human"} and not bad(skipped)
    old = {"agent_type": "memgpt_agent", "name": "ada", "core_memory": exports.letta()["blocks"]}
    old["messages"] = [
        {"role": "user", "text": "Hi", "created_at": "2026-03-01T08:00:00Z"},
        {"role": "tool", "text": "x"},
    ]
    memories, _ = read(old)
    assert [m.text for m in memories] == ["Name: Ada\nLives in Turku.", "user: Hi"]


def test_sharegpt(read):
    said = [
        ("system", "Be brief."),
        ("human", "I moved."),
        ("gpt", "Noted."),
        ("robot", "?"),
        ("human", ""),
        ("gpt", "Bye."),
    ]
    chat = {"id": "s_0", "conversations": [{"from": who, "value": text} for who, text in said]}
    for content in ([chat], json.dumps(chat) + "\n"):
        memories, skipped = read(content)
        assert [m.text for m in memories] == ["user: I moved.", "assistant: Noted.", "assistant: Bye."]
        assert {m.conversation for m in memories} == {"s_0"} and len(bad(skipped)) == 2


@pytest.mark.parametrize("form", ["dict", "dump", "lc"])
def test_langchain(read, form):
    messages = exports.langchain(form)
    forms = [messages, {"messages": messages}, [messages], "\n".join(map(json.dumps, messages))]
    found = [read(content) for content in forms]
    for memories, skipped in found:
        assert [m.text for m in memories] == ["user: I moved.", "assistant: Noted."]
        assert [m.context["turn"] for m in memories] == [1, 2] and not bad(skipped)
        assert len({m.conversation for m in memories}) == 1
    assert len({memories[0].id for memories, _ in found}) == 1
    assert [*read.formats] == ["LangChain messages"]


def test_lines_for_fine_tuning_and_bare_messages(read):
    messages = [
        {"role": "system", "content": "x"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
    ]
    forms = [
        {"messages": messages},
        [{"messages": messages}],
        [messages],
        messages,
        "\n".join(map(json.dumps, messages)),
    ]
    ids = [tuple(m.id for m in read(content)[0]) for content in forms]
    assert len(set(ids)) == 1 and len(ids[0]) == 2


def test_notes_under_their_headings_with_their_dates(read):
    memories, skipped = read(exports.NOTES)
    found = {m.text: m for m in memories}
    assert list(found) == [
        "Before any heading.",
        "Ada moved to *Turku*.\nShe took the ferry.",
        "Buy tea",
        "Call Bo\n  - about the keys",
        "First",
        "Second",
        "```python\n# not a heading\n\nx = 1\n```",
        "Over-\ndue.",
        "Under it, 日本.",
    ]
    assert not skipped
    front, dated = parse_time("2026-02-27", "time"), parse_time("2026-03-01", "time")
    assert [m.time for m in memories] == [front] + [dated] * 6 + [front] * 2
    assert found["Buy tea"].context["heading"] == ["Diary", "March", "2026-03-01 Turku"]
    assert found["Over-\ndue."].context["heading"] == ["Diary", "March", "Plans"]
    assert found["Under it, 日本."].context["heading"] == ["Diary", "Setext heading"]
    assert [m.text for m in read(exports.NOTES.replace("\n", "\r\n"))[0]] == list(found)


@pytest.mark.parametrize("text", ["1 March 2026", "March 1st, 2026", "Sunday, 1. Mar 2026", "2026-03-01"])
def test_a_heading_may_say_the_date_in_words(read, text):
    assert read(f"# {text}\nAda moved.")[0][0].time == parse_time("2026-03-01", "time")


@pytest.mark.parametrize(
    "text",
    [
        "[a link](http://example.org) to it",
        "[ ] milk",
        "[x] tea",
        "[[page]] says",
        "{curly} words",
        "Plain.",
        "[2026] x",
    ],
)
def test_what_only_looks_like_json_is_a_note(read, text):
    memories, _ = read(text)
    assert len(memories) == 1 and read.formats == {"notes": 1}


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"alpha": 1, "beta": [], "gamma": {}}, "a JSON object with keys alpha, beta, gamma"),
        ([{"alpha": i} for i in range(1000)], "a JSON object with keys alpha"),
        ([["x"]], "a JSON list"),
        ("3", "a JSON number"),
        (b"%PDF-1.7 ...", "PDF"),
        (b"\x00\x01\x02" * 50, "binary"),
        (b"\x1f\x8b\x08 ...", "gzip"),
        ("<!DOCTYPE html><html>", "HTML"),
        ("id,name,text\n1,a,x\n2,b,y\n", "a table with columns id, name, text"),
        ('{"format": "sharpwave-export", "schema": 1}\n{"memory": {}}\n', "sharpwave import"),
    ],
)
def test_an_unknown_format_is_refused_by_what_it_is(read, content, found):
    memories, skipped = read(content)
    assert not memories and len(skipped) == 1 and skipped[0].line == 0
    assert found in skipped[0].reason
    for known in (
        "ChatGPT export",
        "Claude export",
        "mem0",
        "Letta",
        "ShareGPT",
        "LangChain",
        "OpenAI",
        "notes",
    ):
        assert known in skipped[0].reason


def test_one_odd_item_in_an_export_costs_only_itself(read):
    odd = [
        None,
        {"alpha": 1},
        {"mapping": {"x": 5}, "current_node": "x"},
        {"mapping": {"x": {"message": {"content": 7}}}},
    ]
    memories, skipped = read([exports.branching(), *odd, exports.branching() | {"conversation_id": "chat-2"}])
    assert len(memories) == 10 and {m.conversation for m in memories} == {"chat-1", "chat-2"}
    assert {each.line for each in bad(skipped)} >= {2, 3}
