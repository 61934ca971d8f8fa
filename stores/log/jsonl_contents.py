"""The contents of a JSON lines log, collected by reading it once; see `jsonl.py`."""

import json
from array import array
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from common.errors import StoreCorrupt
from stores.log import base, jsonl_lines


@dataclass(slots=True)
class Contents:
    """Contents of a log file: its last `meta`, offsets of results and records, what is erased, and where its batches
    end."""

    meta: dict[str, Any] | None = None
    results: OrderedDict[str, tuple[int, int]] = field(default_factory=OrderedDict)  # op_id -> offset, bytes
    dropped: set[str] = field(default_factory=set)  # those whose lines still hold the result
    erased: set[int] = field(default_factory=set)  # records whose lines still hold content
    offsets: "array[int]" = field(default_factory=lambda: array("Q"))  # offsets of the records' lines
    damaged: bool = False  # then `offsets` may be wrong
    end: int = 0

    def take_all(self, lines: Iterable[tuple[str | None, bytes, int]]) -> None:
        """Add lines, each as kind, text and offset."""
        for kind, line, offset in lines:
            self._take(kind, line, offset)

    def _take(self, kind: str | None, line: bytes, offset: int) -> None:
        if kind == "record":
            self.offsets.append(offset)
            self.damaged |= jsonl_lines.number(line) != len(self.offsets)
        elif kind == "commit":
            commit = json.loads(line)
            self.dropped.discard(commit["op_id"])
            self.dropped.update(commit.get("drop", ()))
            self.results[commit["op_id"]] = offset, len(line)
            if len(self.results) > base.RESULTS_KEPT:
                self.results.popitem(last=False)
            self.erased.update(commit["erase"])
        elif kind == "state":
            self.meta = json.loads(line)["state"]
            self.end = offset + len(line)
            if not self.scrub_due:
                self.erased.clear()
                self.dropped.clear()
        else:
            self.damaged = True

    @property
    def scrub_due(self) -> bool:
        return bool(self.meta and self.meta["scrub_due"])


def scan(file: BinaryIO, synced: int, path: Path) -> Contents:
    """The contents of the file up to its last whole batch.

    A batch with a broken line is damaged if it lies within the `synced` bytes or is followed by anything, since a
    batch begins only when the previous one is on disk; `records` will name it. Otherwise it was never whole.
    Raises `StoreCorrupt` if the file ends too early or is not a log.
    """
    contents = Contents()
    batch: list[tuple[str | None, bytes, int]] = []
    doubtful: list[tuple[str | None, bytes, int]] = []
    offset = 0
    for line in file:
        if not offset and not jsonl_lines.START.startswith(line[: len(jsonl_lines.START)].rstrip(b"\0")):
            raise StoreCorrupt(f"log {path}: log.jsonl is no log of ours")
        batch.append((jsonl_lines.kind(line), line, offset))
        offset += len(line)
        if batch[-1][0] == "state":
            contents.take_all(doubtful)
            whole = offset <= synced or all(kind for kind, _, _ in batch)
            doubtful = [] if whole else batch
            contents.take_all(batch if whole else [])
            batch = []
    if batch:
        contents.take_all(doubtful)
    if contents.end < synced:
        seq = contents.meta["seq"] + 1 if contents.meta else 1
        reason = f"{synced - contents.end} bytes behind byte {contents.end} are damaged or missing"
        raise StoreCorrupt(
            f"log {path}: record {seq} is missing: {reason}; restore this shard from a copy",
            fault={"seq": seq, "op": None, "op_id": None, "reason": reason},
        )
    return contents
