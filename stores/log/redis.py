"""A log in a redis-server: a shard may restart on any node that reaches it.

There is no lock: opening the log takes the next epoch, and the previous owner is refused from then on.
A batch is one Lua script, which the server runs alone and writes to its append-only file whole. The
script compares epoch and number of operations with what the owner last saw, so a batch whose answer was lost
can be sent again: if it had arrived, the script finds its own result and changes nothing.

    PREFIX:{NAME}:meta      epoch, commits; meta, one JSON object: seq, anchor, counters, ...
    PREFIX:{NAME}:log       seq -> record
    PREFIX:{NAME}:results   op_id -> answer          PREFIX:{NAME}:order   operation number -> op_id
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from redis.client import Pipeline
from redis.exceptions import RedisError

from common.config import StoreConfig
from common.errors import NotReady, StoreCorrupt
from stores.log import base
from stores.log import record as records
from stores.log.base import BaseLog, Operation
from stores.log.record import PLAIN, Chain, Record
from stores.log.redis_server import Server

_CHUNK = 128  # records read at once
_COMMIT = """
local meta, log, results, order = unpack(KEYS)
local epoch, before, after, state, kept = unpack(ARGV, 1, 5)
local owner = redis.call('HGET', meta, 'epoch')
if not owner then return 'moved' end
if owner ~= epoch then return 'fenced' end
local found = redis.call('HGET', meta, 'commits')
if found ~= before and found ~= after then return 'moved' end
redis.call('HSET', meta, 'commits', after, 'meta', state)
if found == after and before ~= after then return 'done' end
local rows, gone, drops = tonumber(ARGV[6]), ARGV[7], tonumber(ARGV[8])
local place = 9
for _ = 1, rows do
    redis.call('HSET', log, ARGV[place], ARGV[place + 1])
    place = place + 2
end
local dropped = place
place = place + drops
while place < #ARGV do
    local number, op_id, answer = unpack(ARGV, place, place + 2)
    redis.call('HSET', results, op_id, answer)
    redis.call('HSET', order, number, op_id)
    local old = string.format('%.0f', number - kept)
    local oldest = redis.call('HGET', order, old)
    if oldest then
        redis.call('HDEL', results, oldest)
        redis.call('HDEL', order, old)
    end
    place = place + 3
end
for at = dropped, dropped + drops - 1 do
    if redis.call('HEXISTS', results, ARGV[at]) == 1 then
        redis.call('HSET', results, ARGV[at], gone)
    end
