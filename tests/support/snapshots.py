"""Views compared whole, and what the tests of snapshots, transfer and analytics write."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from stores.memory.memory import parse_memory
from stores.shard.shard import Shard
from stores.view.view import View
from tests.support.stores import DIM, NOW

NAMESPACES = ("acme", "globex", "ännä@example.org/x", "\U0001f600" * 128)
IDS = [*(f"m{number}" for number in range(4)), "a/b c", "日本 '%2F'"]

words = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12).filter(str.strip)
numbers = st.floats(-1e6, 1e6, allow_nan=False)
times = st.floats(0.0, 4e9).map(lambda t: round(t, 3))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
common = {
    "conversation": st.none() | st.sampled_from(["c1", "c2"]),
    "time": times,
    "context": st.dictionaries(words, json_values, max_size=3),
    "cues": st.lists(st.fixed_dictionaries({"question": words, "answer": words}), max_size=2),
    "reward": numbers,
    "pin": st.booleans(),
}
episodic = st.fixed_dictionaries({"kind": st.just("episodic"), "text": words, **common})
relational = st.fixed_dictionaries(
    {"kind": st.just("relational"), "subject": words, "relation": words, "object": words, **common},
    optional={"confidence": st.floats(0.0, 1.0), "valid_from": times.map(lambda t: t / 2)},
)
spatial = st.fixed_dictionaries({"kind": st.just("spatial"), "place": words, **common}).flatmap(
    lambda given: st.one_of(
        st.fixed_dictionaries({"x": numbers, "y": numbers}),
        st.fixed_dictionaries({"relation": words, "other": words}),
    ).map(lambda rest: given | rest)
)
experiences = st.one_of(episodic, relational, spatial)


def made(id: str, namespace: str, fields: dict[str, Any]) -> Any:
    return parse_memory({"id": id, **fields}, namespace=namespace, now=NOW, max_text_bytes=10_000)


def said(view: View) -> dict[str, Any]:
    """Everything a view holds, in plain values."""
    return {
        name: {
            "entries": [(id, asdict(entry)) for id, entry in space.entries.items()],
            "rows": [*space.by_row],
            "order": space.order,
            "vectors": [v.tobytes() for v in space.index.vectors_of([*space.by_row])],
            "size": len(space.index),
            "conversations": space.conversations.dump(),
        }
        for name, space in view.spaces.items()
    }


def replayed(shard: Shard) -> View:
    """The view that the whole log makes: what every shortcut must equal."""
    view = View(DIM)
    for record in shard.core.log.records():
        view.apply(record)
    return view


def bytes_in(folder: Path, content: bytes) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and content in path.read_bytes()]
