"""Keyed memories: the newest memory of each key, ranked by concert weight.

A keyed memory is an episodic memory whose context has a `key`; its text is the value, its vector the value's
embedding. So it is erased, replayed and scored like every memory, its versions are the values that the key had, and
its anchor chains it to the shard's previous record. `KeyedMemories` is the view of one namespace;
`stores.shard.keyed` has the operations.
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import numpy as np

from common.errors import Conflict, InvalidInput
from common.types import Json
from stores.index.vectors import Vectors
from stores.memory.memory import Memory, parse_memory
from stores.ranking import concert
from stores.ranking.concert import Concert
from stores.view.memory_state import MemoryState

MAX_KEY = 512  # characters
_FIRST_ROWS = 16


class KeyedMemories:
    """The keyed memories of one namespace. Changes need the shard's lock; see `Shard`."""

    def __init__(self) -> None:
        self._by_key: dict[str, list[MemoryState]] = {}  # memories of the key, the newest last
        self._rows: dict[int, int] = {}  # seq -> row
        self._free: list[int] = []
        self._entries: list[MemoryState | None] = []
        self._vectors = np.empty((0, 0), np.float32)

    def __len__(self) -> int:
        return len(self._by_key)

    def add(self, entry: MemoryState, vector: Vectors) -> None:
        """Add a memory; one without a key is ignored. `vector`: float32 `[dim]`."""
        key = key_of(entry.memory)
        if key is None:
            return
        same = self._by_key.setdefault(key, [])
        same.append(entry)
        same.sort(key=lambda memory: memory.seq)
        if not self._free:
            self._grow(len(vector))
        row = self._free.pop()
        self._rows[entry.seq], self._entries[row], self._vectors[row] = row, entry, vector

    def remove(self, entry: MemoryState) -> None:
        row = self._rows.pop(entry.seq, None)
        if row is None:
            return
        self._entries[row], self._vectors[row] = None, 0.0
        self._free.append(row)
        key = str(key_of(entry.memory))
        self._by_key[key] = [memory for memory in self._by_key[key] if memory.seq != entry.seq]
        if not self._by_key[key]:
            del self._by_key[key]

    def get(self, key: str) -> MemoryState | None:
        """The key's memory, or None."""
        same = self._by_key.get(key)
        return same[-1] if same else None

    def vector(self, key: str) -> Vectors | None:
        """The value vector `[dim]` of the key, or None."""
        line = self.get(key)
        return None if line is None else self._vectors[self._rows[line.seq]].copy()

    def describe(self, key: str) -> Json | None:
        line = self.get(key)
        return None if line is None else _describe(line)

    def raw(self) -> bytes:
        """All vectors in memory, the rows of removed memories included."""
        return self._vectors.tobytes()

    def query(self, vector: Vectors, k: int, *, now: float, constants: Concert | None = None) -> list[Json]:
        """The `k` keyed memories of highest concert weight to the unit vector `[dim]`, best first, without those under
        the similarity floor: `{key, value, context, time, recency, novelty, similarity, weight,
        strength, id, anchor, generation}`."""
        return [
            {**_describe(line), "recency": recency, "similarity": similarity, "weight": weight}
            for line, _, recency, similarity, weight in self._ranked(vector, k, now, constants)
        ]

    def bias_vector(
        self, vector: Vectors, k: int, *, now: float, constants: Concert | None = None
    ) -> Vectors:
        """Weighted mean of the value vectors of the memories that `query` returns: float32 `[dim]`, zeros if there are
        none."""
        ranked = self._ranked(vector, k, now, constants)
        if not ranked:
            return np.zeros(len(vector), np.float32)
        rows, weights = [row for _, row, *_ in ranked], [weight for *_, weight in ranked]
        return concert.bias_vector(weights, self._vectors[rows])

    def _ranked(
        self, vector: Vectors, k: int, now: float, constants: Concert | None
    ) -> list[tuple[MemoryState, int, float, float, float]]:
        """`(memory, row, recency, similarity, weight)`, best first; equal weights by key."""
        constants = constants or Concert()
        lines = [same[-1] for same in self._by_key.values()]
        if not lines or k <= 0:
            return []
        rows = [self._rows[line.seq] for line in lines]
        similarity = self._vectors[rows] @ np.asarray(vector, np.float32)
        recency = concert.recency([line.memory["time"] for line in lines], now, constants.tau_s)
        weights = concert.weights(similarity, recency, [line.novelty for line in lines], constants)
        heard = [i for i in range(len(lines)) if similarity[i] >= constants.floor]
        heard.sort(key=lambda i: (-weights[i], key_of(lines[i].memory)))
        return [
            (lines[i], rows[i], float(recency[i]), float(similarity[i]), float(weights[i])) for i in heard[:k]
        ]

    def _grow(self, dim: int) -> None:
        """Double the number of rows."""
        size = len(self._entries)
        grown = np.zeros((max(_FIRST_ROWS, 2 * size), dim), np.float32)
        grown[:size] = self._vectors if size else 0.0
        self._vectors = grown
        self._entries += [None] * (len(grown) - size)
        self._free += reversed(range(size, len(grown)))


def key_of(memory: Mapping[str, Any]) -> str | None:
    """The key of a memory (in the API's shape), or None."""
    key = memory["context"].get("key") if memory["kind"] == "episodic" else None
    return key if isinstance(key, str) and key else None


def line_id(key: str) -> str:
    """The id of the key's memory, a function of the key: two writers of one new key must write the same memory."""
    return f"line-{blake2b(key.encode(errors='replace'), digest_size=16).hexdigest()}"


def line_memory(
    namespace: str,
    key: str,
    value: str,
    context: Mapping[str, Any] | None,
    *,
    now: float,
    max_text_bytes: int,
    time: Any = None,
) -> Memory:
    """The memory for a key and its value. Raises `InvalidInput` or `TooLarge` as `parse_memory` does."""
    if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY:
        raise InvalidInput(f"key = {str(key)[:64]!r}: must be text of 1 to {MAX_KEY} characters", param="key")
    given = {} if context is None else dict(context)
    if given.setdefault("key", key) != key:
        raise InvalidInput(
            f"context.key: must be the line's own key {key[:64]!r}, or absent", param="context"
        )
    line = {"id": line_id(key), "text": value, "context": given, "time": time}
    return parse_memory(line, namespace=namespace, now=now, max_text_bytes=max_text_bytes)


def check_anchor(key: str, line: MemoryState | None, previous: str | None, head: str) -> None:
    """Compare-and-set: raises `Conflict` unless `previous` is the key's present anchor (zeros if the key has no memory)
    or the shard's last anchor, `head`, so that nothing was written since. None always passes."""
    mine = line.anchor if line else "0" * len(head)
    if previous is not None and previous not in (mine, head):
        raise Conflict(
            f"prev_anchor {previous[:64]!r} is not the present anchor of key {key[:64]!r}: "
            f"{mine if line else 'there is no line yet'}; read it again",
            param="prev_anchor",
            code="stale_anchor",
        )


def _describe(line: MemoryState) -> Json:
    context = dict(line.memory["context"])
    return {
        "key": context.pop("key"),
        "value": line.memory["text"],
        "context": context,
        "time": line.memory["time"],
        "novelty": line.novelty,
        "strength": line.strength,
        "id": line.memory["id"],
        "anchor": line.anchor,
        "generation": line.seq,
    }
