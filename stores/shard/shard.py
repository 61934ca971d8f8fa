"""One shard: a durable log with its view, and its calls, part by part. Open this file first."""

from pathlib import Path

from common.config import StoreConfig
from common.types import Json
from stores.shard.chain import Chain
from stores.shard.conversations import ShardConversations
from stores.shard.core import ShardCore
from stores.shard.erasure import Erasure
from stores.shard.graph import Graph
from stores.shard.keyed import Keyed
from stores.shard.memories import Memories
from stores.shard.reshard import Reshard
from stores.shard.search import Search


class Shard:
    """A shard. Safe for many threads of one process; a second process is kept out.

    Every call belongs to one part, and `actors.store.ShardedStore` has the same parts with the same calls:

        memories        write, read, list, export          search   by meaning and words, from a partial cue
        keyed           the newest value of a key          graph    facts and places
        conversations   short-term memory of turns         erasure  forget, rotate keys, probe
        chain           head and verification of the log   reshard  hand over to the shards of another layout
    """

    def __init__(
        self, path: Path, *, number: int, dim: int, config: StoreConfig, wait_s: float = 0.0
    ) -> None:
        """Open or create the shard in `path`. `dim` is the embedder's dimension, `wait_s` how long (seconds) to
        wait for a former owner to end. Raises `NotReady` if another process owns the log, `Conflict` if it was
        created with other settings, `StoreCorrupt` if a record is damaged."""
        self.number, self.dim, self.config = number, dim, config
        self.core = core = ShardCore(path, number=number, dim=dim, config=config, wait_s=wait_s)
        self.memories = Memories(core)
        self.search = Search(core)
        self.keyed = Keyed(core, self.memories)
        self.conversations = ShardConversations(core)
        self.graph = Graph(core)
        self.erasure = Erasure(core)
        self.chain = Chain(core)
        self.reshard = Reshard(core)

    def counts(self) -> Json:
        """`{memories, namespaces: {name: memories}, gate_attempts, gate_accepts, seq, epoch, anchor, failure,
        snapshot}`; `failure` is why writes are refused, or None; for `snapshot` see `Snapshots.status`."""
        core = self.core
        with core.view_lock.read():
            namespaces = {name: len(space.entries) for name, space in core.view.spaces.items()}
            return {
                "memories": sum(namespaces.values()),
                "namespaces": namespaces,
                **core.state,
                "failure": core.failure,
                "snapshot": core.snapshots.status(),
            }

    def snapshot(self) -> Path | None:
        """Write a snapshot now. Returns its folder, or None if the newest one covers everything. Writers wait only
        while references and vectors are copied."""
        return self.core.snapshots.make(self.core.capture)

    def close(self) -> None:
        self.core.close()
