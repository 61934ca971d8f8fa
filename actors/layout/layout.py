"""How a store is divided into shards, and the durable record of it.

    layout.json    {version, generation, shards, spread, moving}, next to the shards
    0000, 0001     the shards of generation 1;   g2/0000   those of a later one

A reshard makes the next generation beside the one that serves, and then swaps the record: this
puts the new layout in force. The record changes only by compare-and-swap, so a reshard that has lost its lease (see
`shards/shard_phase.py`) cannot switch any more. `moving` names the running reshard.

Clients on other nodes cannot read the file: its content is published in Ray's own key-value store, each
generation under a key of its own, so that a late writer cannot replace a newer one.
"""

from dataclasses import asdict, dataclass
from typing import Any, Protocol

from actors.layout.placement import Placement
from common.errors import Conflict

RAY_NAMESPACE = "sharpwave"
BY_ID_ALONE = 1  # version of the layouts in which every kind was placed by its id, over all shards
VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardLayout:
    """A layout: `shards` in all, `spread` of them for a namespace; each reshard adds 1 to `generation`."""

    shards: int
    spread: int
    generation: int = 1
    version: int = VERSION
    moving: str | None = None

    @property
    def placement(self) -> Placement:
        return Placement(shards=self.shards, spread=self.spread, homes=self.version != BY_ID_ALONE)

    def actor_name(self, number: int) -> str:
        return f"shard-{number}" + (f"-g{self.generation}" if self.generation > 1 else "")

    def folder(self, number: int) -> str:
        """The folder of a shard, relative to the folder of all shards."""
        return (f"g{self.generation}/" if self.generation > 1 else "") + f"{number:04d}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def from_json(found: dict[str, Any]) -> ShardLayout:
    """The inverse of `to_json`; reads the first form, `{shards}`, too. Raises `Conflict` for a newer version."""
    if "version" not in found:
        return ShardLayout(shards=found["shards"], spread=found["shards"], version=BY_ID_ALONE)
    if found["version"] > VERSION:
        raise Conflict(f"the layout has version {found['version']}, this release reads up to {VERSION}")
    return ShardLayout(**found)


class LayoutRecord(Protocol):
    """The durable record of the layout, and removal of shards' data."""

    def read(self) -> ShardLayout | None: ...

    def swap(self, expected: ShardLayout | None, new: ShardLayout) -> bool:
        """Make `new` durable if the record is `expected`; returns whether it was."""

    def exclusive(self) -> Any:
        """Context of the one process that may build, switch or clean. Raises `Conflict` if another is in it."""

    def drop(self, folder: str) -> None:
        """Remove the data of the shard in `folder`, which must not be open."""

    def drop_others(self, layout: ShardLayout) -> None:
        """Remove the data of every shard that is not in the layout."""
