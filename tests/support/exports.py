"""Exports of other systems with invented content, in the shape that those systems write."""

from typing import Any

Json = dict[str, Any]
T0 = 1_772_352_000.25  # 2026-03-01T08:00:00.25Z


def node(
    id: str, parent: str | None, role: str | None = None, text: Any = None, *, time: Any = None, **more: Any
) -> Json:
    """A node of ChatGPT's tree; without a role the message is null, as at the root."""
    content = text if isinstance(text, dict) else {"content_type": "text", "parts": [text]}
    message = {
        "id": f"msg-{id}",
        "author": {"role": role, "name": None, "metadata": {}},
        "create_time": time,
        "update_time": None,
        "content": content,
        "status": "finished_successfully",
        "weight": 1.0,
        "metadata": {},
        "recipient": "all",
        **more,
    }
    return {"id": id, "message": message if role else None, "parent": parent, "children": []}


def chatgpt(nodes: list[Json], current: str | None, **fields: Any) -> Json:
    mapping = {each["id"]: each for each in nodes}
    for each in nodes:
        if each["parent"] in mapping:
            mapping[each["parent"]]["children"].append(each["id"])
    given = {"title": "Invented", "create_time": T0, "update_time": T0 + 60, "moderation_results": []}
    return {**given, "mapping": mapping, "current_node": current, "conversation_id": "chat-1", **fields}


def branching() -> Json:
    """An edited question, a regenerated answer, hidden nodes, a call of a tool, an image, an empty answer."""
    hidden = {"metadata": {"is_visually_hidden_from_conversation": True}}
    image = {"content_type": "image_asset_pointer", "asset_pointer": "file-service://x", "width": 1}
    return chatgpt(
        [
            node("root", None),
            node("sys", "root", "system", "", **hidden),
            node(
                "ctx", "sys", "user", {"content_type": "user_editable_context", "user_profile": "x"}, **hidden
            ),
            node("q-old", "ctx", "user", "Where is Oslo?", time=T0 + 1),
            node("a-old", "q-old", "assistant", "In Norway.", time=T0 + 2),
            node("q", "ctx", "user", "Where is Turku? 🧭", time=T0 + 10),
            node("a-1", "q", "assistant", "In Sweden.", time=T0 + 11),
            node("call", "q", "assistant", {"content_type": "code", "text": "search()"}, recipient="browser"),
            node(
                "tool", "call", "tool", {"content_type": "tether_quote", "text": "Turku, Finland"}, time=None
            ),
            node("think", "tool", "assistant", {"content_type": "thoughts", "thoughts": []}),
            node("a-2", "think", "assistant", "In Finland.", time=T0 + 13),
            node("q-2", "a-2", "user", {"content_type": "multimodal_text", "parts": [image, "And this?"]}),
            node("empty", "q-2", "assistant", ""),
            node("null", "empty", "assistant", {"content_type": "text", "parts": [None]}),
            node("a-3", "null", "assistant", "A harbour.\n\nIn Åbo.", time=T0 + 20),
        ],
        "a-3",
    )


def claude(messages: list[Json], **fields: Any) -> Json:
    given = {
        "uuid": "c-1",
        "name": "Invented",
        "created_at": "2026-03-01T08:00:00.250000Z",
        "account": {"uuid": "a"},
    }
    return {**given, "updated_at": "2026-03-01T09:00:00Z", "chat_messages": messages, **fields}


def claude_message(sender: str, text: str, *blocks: Json, created_at: Any = None, **fields: Any) -> Json:
    content = [{"type": "text", "text": text}, *blocks] if text else list(blocks)
    given = {
        "uuid": f"m-{text[:8]}",
        "text": text,
        "content": content,
        "sender": sender,
        "created_at": created_at,
    }
    return {**given, "attachments": [], "files": [], **fields}


def letta() -> Json:
    send = {"name": "send_message", "arguments": '{"message": "Hello Ada."}'}
    packed = '{"type": "user_message", "message": "I moved to Turku.", "time": "2026-03-01 08:00"}'
    messages = [
        {"id": "message-0", "role": "system", "content": [{"type": "text", "text": "You are ..."}]},
        {"id": "message-1", "role": "user", "content": [{"type": "text", "text": '{"type": "login"}'}]},
        {
            "id": "message-2",
            "role": "user",
            "content": [{"type": "text", "text": packed}],
            "created_at": None,
        },
        {
            "id": "message-3",
            "role": "assistant",
            "content": [{"type": "text", "text": "She moved."}],
            "tool_calls": [{"id": "t", "type": "function", "function": send}],
            "created_at": "2026-03-01T08:00:05+00:00",
        },
        {"id": "message-4", "role": "tool", "content": '{"status": "OK"}'},
        {"id": "message-5", "role": "user", "content": "Plain text."},
    ]
    agent = {"id": "agent-0", "name": "ada", "block_ids": ["block-0"], "messages": messages, "system": "..."}
    blocks = [
        {"id": "block-0", "label": "human", "value": "Name: Ada\nLives in Turku.", "limit": 5000},
        {"id": "block-1", "label": "persona", "value": "", "limit": 5000},
    ]
    return {"agents": [agent], "groups": [], "blocks": blocks, "files": [], "sources": [], "tools": []}


def mem0() -> Json:
    first = {
        "id": "1",
        "memory": "Ada likes tea.",
        "hash": "x",
        "metadata": {"topic": "drink"},
        "user_id": "ada@example.org",
    }
    results = [
        {**first, "created_at": "2026-03-01T00:00:00.5-07:00", "updated_at": None},
        {"id": "2", "memory": "", "user_id": "ada"},
        {
            "id": "3",
            "memory": "Ada moved.",
            "user_id": "ada",
            "run_id": "r1",
            "created_at": None,
            "metadata": None,
        },
    ]
    relations = [{"source": "ada", "relationship": "likes", "target": "tea"}, {"source": "ada"}]
    return {"results": results, "relations": relations}


def langchain(form: str) -> list[Json]:
    """Two turns and a system message in one of the forms `dict`, `dump` and `lc`."""
    said = [
        ("system", "SystemMessage", "Be brief."),
        ("human", "HumanMessage", "I moved."),
        ("ai", "AIMessage", "Noted."),
    ]
    if form == "dict":
        return [{"type": kind, "data": {"content": text, "type": kind, "id": None}} for kind, _, text in said]
    if form == "dump":
        return [
            {"type": kind, "content": text, "additional_kwargs": {}, "name": None} for kind, _, text in said
        ]
    path = ["langchain", "schema", "messages"]
    return [
        {
            "lc": 1,
            "type": "constructor",
            "id": [*path, name],
            "kwargs": {"content": [{"type": "text", "text": text}]},
        }
        for _, name, text in said
    ]


NOTES = """---
title: Diary
date: 2026-02-27
---
Before any heading.

# March

## 2026-03-01 Turku

Ada moved to *Turku*.
She took the ferry.

- Buy tea
- [x] Call Bo
  - about the keys
1. First
2. Second

```python
# not a heading

x = 1
```

## Plans
Over-
due.

Setext heading
==============

Under it, 日本.
"""
