"""One redis-server that stores logs: connections, checks of its durability settings, and its files.

A server may persist less than its clients expect. So every new connection first checks its settings, before
anything is written: after a lost connection another server may answer.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, ReadOnlyError, RedisError, ResponseError
from redis.retry import Retry

from common.config import StoreConfig
from common.errors import NotReady
from common.keys import read_key

REWRITE_DEADLINE_S = 600.0
_PAUSE_S = 0.05
_KEEP_ALL = ("noeviction", "volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl")
_FILES = (  # command, status field while it runs, outcome field
    ("bgrewriteaof", "aof_rewrite_in_progress", "aof_last_bgrewrite_status"),
    ("bgsave", "rdb_bgsave_in_progress", "rdb_last_bgsave_status"),
)
T = TypeVar("T")


class TooFewReplicas(RedisError):
    """The write is on the server, but on fewer replicas than required."""


class Server:
    """A client of one redis-server. Safe for many threads."""

    def __init__(self, config: StoreConfig) -> None:
        """Raises `NotReady` if the server does not answer in time, refuses the connection, or persists less than
        configured."""
        self._durability = config.redis_durability
        self._replicas = config.redis_replicas
        self._deadline_s = config.redis_deadline_s
        where = urlsplit(config.redis_url)
        self.name = f"redis-server {where.hostname}:{where.port or 6379}"
        secret = config.redis_password
        password = secret and read_key(secret, "store.redis_password", at_least=1, at_most=512).decode()
        self._client = redis.Redis.from_url(
            config.redis_url,
            password=password,
            socket_timeout=self._deadline_s / 4,  # leaves time to check whether the write arrived
            socket_connect_timeout=self._deadline_s / 4,
            retry=Retry(NoBackoff(), 0),  # `call` retries, since it knows what may be sent twice
            redis_connect_func=self._connected,
        )
        self._has_waitaof = False
        self.call(lambda client: client.ping())

    def call(self, ask: Callable[[redis.Redis], T]) -> T:
        """The answer of `ask`, which is repeated until the deadline while the server cannot be reached, so it must be
        idempotent. Raises `NotReady` after the deadline: then it is unknown whether it was done. Other errors of
        the server pass through."""
        deadline = time.monotonic() + self._deadline_s
        while True:
            try:
                return ask(self._client)
            except AuthenticationError:
                raise NotReady(
                    f"{self.name} refuses us; set store.redis_password, and the user in store.redis_url",
                    code="log_forbidden",
                ) from None
            except (redis.ConnectionError, redis.TimeoutError, ReadOnlyError, TooFewReplicas) as error:
                if time.monotonic() > deadline:
                    reason = f"{self.name} did not answer within {self._deadline_s:g} s ({error})"
                    raise NotReady(reason, code="log_unreachable") from None
            time.sleep(_PAUSE_S)

    def confirmed(self, client: redis.Redis, *command: Any) -> Any:
        """The answer to a write command once the configured number of replicas has it."""
        if not self._replicas:
            return client.execute_command(*command)
        patience_ms = max(1, int(self._deadline_s / 10 * 1000))  # less than the socket's
        with client.pipeline(transaction=False) as pipe:  # the counts are those of one connection's writes
            pipe.execute_command(*command)
            if self._has_waitaof:
                pipe.waitaof(1, self._replicas, patience_ms)
            else:
                pipe.wait(self._replicas, patience_ms)
            answer, counts = pipe.execute(raise_on_error=False)  # its own error would quote the command
        for failed in (answer, counts):
            if isinstance(failed, RedisError):
                raise failed
        local, replicas = counts if self._has_waitaof else (1, counts)
        if not local or replicas < self._replicas:
            raise TooFewReplicas(f"{replicas} of {self._replicas} replicas confirmed the write")
        return answer

    def rewrite_files(self) -> bool:
        """Have the server and its replicas rewrite their files from live data, so that they hold nothing erased.
        Costs each a copy of all its data. False if one could not."""
        deadline = time.monotonic() + REWRITE_DEADLINE_S
        try:
            for client in (self._client, *self._replica_clients()):
                if not _rewrite(client, deadline):
                    return False
        except RedisError:
            return False
        return True

    def close(self) -> None:
        self._client.close()

    def _replica_clients(self) -> Iterator[redis.Redis]:
        """Clients of the replicas, with the server's user and password."""
        for key, found in self._client.info("replication").items():
            if key.startswith("slave") and isinstance(found, dict):
                pool = self._client.connection_pool
                options = {**pool.connection_kwargs, "host": found["ip"], "port": found["port"]}
                del options["redis_connect_func"]  # it requires a primary
                with redis.ConnectionPool(pool.connection_class, **options) as replica:
                    yield redis.Redis(connection_pool=replica)

    def _connected(self, connection: Any) -> None:
        try:
            connection.on_connect()
            self._check(connection)
        except BaseException:
            connection.disconnect()  # else the pool would hand it out as good
            raise

    def _check(self, connection: Any) -> None:
        """Raises `NotReady` naming the first setting that is weaker than configured."""
        info = dict(line.partition(":")[::2] for line in _asked(connection, "INFO").split("\r\n"))
        if info["cluster_enabled"] == "1":
            self._refuse("cluster-enabled", "yes", "no", "a log needs one server, which may have replicas")
        if info["role"] != "master":
            raise redis.ConnectionError("it is a replica")  # a failover may be under way: try again
        self._has_waitaof = tuple(map(int, info["redis_version"].split(".")[:2])) >= (7, 2)
        syncs = ("always",) if self._durability == "always" else ("everysec", "always")
        for name, allowed, why in (
            ("appendonly", ("yes",), "without it a restart loses everything"),
            ("appendfsync", syncs, f"store.redis_durability is {self._durability}"),
            ("no-appendfsync-on-rewrite", ("no",), "else it stops syncing while it rewrites its file"),
            ("maxmemory-policy", _KEEP_ALL, "else it drops records when memory is short"),
        ):
            value = self._setting(connection, name)
            if value not in allowed:
                self._refuse(name, value, allowed[0], why)

    def _setting(self, connection: Any, name: str) -> str:
        try:
            return _asked(connection, "CONFIG", "GET", name)
        except ResponseError as error:
            raise NotReady(
                f"{self.name} forbids CONFIG GET ({error}), so what it keeps cannot be checked; "
                "allow it to our user (ACL SETUSER ... +config|get)",
                code="log_forbidden",
            ) from None

    def _refuse(self, name: str, value: str, wanted: str, why: str) -> NoReturn:
        raise NotReady(
            f"{self.name} has {name} {value}; {why}: set {name} {wanted} in its redis.conf, or by "
            f"CONFIG SET {name} {wanted} and CONFIG REWRITE",
            code="log_weak",
        )


