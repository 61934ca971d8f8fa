"""How a store is divided into shards, and the durable record that says so.

    layout.json    {version, generation, shards, spread, moving}, next to the shards
    0000, 0001     the shards of generation 1;   g2/0000   those of a later one

A reshard makes the next generation beside the one that serves, and then swaps the record: that is the
moment at which the new layout holds. The record changes only by compare-and-swap, so a reshard that has
lost its right (see `tenure.py`) cannot switch any more. `moving` names the reshard that is about to.

Clients on other nodes cannot read the file: what it says is published in Ray's own key-value store, each
generation under a key of its own, so that nobody who is late can put an old one in front.
"""

import fcntl
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

from ray.experimental import internal_kv

from actors.layout.placement import Placement
from common.config import Config
from common.errors import Conflict, NotReady
from common.files import read_json, write_json
from stores.log.open import ring_folder

RAY_NAMESPACE = "sharpwave"
_FOLDER = re.compile(r"\d{4}|g\d+")
BY_ID_ALONE = 1  # version of the layouts in which every kind went by its id, over all shards
VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """`shards` in all, `spread` of them for a namespace; each reshard adds 1 to `generation`."""

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
        """Relative to the folder of all shards."""
        return (f"g{self.generation}/" if self.generation > 1 else "") + f"{number:04d}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def from_json(found: dict[str, Any]) -> Layout:
    """Reads the first form, `{shards}`, too. Raises `Conflict` for one that only a later release knows."""
    if "version" not in found:
        return Layout(shards=found["shards"], spread=found["shards"], version=BY_ID_ALONE)
    if found["version"] > VERSION:
        raise Conflict(f"the layout has version {found['version']}, this release reads up to {VERSION}")
    return Layout(**found)


class LayoutRecord(Protocol):
    """Where the layout stands, and with it the shards' data."""

    def read(self) -> Layout | None: ...

    def swap(self, expected: Layout | None, new: Layout) -> bool:
        """Make `new` durable if `expected` is what stands there; returns whether it was."""

    def exclusive(self) -> Any:
        """Context of the one process that may build, switch or clean. Raises `Conflict` where another is."""

    def drop(self, folder: str) -> None:
        """Remove the data of the shard in `folder`, which nobody has open."""

    def drop_others(self, layout: Layout) -> None:
        """Remove the data of every shard that is not the layout's."""


class LayoutFile:
    """The record of shards on a local disk."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / "layout.json"

    def read(self) -> Layout | None:
        return from_json(read_json(self._path)) if self._path.exists() else None

    def swap(self, expected: Layout | None, new: Layout) -> bool:
        with self._locked("layout.lock", fcntl.LOCK_EX):
            if self.read() != expected:
                return False
            write_json(self._path, new.to_json())
            return True

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        try:
            with self._locked("reshard.lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
                yield
        except BlockingIOError:
            raise Conflict(f"{self._path.parent} is being resharded; wait for that to end") from None

    def drop(self, folder: str) -> None:
        shutil.rmtree(self._folder / folder, ignore_errors=True)

    def drop_others(self, layout: Layout) -> None:
        kept = {layout.folder(number).partition("/")[0] for number in layout.placement.numbers}
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            if path.is_dir() and _FOLDER.fullmatch(path.name) and path.name not in kept:
                shutil.rmtree(path)

    @contextmanager
    def _locked(self, name: str, how: int) -> Iterator[None]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with (self._path.parent / name).open("a") as file:
            fcntl.flock(file, how)
            yield


def shards_folder(config: Config) -> Path:
    return config.store_dir / "shards"


def keys_record(config: Config) -> LayoutFile | None:
    """The data keys of the shards where they lie apart from them, as folders that are dropped as theirs are."""
    if config.store.master_key is None or config.store.keys_dir is None:
        return None
    return LayoutFile(ring_folder(shards_folder(config), config.store))


def beside_record(config: Config) -> LayoutFile | None:
    """What shards whose logs are in Redis have on the disks of their nodes: snapshots, and keys without
    `store.keys_dir`. Folders that are dropped as the shards' data are."""
    return LayoutFile(shards_folder(config)) if config.store.backend == "redis" else None


def layout_record(config: Config) -> LayoutRecord:
    if config.store.backend == "redis":
        from actors.layout.redis_record import LayoutKey  # which builds on this file

        return LayoutKey(config.store)
    return LayoutFile(shards_folder(config))


def wanted_layout(config: Config) -> Layout:
    """Of a new store."""
    return Layout(shards=config.store.shards, spread=min(config.store.spread, config.store.shards))


def check_wanted(config: Config, layout: Layout) -> None:
    """A store keeps the numbers it was made with until it is resharded; from then on its layout counts."""
    if layout.generation > 1:
        return
    wanted = wanted_layout(config)
    names = ("shards",) if layout.version == BY_ID_ALONE else ("shards", "spread")
    for name in names:
        if getattr(wanted, name) != getattr(layout, name):
            raise Conflict(
                f"store.{name} = {getattr(wanted, name)}: {shards_folder(config)} was made with "
                f"{getattr(layout, name)}; keep that number, or change it with `sharpwave reshard`",
                param=name,
            )


def publish(config: Config, layout: Layout) -> None:
    """Tell every client of the cluster."""
    value = json.dumps(replace(layout, moving=None).to_json()).encode()
    key = f"{_prefix(config)}{layout.generation:012d}"
    internal_kv._internal_kv_put(key, value, namespace=RAY_NAMESPACE)


def published(config: Config) -> Layout:
    """The newest layout that was published. Raises `NotReady` where none was."""
    keys = internal_kv._internal_kv_list(_prefix(config), namespace=RAY_NAMESPACE)
    value = internal_kv._internal_kv_get(max(keys), namespace=RAY_NAMESPACE) if keys else None
    if value is None:
        raise NotReady(f"the shards of {shards_folder(config)} are not running; start the store first")
    return from_json(json.loads(value))


def _prefix(config: Config) -> str:
    where = str(shards_folder(config))
    if config.store.backend == "redis":
        where = f"{config.store.redis_url} {config.store.redis_prefix}"
    return f"layout/{blake2b(where.encode(), digest_size=8).hexdigest()}/"
