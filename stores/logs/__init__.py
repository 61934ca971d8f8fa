"""The append-only log of a shard behind one protocol. When `commit` returns, the operations are on disk.

- `base.py`: the `Log` protocol, `Operation`, and what every backend does alike. Open it first
- `lmdb.py`: the default, one LMDB file in a folder that one process owns
- `jsonl.py`: lines of text that a person can read; `text.py` says what a line looks like
- `redis.py`: in a redis-server, for clusters; `server.py` sees to what that server keeps

A caller goes through three steps, one thread at a time: `seen` (has this `op_id` been done?), `stage`
(the records, chained and numbered, nothing written), `commit` (a batch of operations, one fsync).
Opening a log begins a new epoch; whoever still holds an older one is refused from then on.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.config import StoreConfig
from common.keys import read_key
from stores.logs.base import Log, Operation
from stores.logs.jsonl import JsonlLog
from stores.logs.lmdb import LmdbLog
from stores.record import Chain

__all__ = ["Log", "Operation", "open_log"]


def open_log(path: Path, *, config: StoreConfig, identity: Mapping[str, Any], wait_s: float = 0.0) -> Log:
    """The log in `path`, made where there is none, in the backend that `config` names.

    `identity` (say shard number and dimension) is written at the first open and must match later, and so
    must the chain's options. `wait_s` is how long to wait for a former owner to end; in Redis the newer
    owner goes first. Raises `NotReady` where another process owns it, `Conflict` where it is another's,
    `StoreCorrupt` where it is no log of ours, `InvalidInput` where the chain's key is missing.
    """
    if config.backend == "jsonl":
        return JsonlLog(path, identity=identity, chain=chain_of(config), wait_s=wait_s)
    if config.backend == "redis":
        from stores.logs.redis import RedisLog  # importing the client takes a while

        return RedisLog(path, config=config, identity=identity, chain=chain_of(config))
    return LmdbLog(
        path,
        map_size_bytes=config.map_size_bytes,
        identity=identity,
        chain=chain_of(config),
        wait_s=wait_s,
    )


def chain_of(config: StoreConfig) -> Chain:
    """The chain that `store.anchor_bits` and `store.chain_key` ask for."""
    key = b"" if config.chain_key is None else read_key(config.chain_key, "store.chain_key")
    return Chain(bits=config.anchor_bits, key=key)
