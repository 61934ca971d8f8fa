"""The three keepers of logs, for tests that must hold for each."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lmdb

from common.config import StoreConfig
from stores.log import jsonl_lines
from stores.log import record as records
from stores.log.base import Log, Operation
from stores.log.open import open_log
from stores.log.record import Op, Record
from tests.support.redis_server import RedisServer

ROOT = Path(__file__).resolve().parents[2]
BACKENDS = ("lmdb", "jsonl", "redis")
IDENTITY = {"shard": 0}


class Backend:
    """Where one test keeps its logs. `server` is None but for redis."""

    def __init__(self, name: str, folder: Path, server: RedisServer | None = None) -> None:
        self.name, self.folder, self.server = name, folder, server

    def config(self, **settings: Any) -> StoreConfig:
        if self.server:
            prefix = self.folder.name  # a server is shared by tests
            settings = {
                "redis_url": self.server.url,
                "redis_prefix": prefix,
                "redis_deadline_s": 2.0,
                **settings,
            }
        return StoreConfig.model_validate({"backend": self.name, "dir": str(self.folder), **settings})

    def open(self, name: str = "log", *, identity: Any = None, wait_s: float = 0.0, **settings: Any) -> Log:
        config = self.config(**settings)
        return open_log(self.folder / name, config=config, identity=identity or IDENTITY, wait_s=wait_s)

    def disk(self) -> bytes:
        """Every byte of the logs' files."""
        if self.server:
            return self.server.disk()
        return b"".join(file.read_bytes() for file in self.folder.rglob("*") if file.is_file())

    # Behind the log's back; the log is closed

    def flip(self, log: Log, record: Record, needle: bytes) -> None:
        """Flip a bit of the first byte of `needle`, which the record holds."""
        log.close()
        change = bytes([needle[0] ^ 1]) + needle[1:]
        if self.server:
            with self.server.client() as client:
                key = self._redis_key(log)
                client.hset(key, record.seq, client.hget(key, record.seq).replace(needle, change))
            return
        file = log.path / {"lmdb": "data.mdb", "jsonl": "log.jsonl"}[self.name]
        data = file.read_bytes()
        assert needle in data
        with file.open("r+b") as handle:
            handle.write(data.replace(needle, change))

    def drop(self, log: Log, record: Record) -> None:
        """Take one record out."""
        log.close()
        if self.server:
            with self.server.client() as client:
                client.hdel(self._redis_key(log), record.seq)
        elif self.name == "jsonl":
            file = log.path / "log.jsonl"
            lines = file.read_bytes().splitlines(keepends=True)
            _overwrite(file, b"".join(line for line in lines if b'{"record":%d,' % record.seq not in line))
        else:
            self._in_lmdb(log, lambda txn, db: txn.delete(record.seq.to_bytes(8, "big"), db=db))

    def replace(self, log: Log, record: Record) -> None:
        """Put a record, whose checksum is right, in the place of another."""
        log.close()
        raw = records.encode(record)
        if self.server:
            with self.server.client() as client:
                client.hset(self._redis_key(log), record.seq, raw)
        elif self.name == "jsonl":
            file = log.path / "log.jsonl"
            lines = file.read_bytes().splitlines(keepends=True)
            start = b'{"record":%d,' % record.seq
            _overwrite(
                file, b"".join(jsonl_lines.encode(record) if start in line else line for line in lines)
            )
        else:
            self._in_lmdb(log, lambda txn, db: txn.put(record.seq.to_bytes(8, "big"), raw, db=db))

    def _in_lmdb(self, log: Log, change: Any) -> None:
        with lmdb.open(str(log.path), max_dbs=4, map_size=64 << 20, lib_version=0) as env:
            database = env.open_db(b"log")
            with env.begin(write=True) as txn:
                change(txn, database)

    def _redis_key(self, log: Log) -> str:
        return f"{self.folder.name}:{{{log.path.name}}}:log"


def _overwrite(file: Path, data: bytes) -> None:
    """In place, so that it stays the file whose length is known; without that note where it is shorter."""
    if len(data) < file.stat().st_size:
        (file.parent / "synced").unlink()
    with file.open("r+b") as handle:
        handle.write(data)
        handle.truncate()


def draft(number: int, *, body: str = "x", vector: bytes = b"", op: Op = Op.PUT) -> tuple[Op, Any, bytes]:
    return op, {"number": number, "body": body}, vector


def operation(number: int, staged: Sequence[Record], **fields: Any) -> Operation:
    """An operation whose result is its number."""
    return Operation(op_id=f"op-{number}", request="r", records=staged, result=number, **fields)


def append(log: Log, number: int, *, erase: Sequence[int] = (), **content: Any) -> Record:
    """One operation of one record."""
    staged = log.stage(f"op-{number}", [draft(number, **content)], now=float(number))
    log.commit([operation(number, staged, erase=erase)])
    return staged[0]


def numbers(log: Log) -> list[int]:
    return [record.content()["number"] for record in log.records() if not record.erased]


def run(code: str, *args: Any, **env: str) -> subprocess.CompletedProcess[str]:
    """Run Python code against a log in its own process."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
