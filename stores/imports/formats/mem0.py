"""mem0's export: memories (`{"memory", "user_id", "created_at", "metadata"}`) as a list or under `results`, and the
triples of its graph under `relations`."""

from collections.abc import Iterator, Mapping
from typing import Any

from common.types import Json
from stores.imports.chat import Skipped, fault, time_or_none

_KEPT = ("user_id", "agent_id", "run_id", "app_id", "categories", "metadata")


def fits(document: Any) -> bool:
    if not isinstance(document, Mapping):
        return False
    if "memory" in document:
        return isinstance(document["memory"], str)  # in a row of our own export it is an object
    results = document.get("results")
    return isinstance(results, list) and all(
        isinstance(each, Mapping) and "memory" in each for each in results
    )


def read(document: Any) -> Iterator[Json | Skipped]:
    if "memory" in document:
        yield _memory(document, "memory")
        return
    for i, each in enumerate(document["results"]):
        yield _memory(each, f"results[{i}]")
    for i, each in enumerate(document.get("relations") or ()):
        yield _relation(each, f"relations[{i}]")


def _memory(each: Mapping[str, Any], where: str) -> Json | Skipped:
    text = each.get("memory")
    if not isinstance(text, str) or not text.strip():
        return fault(f"{where}: memory is empty")
    run = each.get("run_id")
    return {
        "kind": "episodic",
        "text": text,
        "conversation": str(run) if run else None,
        "time": time_or_none(each.get("created_at")),
        "context": {
            "source": "mem0",
            **{name: each[name] for name in _KEPT if each.get(name) not in (None, {}, [])},
        },
    }


def _relation(each: Any, where: str) -> Json | Skipped:
    given = each if isinstance(each, Mapping) else {}
    names = (given.get("source"), given.get("relationship"), given.get("target") or given.get("destination"))
    if not all(isinstance(name, str) and name.strip() for name in names):
        return fault(f"{where}: needs source, relationship and target")
    subject, relation, other = names
    found = {"kind": "relational", "subject": subject, "relation": relation, "object": other}
    return {**found, "context": {"source": "mem0"}}
