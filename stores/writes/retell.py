"""What stays of memories that were told more than once when some of the tellings are erased.

A fact told twice, or an episode with near duplicates, is one memory: its content is the first telling, `assertions` are
the further ones. What is left after an erasure is told again, in its order, to a store without the erased: afterwards
the store is as if the erased had never been told. If the first telling is erased, the memory has the id of the next.

An id erases the memory that answers show under it, with all its tellings; the id of a further telling only that one. A
filter looks at each telling.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from common.types import Json
from stores.index.passages import decode, encode
from stores.index.vectors import Vectors
from stores.log.base import Draft
from stores.log.record import Op
from stores.memory.filters import Predicate
from stores.memory.memory import from_json
from stores.view.memory_state import MemoryState
from stores.view.view import Space, View
from stores.writes.graph_planner import GraphPlanner, closings
from stores.writes.rewrite import rows_of


@dataclass(frozen=True, slots=True)
class Chosen:
    """What an erasure takes: memories whose first telling goes (`gone`), further tellings of memories that stay
    (`dropped`, by the memory's id), and what is left of those that go (`left`, by id)."""

    gone: list[MemoryState] = field(default_factory=list)
    dropped: dict[str, list[Json]] = field(default_factory=dict)
    left: dict[str, list[Json]] = field(default_factory=dict)

    @property
    def tellings(self) -> list[Json]:
        """The erased tellings, first ones first."""
        found = [entry.memory for entry in self.gone]
        for entry in self.gone:
            left = self.left.get(entry.memory["id"], [])
            found += [telling for telling in entry.assertions if telling not in left]
        return found + [telling for some in self.dropped.values() for telling in some]

    @property
    def texts(self) -> set[str]:
        """Texts of all that is erased, all versions included, without those that a telling which stays has."""
        stays = {telling["text"].strip() for some in self.left.values() for telling in some}
        older = [version.memory for entry in self.gone for version in entry.older]
        return {memory["text"].strip() for memory in (*self.tellings, *older)} - stays

    @property
    def ids(self) -> list[str]:
        """Ids of the erased tellings."""
        return [telling["id"] for telling in self.tellings]


@dataclass(frozen=True, slots=True)
class Rewritten:
    """`rows` are memories as `Op.IMPORT` takes them, `merged` ids of memories that are now part of others, `went_on` by
    the id of a memory the one under which it goes on, `closings` records of the facts that end."""

    rows: list[Json]
    merged: set[str]
    went_on: dict[str, str]
    closings: list[Draft] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Telling:
    """A memory told once, in the API's shape, with its vector (float32 `[dim]`). If it is told again: `of` is the id of
    the memory that it was part of, `at` when it was told (seconds)."""

    memory: Json
    vector: Vectors
    of: str = ""
    at: float = 0.0
    order: tuple[float, int, int] = (0.0, 0, 0)


def choose(space: Space | None, ids: Sequence[str] | None, keep: Predicate | None) -> Chosen:
    """The tellings of `ids` (None: all) that the filter `keep` admits (None: any)."""
    found = Chosen()
    if space is None:
        return found
    wanted = None if ids is None else {*ids}
    named = space.entries if ids is None else dict.fromkeys([*ids, *(space.told.get(id, id) for id in ids)])
    for entry in [space.entries[id] for id in named if id in space.entries]:
        id = entry.memory["id"]
        first = (wanted is None or id in wanted) and (keep is None or keep(space.seen(entry)))
        erased = [t for t in entry.assertions if _erased(space, entry, t, wanted, keep)]
        if first:
            found.gone.append(entry)
            if left := [telling for telling in entry.assertions if telling not in erased]:
                found.left[id] = left
        elif erased:
            found.dropped[id] = erased
    return found


def _erased(
    space: Space, entry: MemoryState, telling: Json, wanted: set[str] | None, keep: Predicate | None
) -> bool:
    if wanted is not None and wanted.isdisjoint((telling["id"], entry.memory["id"])):
        return False
    return keep is None or keep(space.seen(entry, telling))


def rewritten(view: View, namespace: str, chosen: Chosen, shard: int) -> Rewritten:
    """Tell again what is left of the memories that the erasure changes. The decision about a fact depends on the facts
    told before it: those on which it depends are told again with it, in the order in which all were told."""
    space = view.spaces.get(namespace)
    if space is None:
        return Rewritten([], set(), {})
    changed = _changed(space, chosen)
    told = [told for entry in changed.values() for told in _tellings(space, entry, chosen.tellings)]
    planner = GraphPlanner(view)
    for id, entry in {**changed, **{entry.memory["id"]: entry for entry in chosen.gone}}.items():
        if entry.memory["kind"] == "relational":
            planner.drop(namespace, id)
    groups: dict[str, list[Telling]] = {}
    drafts: list[Draft] = []
    went_on: dict[str, str] = {}
    for telling in sorted(told, key=lambda each: each.order):
        into = went_on.get(telling.of)
        if telling.memory["kind"] == "relational":
            decision = planner.decide(from_json(telling.memory))
            into, drafts = decision.into, drafts + closings(namespace, decision)
        groups.setdefault(into or telling.memory["id"], []).append(telling)
        went_on.setdefault(telling.of, into or telling.memory["id"])
    rows = [_row(view, changed[group[0].of], group, shard) for group in _to_write(groups, changed)]
    written = {row["memory"]["id"] for row in rows}
    return Rewritten(
        rows,
        changed.keys() - groups.keys(),
        {id: on for id, on in went_on.items() if id != on},
        [draft for draft in drafts if {draft[1]["id"], draft[1]["by"]} & written],
    )


def assertion(told: Telling, into: str, text: str) -> Draft:
    """The record of one more telling of the memory `into`, whose first telling has this text: only of another text the
    vector is kept."""
    body: Json = {"namespace": told.memory["namespace"], "id": into, "count": 1, "telling": told.memory}
    if told.memory["text"] != text:
        [body["vector"]] = encode([told.vector])
    return Op.AGGREGATE, body, b""


def _changed(space: Space, chosen: Chosen) -> dict[str, MemoryState]:
    """The memories that have something left to be told again, by id."""
    changed = {entry.memory["id"]: entry for entry in chosen.gone if entry.memory["id"] in chosen.left}
    changed |= {id: space.entries[id] for id in chosen.dropped}
    gone = {entry.memory["id"] for entry in chosen.gone}
    for telling in chosen.tellings:
        if telling["kind"] == "relational":
            near = space.facts.graph.near(telling) - gone
            changed |= {id: space.entries[id] for id in sorted(near)}
    return changed


def _tellings(space: Space, entry: MemoryState, erased: Sequence[Json]) -> Iterator[Telling]:
    """The tellings of a memory that are not erased."""
    first, id = space.index.vectors_of([entry.seq])[0], entry.memory["id"]
    for index, memory in enumerate([entry.memory, *entry.assertions]):
        if memory not in erased:
            at = entry.told_at.get(memory["id"], entry.written) if index else entry.written
            yield Telling(memory, _vector(entry, memory, first), id, at, (at, entry.seq, index))


def _vector(entry: MemoryState, telling: Json, first: Vectors) -> Vectors:
    """The telling's vector. Tellings of earlier code came without one: those have that of the first telling, the same
    triple in other words."""
    kept = entry.telling_vectors.get(telling["id"])
    return first if kept is None else decode(kept)


def _to_write(
    groups: Mapping[str, list[Telling]], changed: Mapping[str, MemoryState]
) -> Iterator[list[Telling]]:
    """The groups of tellings that are no longer the memory that is there. Of facts that begin at one time the one that
    was written last holds, so the facts told after one that is written anew are written after it."""
    after = False
    for id, group in groups.items():
        fact = group[0].memory["kind"] == "relational"
        there = id in changed and _ids(group) == [id, *(each["id"] for each in changed[id].assertions)]
        if not there or (fact and after):
            after = after or fact
            yield group


def _ids(group: Sequence[Telling]) -> list[str]:
    return [telling.memory["id"] for telling in group]


def _row(view: View, entry: MemoryState, group: Sequence[Telling], shard: int) -> Json:
    """The memory that consists of these tellings. It has the statistics of `entry`, and its versions if the first
    telling is still the same."""
    first, *further = group
    [row], _ = rows_of(view, [(entry.memory["namespace"], entry.memory["id"])], shard)
    if first.memory["id"] != entry.memory["id"]:
        row |= {
            "memory": first.memory,
            "older": [],
            "origin": None,
            "vector": np.asarray(first.vector, "<f4"),
        }
        row |= {"ends": {}, "statistics": {**row["statistics"], "closings": {}, "closed": None}}
    vectors = {
        told.memory["id"]: told.vector for told in further if told.memory["text"] != first.memory["text"]
    }
    unseen = row["statistics"]["count"] - len(entry.assertions) - 1  # tellings counted before they were kept
    row["statistics"] |= {
        "written": first.at,
        "count": len(group) + max(0, unseen),
        "tellings": [told.memory for told in further],
        "told_at": {told.memory["id"]: told.at for told in further},
        "telling_vectors": dict(zip(vectors, encode(vectors.values()), strict=True)),
    }
    return row
