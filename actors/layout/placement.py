"""Placement of namespaces and memories on shards: pure functions of names and numbers.

Rendezvous hashing of the namespace picks `spread` of the shards, the first of which is its home. An
episodic memory is stored on the one of them that its id picks, a conversation's short-term memory on the one
that the conversation picks. Relational and spatial memories are stored on the home shard, because duplicates,
contradictions and positions need the whole graph; so are keyed memories, which are looked up by key. Adding or
removing a shard moves only that shard's share.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from heapq import nlargest

LINE = "line-"  # prefix of the ids of keyed memories


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """`shards` in all, `spread` of them for each namespace.

    Without `homes` a namespace uses every shard and every kind is placed by its id, as in stores from before layouts
    had a version.
    """

    shards: int
    spread: int
    homes: bool = True

    @property
    def numbers(self) -> range:
        return range(self.shards)

    def places(self, namespace: str) -> Sequence[int]:
        """The namespace's shards, its home first."""
        if not self.homes:
            return self.numbers
        return _ranked(namespace, self.shards, self.spread)

    def home(self, namespace: str) -> int:
        return self.places(namespace)[0]

    def owner(self, namespace: str, id: str, kind: str) -> int:
        """The shard that a memory of this kind is written to."""
        if self.homes and (kind != "episodic" or id.startswith(LINE)):
            return self.home(namespace)
        return self.pick(namespace, id)

    def lookups(self, namespace: str, id: str) -> Sequence[int]:
        """The shards to ask for a memory of unknown kind, in this order."""
        first = self.pick(namespace, id)
        return [*dict.fromkeys((first, self.home(namespace)))] if self.homes else [first]

    def pick(self, namespace: str, key: str) -> int:
        """The one of the namespace's shards that an id or a conversation picks."""
        return max(self.places(namespace), key=lambda number: _weight(f"{number}/{namespace}/{key}"))

    def asked(self, namespaces: Iterable[str]) -> list[int]:
        """Every shard that may hold memories of these namespaces, in order."""
        return sorted({number for namespace in namespaces for number in self.places(namespace)})


@lru_cache(maxsize=65_536)
def _ranked(namespace: str, shards: int, spread: int) -> tuple[int, ...]:
    return tuple(nlargest(spread, range(shards), key=lambda number: _weight(f"{number}/{namespace}")))


def _weight(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=8).digest()
