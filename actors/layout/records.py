"""The layout record that a store's configuration names, and publishing the layout to clients."""

import json
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

from ray.experimental import internal_kv

from actors.layout.file_record import LayoutFile
from actors.layout.layout import BY_ID_ALONE, RAY_NAMESPACE, LayoutRecord, ShardLayout, from_json
from actors.layout.redis_record import LayoutKey
from common.config import Config
from common.errors import Conflict, NotReady
from stores.log.open import keyring_folder


def shards_folder(config: Config) -> Path:
    return config.store_dir / "shards"


def keys_record(config: Config) -> LayoutFile | None:
    """The record of the shards' data keys if these are stored apart: folders that are dropped with the shards'."""
    if config.store.master_key is None or config.store.keys_dir is None:
        return None
    return LayoutFile(keyring_folder(shards_folder(config), config.store))


def beside_record(config: Config) -> LayoutFile | None:
    """The record of what shards with logs in Redis have on their nodes' disks: snapshots, and keys without
    `store.keys_dir`. These folders are dropped with the shards' data."""
    return LayoutFile(shards_folder(config)) if config.store.backend == "redis" else None


def layout_record(config: Config) -> LayoutRecord:
    if config.store.backend == "redis":
        return LayoutKey(config.store)
    return LayoutFile(shards_folder(config))


def wanted_layout(config: Config) -> ShardLayout:
    """The layout of a new store, by the configuration."""
    return ShardLayout(shards=config.store.shards, spread=min(config.store.spread, config.store.shards))


def check_wanted(config: Config, layout: ShardLayout) -> None:
    """Check the configured numbers against those that the store was created with; after a reshard only its layout
    counts."""
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


def publish(config: Config, layout: ShardLayout) -> None:
    """Publish the layout to every client of the cluster."""
    value = json.dumps(replace(layout, moving=None).to_json()).encode()
    key = f"{_prefix(config)}{layout.generation:012d}"
    internal_kv._internal_kv_put(key, value, namespace=RAY_NAMESPACE)


def published(config: Config) -> ShardLayout:
    """The newest layout that was published. Raises `NotReady` if there is none."""
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
