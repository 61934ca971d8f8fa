"""The layout's record of shards whose logs are in a redis-server."""

import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from operator import methodcaller

from actors.layout.layout import ShardLayout, from_json
from common.config import StoreConfig
from common.errors import Conflict
from stores.log.redis_server import Server

_SWAP = """
local found = redis.call('GET', KEYS[1]) or ''
if found ~= ARGV[1] and found ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""
_RENEW = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end"
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end"
_EXCLUSIVE_MS = 30_000


class LayoutKey:
    """The layout record under the key PREFIX:layout; see `LayoutRecord`. Safe for many threads."""

    def __init__(self, config: StoreConfig) -> None:
        self._config, self._prefix = config, config.redis_prefix
        self._key, self._lock = f"{self._prefix}:layout", f"{self._prefix}:reshard"
        self._connecting = threading.Lock()
        self._connected: Server | None = None

    def read(self) -> ShardLayout | None:
        raw = self._server.call(lambda client: client.get(self._key))
        return None if raw is None else from_json(json.loads(raw))

    def swap(self, expected: ShardLayout | None, new: ShardLayout) -> bool:
        """As `LayoutRecord.swap`; idempotent, since it may be sent again."""
        texts = ["" if expected is None else _text(expected), _text(new)]
        command = ("EVAL", _SWAP, 1, self._key, *texts)
        return bool(self._server.call(lambda client: self._server.confirmed(client, *command)))

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """A lock that is renewed while the context lasts. A process that loses it nevertheless cannot switch, since the
        record will have changed."""
        token, done = uuid.uuid4().hex, threading.Event()

        def renew() -> None:
            while not done.wait(_EXCLUSIVE_MS / 3000):
                self._server.call(lambda client: client.eval(_RENEW, 1, self._lock, token, _EXCLUSIVE_MS))

        if not self._server.call(lambda client: client.set(self._lock, token, nx=True, px=_EXCLUSIVE_MS)):
            raise Conflict(f"store {self._prefix!r} is being resharded; wait for that to end")
        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self._server.call(lambda client: client.eval(_RELEASE, 1, self._lock, token))

    def drop(self, folder: str) -> None:
        self._delete(f"{self._prefix}:{{shards/{folder}}}:*")

    def drop_others(self, layout: ShardLayout) -> None:
        kept = {f"{self._prefix}:{{shards/{layout.folder(number)}}}" for number in layout.placement.numbers}
        self._delete(f"{self._prefix}:{{shards/*", *kept)

    def _delete(self, pattern: str, *kept: str) -> None:
        for key in self._server.call(lambda client: [*client.scan_iter(pattern, count=1000)]):
            if key.decode().rpartition(":")[0] not in kept:
                self._server.call(methodcaller("delete", key))

    @property
    def _server(self) -> Server:
        with self._connecting:
            if self._connected is None:
                self._connected = Server(self._config)
            return self._connected


def _text(layout: ShardLayout) -> str:
    return json.dumps(layout.to_json(), sort_keys=True)
