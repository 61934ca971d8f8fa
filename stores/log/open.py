"""Opening a shard's log: the backend that the configuration names, encrypted or not."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.config import StoreConfig
from common.keys import read_key
from stores.crypto.keyring import Keyring
from stores.crypto.master_key import read_master
from stores.log import backend_marker, encrypted
from stores.log.base import Backend, Log
from stores.log.encrypted import EncryptedLog
from stores.log.jsonl import JsonlLog
from stores.log.lmdb import LmdbLog
from stores.log.record import Chain


def open_log(path: Path, *, config: StoreConfig, identity: Mapping[str, Any], wait_s: float = 0.0) -> Log:
    """The log in `path`, created if there is none, in the backend that `config` names.

    `identity` (such as shard number and dimension) is written at the first open and must match later, and so must
    the chain's options. `wait_s` is how long (seconds) to wait for a former owner to end; in Redis the newer owner
    takes over. Raises `NotReady` if another process owns the log, `Conflict` if it has another identity or backend,
    `StoreCorrupt` if it is not a log, `InvalidInput` if the chain's key is missing, or the master key is missing or
    wrong.
    """
    backend_marker.check_log(path, config.backend)
    if config.master_key is None:
        return _open_plain(path, config, identity, wait_s)
    master, folder = read_master(config.master_key), keyring_folder(path, config)
    Keyring(folder, master)  # refuses a wrong master key before anything is changed
    log = _open_plain(path, config, {**identity, **encrypted.IDENTITY}, wait_s)
    try:
        return EncryptedLog(
            log, Keyring(folder, master)
        )  # read when the former owner can no longer change it
    except BaseException:
        log.close()
        raise


def _open_plain(path: Path, config: StoreConfig, identity: Mapping[str, Any], wait_s: float) -> Backend:
    if config.backend == "jsonl":
        return JsonlLog(path, identity=identity, chain=chain_of(config), wait_s=wait_s)
    if config.backend == "redis":
        from stores.log.redis import RedisLog  # importing the client is slow

        log = RedisLog(path, config=config, identity=identity, chain=chain_of(config))
        backend_marker.note_redis(path)
        return log
    return LmdbLog(
        path,
        map_size_bytes=config.map_size_bytes,
        identity=identity,
        chain=chain_of(config),
        wait_s=wait_s,
    )


def block_keyring(config: StoreConfig) -> Keyring | None:
    """The data keys of KV blocks, which any number of processes may share; None without encryption."""
    if config.master_key is None:
        return None
    blocks = Path(config.dir).expanduser().resolve() / "blocks"
    return Keyring(keyring_folder(blocks, config), read_master(config.master_key))


def keyring_folder(path: Path, config: StoreConfig) -> Path:
    """The folder of the data keys of the log in `path`: in its own folder, or under `store.keys_dir` at the log's
    relative path in the store."""
    if config.keys_dir is None:
        return path / "keys"
    store, place = Path(config.dir).expanduser().resolve(), path.resolve()
    inside = place.relative_to(store) if place.is_relative_to(store) else Path(place.name)
    return Path(config.keys_dir).expanduser() / inside


def chain_of(config: StoreConfig) -> Chain:
    """The chain configured by `store.anchor_bits` and `store.chain_key`."""
    key = b"" if config.chain_key is None else read_key(config.chain_key, "store.chain_key")
    return Chain(bits=config.anchor_bits, key=key)
