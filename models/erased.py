"""Which memories were erased lately, for every process that encodes into the same folder of KV blocks.

A memory erased in one replica may still be queued in another, or in a request on its way there: before a block is
queued, and after it is written, the marks are asked. A mark is an empty file named by digests.
"""

import contextlib
import time
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

KEPT_S = 3600.0  # no request and no queue carries a text for so long


class ErasedMarks:
    """Thread-safe, and safe among processes. Marks older than `KEPT_S` go when it is made."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for mark in folder.glob("*"):
            with contextlib.suppress(FileNotFoundError):  # another process was first
                if mark.stat().st_mtime < time.time() - KEPT_S:
                    mark.unlink()

    def add(self, namespace: str, memory_ids: Iterable[str]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for memory_id in memory_ids:
            self._mark(namespace, memory_id).touch()

    def discard(self, namespace: str, memory_ids: Iterable[str]) -> None:
        """These ids hold content again."""
        for memory_id in memory_ids:
            self._mark(namespace, memory_id).unlink(missing_ok=True)

    def has(self, namespace: str, memory_id: str) -> bool:
        return self._mark(namespace, memory_id).exists()

    def _mark(self, namespace: str, memory_id: str) -> Path:
        return self._folder / blake2b(f"{namespace}\0{memory_id}".encode(), digest_size=16).hexdigest()
