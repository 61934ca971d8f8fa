"""What was erased lately, told by every process that encodes into the same folder of KV blocks to all others.

All replicas that run are told of an erasure. One that ends just then, or starts, is not; and may have the text in its
queue, or in a request on its way. So each erasure leaves a file, which is asked before a block is queued and after it
is written:

    <folder>/<digest>.json      {"erasure": {...}, "keys": [digest of namespace and id, ...]}
"""

import contextlib
import json
import time
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from common.files import read_json, write_json

Json = dict[str, Any]

KEPT_S = 3600.0  # no request and no queue carries a text for so long
TICK_NS = 100_000_000  # a folder that changed within this time may change again and show the same time


class ErasedMarks:
    """Of all processes together. Not thread-safe: the encoding's lock holds it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, Json] = {}  # by file name
        self._latest: dict[str, Json] = {}
        self._changed_ns = 0

    def add(self, namespace: str, memory_ids: Iterable[str], erasure: Json) -> None:
        """`erasure`: what `get` gives for each of these memories."""
        mark = {"erasure": erasure, "keys": sorted(_key(namespace, id) for id in memory_ids)}
        if mark["keys"]:
            name = blake2b(json.dumps(mark, sort_keys=True).encode(), digest_size=16).hexdigest()
            write_json(self._folder / f"{name}.json", mark)

    def get(self, namespace: str, memory_id: str) -> Json | None:
        """The latest erasure of this memory within `KEPT_S`, or None."""
        self._look()
        return self._latest.get(_key(namespace, memory_id))

    def _look(self) -> None:
        """Read what has come, and remove what is old."""
        if not self._folder.is_dir():
            return
        changed = self._folder.stat().st_mtime_ns
        if changed == self._changed_ns:
            return
        found = {}
        for path in self._folder.glob("*.json"):
            with contextlib.suppress(FileNotFoundError):  # another process removed it
                written = path.stat().st_mtime
                if written < time.time() - KEPT_S:
                    path.unlink()
                else:
                    found[path.name] = (written, self._read.get(path.name) or read_json(path))
        self._read = {name: mark for name, (_, mark) in found.items()}
        ordered = sorted(found.values(), key=lambda pair: pair[0])
        self._latest = {key: mark["erasure"] for _, mark in ordered for key in mark["keys"]}
        self._changed_ns = changed if time.time_ns() - changed > TICK_NS else 0


def _key(namespace: str, memory_id: str) -> str:
    return blake2b(f"{namespace}\0{memory_id}".encode(), digest_size=12).hexdigest()