def _asked(connection: Any, *command: str) -> str:
    """A connection's answer to INFO or CONFIG GET, as text; the value alone of a setting."""
    connection.send_command(*command, check_health=False)
    answer = connection.read_response()
    if isinstance(answer, dict | list):  # depends on the protocol version; empty if a host hides it
        values = [*answer.values()] if isinstance(answer, dict) else answer[1:]
        answer = values[0] if values else b"(hidden)"
    return str(answer, "utf-8")


def _rewrite(client: redis.Redis, deadline: float) -> bool:
    """Rewrite one server's append-only file and its snapshot: there may be an old one."""
    for command, running, outcome in _FILES:
        if command == "bgrewriteaof" and not client.info("persistence")["aof_enabled"]:
            continue
        begun = False
        while True:
            info = client.info("persistence")
            if begun and not info[running] and not info["aof_rewrite_scheduled"]:
                break
            if time.monotonic() > deadline:
                return False
            begun = begun or _begin(client, command, info)
            time.sleep(_PAUSE_S)
        if info[outcome] != "ok":
            return False
    return True


def _begin(client: redis.Redis, command: str, info: Mapping[str, Any]) -> bool:
    """Start, unless a rewrite is running: that one may have begun before the erasure."""
    if info["aof_rewrite_in_progress"] or info["rdb_bgsave_in_progress"] or info["aof_rewrite_scheduled"]:
        return False
    try:
        client.execute_command(command)
    except ResponseError as error:
        if "in progress" in str(error):
            return False
        raise
    return True