end
return 'done'
"""


class RedisLog(BaseLog):
    """The Redis backend; see `Log` for the methods."""

    def __init__(
        self, path: Path, *, config: StoreConfig, identity: Mapping[str, Any], chain: Chain = PLAIN
    ) -> None:
        """Take the log over from its former owner; see `open_log` for the arguments and errors.

        `path` only names the log: nothing is stored there.
        """
        super().__init__(path, identity=identity, chain=chain)
        tag = f"{config.redis_prefix}:{{{_name(path, config)}}}"
        self._keys = [f"{tag}:{part}" for part in ("meta", "log", "results", "order")]
        self._meta_key, self._log_key, self._results_key, self._order_key = self._keys
        self._kept: OrderedDict[str, None] = OrderedDict()  # op_ids with a result; others need no lookup
        self._closed = False
        self._server = Server(config)
        try:
            self._meta = self._server.call(
                lambda client: client.transaction(self._take_over, self._meta_key, value_from_callable=True)
            )
            self._write(self._meta)  # so that the replicas have the epoch
            order = self._ask(lambda client: client.hgetall(self._order_key))
            self._kept = OrderedDict.fromkeys(order[number].decode() for number in sorted(order, key=int))
            if self.scrub_due:
                self.scrub()
        except BaseException:
            self.close()
            raise

    def seen(self, op_id: str, request: str | None) -> Any:
        base.op_key(op_id)
        self._check_open()
        if op_id not in self._kept:
            return None
        raw = self._ask(lambda client: client.hget(self._results_key, op_id))
        kept = records.check_crc(raw or b"", f"the result of operation {op_id!r}")
        return base.unpack_result(kept, op_id, request)

    def results(self) -> Iterator[tuple[str, Any]]:
        for op_id, raw in self._ask(lambda client: client.hgetall(self._results_key)).items():
            name = op_id.decode()
            yield name, base.result_of(records.check_crc(raw, f"the result of operation {name!r}"))

    def commit(self, operations: Sequence[Operation]) -> None:
        self._check_writable()
        rows, dropped = self._rows(operations)
        results: list[Any] = []
        for number, operation in enumerate(operations, start=self._meta["commits"] + 1):
            results += [number, operation.op_id, records.add_crc(base.pack_result(operation))]
        self._write(self._after(operations), rows, results, [*dropped])
        self._kept.update(dict.fromkeys(operation.op_id for operation in operations))
        while len(self._kept) > base.RESULTS_KEPT:
            self._kept.popitem(last=False)

    def records(self, after: int = 0) -> Iterator[Record]:
        meta = self._meta  # read once: a writer may replace it
        last, last_anchor, anchor = meta["seq"], bytes.fromhex(meta["anchor"]), None
        if after > last:
            raise StoreCorrupt(f"log {self.path}: record {after + 1} is missing; the last is {last}")
        for start in range(after + 1, last + 1, _CHUNK):
            numbers = range(start, min(start + _CHUNK, last + 1))
            for seq, raw in zip(numbers, self._read(numbers), strict=True):
                if raw is None:
                    raise StoreCorrupt(f"log {self.path}: record {seq} is missing; the last is {last}")
                record = records.decode(raw, seq)
                yield record
                anchor = record.anchor
        if anchor not in (None, last_anchor):
            raise StoreCorrupt(f"log {self.path}: record {last} is not the one that was written last")

    def scrub(self) -> bool:
        """Have the server and its replicas rewrite their files. False if one could not: the scrub stays due, and the
        next erasure or open tries again."""
        self._check_writable()
        changed: dict[int, bytes] = {}
        for record in self.records() if self.rewrite else ():
            if (alive := self._rewritten(record)) is not record:
                changed[record.seq] = records.encode(alive)
            if len(changed) == _CHUNK:
                self._write(self._meta, changed)
                changed = {}
        if changed:
            self._write(self._meta, changed)
        if not self._server.rewrite_files():
            return False
        self._write({**self._meta, "scrub_due": False})
        return True

    def close(self) -> None:
        self._closed = True
        if hasattr(self, "_server"):
            self._server.close()

    def _take_over(self, pipe: Pipeline) -> dict[str, Any]:
        """The `meta` of our epoch. The transaction fails and is repeated if another owner is faster."""
        raw = pipe.hget(self._meta_key, "meta")
        found = None if raw is None else json.loads(records.check_crc(raw, f"the meta of log {self.path}"))
        meta = self._begin_epoch(found)
        pipe.multi()
        values = {"epoch": meta["epoch"], "commits": meta["commits"], "meta": _pack(meta)}
        pipe.hset(self._meta_key, mapping=values)
        return meta

    def _write(
        self,
        meta: dict[str, Any],
        rows: Mapping[int, bytes] = {},
        results: Sequence[Any] = (),
        dropped: Sequence[str] = (),
    ) -> None:
        """Write one batch, after which the log has `meta`. Confirmed on return; applied once however often sent."""
        pairs = [part for row in rows.items() for part in row]
        before, after = self._meta["commits"], meta["commits"]
        command = ("EVAL", _COMMIT, len(self._keys), *self._keys, self.epoch, before, after, _pack(meta))
        gone = records.add_crc(base.pack_result(None))
        command += (base.RESULTS_KEPT, len(rows), gone, len(dropped), *pairs, *dropped, *results)
        try:
            answer = self._ask(lambda client: self._server.confirmed(client, *command))
        except (RedisError, NotReady) as error:
            if "not allowed when used memory" not in str(error):  # the same text in all versions
                raise self._stopped(error) from error
            raise NotReady(  # raised before anything is written: the log stays usable
                f"log {self.path}: {self._server.name} is full; raise its maxmemory", code="store_full"
            ) from error
        if answer == b"fenced":
            raise self._fenced()
        if answer == b"moved":
            raise self._stopped(RuntimeError("the server holds another state than the one this owner left"))
        self._meta = meta

    def _rows(self, operations: Sequence[Operation]) -> tuple[dict[int, bytes], set[str]]:
        """The log's content at each number that these operations change, and the operations whose results to drop."""
        dropped = {op_id for operation in operations for op_id in operation.drop}
        rows = {
            record.seq: records.encode(record) for operation in operations for record in operation.records
        }
        erase = [seq for operation in operations for seq in operation.erase]
        stored = [seq for seq in erase if seq not in rows]
        found = dict(zip(stored, self._read(stored), strict=True)) if stored else {}
        for seq in erase:
            raw = rows.get(seq) or found.get(seq) or b""
            record = records.decode(raw, seq)
            rows[seq] = records.encode(records.erase(record))
            dropped |= {record.op_id} if base.reveals_content(record) else set()
        return rows, dropped

    def _read(self, numbers: Sequence[int]) -> list[bytes | None]:
        return self._ask(lambda client: client.hmget(self._log_key, [*numbers]))

    def _ask(self, ask: Callable[[Any], Any]) -> Any:
        self._check_open()
        return self._server.call(ask)

    def _check_open(self) -> None:
        if self._closed:
            raise NotReady(f"log {self.path} is closed", code="log_closed")


def _name(path: Path, config: StoreConfig) -> str:
    """The log's name on every node: its place in the store's folder."""
    folder, place = Path(config.dir).expanduser().resolve(), path.resolve()
    return str(place.relative_to(folder)) if place.is_relative_to(folder) else place.name


def _pack(meta: Mapping[str, Any]) -> bytes:
    return records.add_crc(json.dumps(meta).encode())
