"""Processes that write to a shard until they are killed.

Run as a program it imports everything once and forks a writer for each job, a JSON line on its standard
input; it answers with the writer's process id. A writer keeps a ledger outside the store, one line
appended at a time: `try` before each operation, `ack` after the shard acknowledged it.
"""

import json
import os
import random
import signal
import sys
import threading
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from common.config import StoreConfig
from common.errors import NotReady
from stores.index.vectors import Vectors
from stores.memory.memory import Memory, parse_memory
from stores.shard.shard import Shard
from stores.writes.batch import MemoryBatch

DIM = 8
NOW = 1_700_000_000.0
SPACES = ("north", "south")


def secret_of(id: str) -> str:
    """What stands in a memory's text and nowhere else."""
    return blake2b(id.encode(), digest_size=12).hexdigest()


def text_of(id: str) -> str:
    """Short or long, by the id."""
    return secret_of(id) + " word" * (int(secret_of(id)[:4], 16) % 700)


def memory_of(id: str, namespace: str) -> tuple[Memory, Vectors]:
    vector = np.frombuffer(blake2b(id.encode(), digest_size=DIM).digest(), np.uint8) - 127.5
    given = {"id": id, "text": text_of(id)}
    unit = (vector / np.linalg.norm(vector)).astype(np.float32)
    return parse_memory(given, namespace=namespace, now=NOW, max_text_bytes=10_000), unit


class Writer:
    """One life: several threads on one shard, each in one namespace."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._life, self._threads = job["life"], job["threads"]
        self._ledger = os.open(job["ledger"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        config = StoreConfig.model_validate_json(job["config"])
        self._shard = Shard(Path(job["path"]), number=0, dim=DIM, config=config, wait_s=10)

    def run(self) -> None:
        self._note({"life": self._life, "epoch": self._shard.counts()["epoch"]})
        threads = [threading.Thread(target=self._write, args=(number,)) for number in range(self._threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _write(self, thread: int) -> None:
        rng = random.Random(f"{self._life} {thread}")
        space, written, number = SPACES[thread % len(SPACES)], [], 0
        try:
            while True:
                number += 1
                op_id, what = f"{self._life}-{thread}-{number}", rng.random()
                if what < 0.08 and written:
                    self._forget(op_id, space, written.pop(rng.randrange(len(written))))
                elif what < 0.2 and written:
                    self._touch(op_id, space, rng.choice(written))
                else:
                    ids = [f"{op_id}-{i}" for i in range(rng.randint(1, 4))]
                    self._put(op_id, space, ids)
                    written.append(ids)
        except NotReady as error:  # a server that did not come back in time
            self._note({"stopped": error.code})
        except Exception as error:
            self._note({"broken": repr(error)})

    def _put(self, op_id: str, space: str, ids: list[str]) -> None:
        self._note({"try": op_id, "op": "put", "space": space, "ids": ids})
        answers = self._shard.memories.put(
            MemoryBatch.of([memory_of(id, space) for id in ids]), op_id=op_id, now=NOW
        )
        self._note({"ack": op_id, "seqs": [answer["seq"] for answer in answers]})

    def _touch(self, op_id: str, space: str, ids: list[str]) -> None:
        self._note({"try": op_id, "op": "touch", "space": space, "ids": ids})
        self._shard.memories.touch(space, ids, op_id=op_id, now=NOW)
        self._note({"ack": op_id, "seqs": []})

    def _forget(self, op_id: str, space: str, ids: list[str]) -> None:
        self._note({"try": op_id, "op": "forget", "space": space, "ids": ids})
        receipt = self._shard.erasure.forget(space, ids=ids, op_id=op_id, now=NOW)
        self._note({"ack": op_id, "seqs": [], "scrubbed": receipt["scrubbed"]})

    def _note(self, line: dict[str, Any]) -> None:
        os.write(self._ledger, json.dumps(line).encode() + b"\n")


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the writers
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                Writer(json.loads(line)).run()
            finally:
                os._exit(0)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
