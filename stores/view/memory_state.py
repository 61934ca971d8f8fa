"""A memory as a shard holds it: content, versions, statistics, position in the log."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from stores.index.vectors import Vectors
from stores.log.record import Record

STATISTICS = (  # fields of a `MemoryState` that a memory keeps when it moves to another shard
    *("usage", "salience", "last_used", "last_scored", "count", "strength"),
    *("rivals", "retention", "closed", "closings", "assertions", "telling_vectors", "told_at", "passages"),
)
# Only in a row where they are not empty: digests of earlier exports hold.
OPTIONAL = ("telling_vectors", "told_at", "passages")
STORED_AS = {"retention": "vigour", "assertions": "tellings"}  # names on disk that differ from the fields
FIELD_OF = {stored: field for field, stored in STORED_AS.items()}


_NESTED = frozenset((dict, list))


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """The content of a memory from `written` (seconds) on."""

    seq: int
    anchor: str
    written: float
    memory: dict[str, Any]
    foreign: bool = False  # came with an imported memory: `seq` is a number of another log


@dataclass(slots=True, kw_only=True)
class MemoryState:
    """A memory and its statistics. `generation` is the `seq` of the write that made the content, so a memory that was
    forgotten and written again is never taken for the old one.

    `count` is how often it was written, near duplicates included. `strength` (0 to 1) is what remained after races,
    and `rivals` the same for candidates that lost. `retention` (0 to 1) is what decay had left just after the last
    use. `closed` is when a fact ceased to hold: the earliest of `closings`, by the ids of the facts that contradict
    it. `assertions` are further tellings: memories that assert the same fact, or near duplicates of an episode.
    By their ids, `told_at` is when they were written (seconds), and `telling_vectors` has the embeddings (base64 of
    float32, little endian) of those whose text is not that of the memory. `passages` are further embeddings of a long
    text (`index.passages`). `older` are superseded versions, oldest first. `origin` is where an imported memory came
    from: `{shard, seq, anchor}`. `traces` are further records that contain particulars of the memory: they are erased
    with it.
    """

    memory: dict[str, Any]
    seq: int
    anchor: str
    written: float
    novelty: float
    usage: int = 0
    salience: float = 0.0
    last_used: float | None = None
    last_scored: float | None = None
    count: int = 1
    strength: float = 1.0
    rivals: dict[str, float] = field(default_factory=dict)
    retention: float = 1.0
    closed: float | None = None
    closings: dict[str, float] = field(default_factory=dict)
    assertions: list[dict[str, Any]] = field(default_factory=list)
    telling_vectors: dict[str, str] = field(default_factory=dict)
    told_at: dict[str, float] = field(default_factory=dict)
    passages: list[str] = field(default_factory=list)
    older: list[Version] = field(default_factory=list)
    origin: dict[str, Any] | None = None
    traces: list[int] = field(default_factory=list)

    @property
    def place(self) -> tuple[float, str]:
        """The sort key in lists: (time, id)."""
        return self.memory["time"], self.memory["id"]

    @property
    def version(self) -> Version:
        return Version(seq=self.seq, anchor=self.anchor, written=self.written, memory=self.memory)

    @property
    def versions(self) -> list[Version]:
        """All versions, newest first."""
        return [self.version, *reversed(self.older)]

    @property
    def seqs(self) -> list[int]:
        """Every record of this log that holds content of the memory."""
        return [self.seq, *(version.seq for version in self.older if not version.foreign), *self.traces]

    def retention_at(self, now: float, half_life_s: float) -> float:
        """Retention (0 to 1) at `now`; a clock that went back does not raise it."""
        since = self.written if self.last_used is None else self.last_used
        return self.retention * 0.5 ** (max(0.0, now - since) / half_life_s)

    def use(self, now: float, half_life_s: float, refresh: float) -> None:
        """Count one use, which restores a share `refresh` of the lost retention."""
        left = self.retention_at(now, half_life_s)
        self.retention = left + refresh * (1.0 - left)
        self.usage += 1
        self.last_used = now

    def salience_after(self, divergence: float, rate: float) -> float:
        """Moving average of divergence, never below 0; the first measurement starts it."""
        measured = max(0.0, divergence)
        return measured if self.last_scored is None else (1.0 - rate) * self.salience + rate * measured


def close(entry: MemoryState, by: str, valid_to: float | None) -> None:
    """End the fact at `valid_to` because of the fact `by`; None removes that closing."""
    entry.closings.pop(by, None)
    if valid_to is not None:
        entry.closings[by] = valid_to
    entry.closed = min(entry.closings.values(), default=None)


def state_of(record: Record, content: dict[str, Any]) -> MemoryState:
    """The entry of a record that writes a memory."""
    return MemoryState(
        memory=content["memory"],
        seq=record.seq,
        anchor=record.anchor.hex(),
        written=record.time,
        novelty=content["novelty"],
        passages=content.get("passages", []),
    )


def copied(value: Any) -> Any:
    """A deep copy of JSON, many times cheaper than `deepcopy`."""
    if type(value) is dict:
        return {name: copied(each) if type(each) in _NESTED else each for name, each in value.items()}
    if type(value) is list:
        return [copied(each) if type(each) in _NESTED else each for each in value]
    return value


def vector_of(record: Record) -> Vectors:
    return np.frombuffer(record.vector, "<f4")


def describe(
    entry: MemoryState, content: dict[str, Any], shard: int, *, shared: bool = False
) -> dict[str, Any]:
    """A memory (`content` as answers show it) with its statistics; the caller may change the answer unless its content
    is `shared` with the view."""
    versions: list[MemoryState | Version] = [entry, *reversed(entry.older)]
    return {
        **(content if shared else copied(content)),
        "statistics": {
            "usage": entry.usage,
            "salience": entry.salience,
            "novelty": entry.novelty,
            "generation": entry.seq,
            "strength": entry.strength,
            "count": entry.count,
            "last_used": entry.last_used,
            "last_scored": entry.last_scored,
        },
        "anchor": entry.anchor,
        "shard": shard,
        "seq": entry.seq,
        "origin": entry.origin,
        "versions": [
            {"seq": version.seq, "anchor": version.anchor, "written": version.written} for version in versions
        ],
    }


def unshared(described: dict[str, Any]) -> dict[str, Any]:
    """A `shared` answer of `describe` made safe to change: everything shared with the view is copied."""
    own = described.copy()
    for name, value in described.items():
        if type(value) in _NESTED and name not in ("statistics", "versions"):
            own[name] = copied(value)
    return own


def history(entry: MemoryState) -> list[dict[str, Any]]:
    """Every version, newest first: `{seq, anchor, written, content}`."""
    return [
        {
            "seq": version.seq,
            "anchor": version.anchor,
            "written": version.written,
            "content": copied(version.memory),
        }
        for version in entry.versions
    ]


def row_of(entry: MemoryState, vector: Vectors, shard: int) -> dict[str, Any]:
    """A memory as a row for import by another shard, with its vector (float32 `[dim]`)."""
    return {
        "memory": copied(entry.memory),
        "novelty": entry.novelty,
        "statistics": {
            STORED_AS.get(name, name): copied(value)
            for name in STATISTICS
            if (value := getattr(entry, name)) or name not in OPTIONAL
        },
        "origin": entry.origin
        or {"shard": shard, "seq": entry.seq, "anchor": entry.anchor, "written": entry.written},
        "older": [asdict(version) for version in entry.older],
        "vector": vector,
    }
