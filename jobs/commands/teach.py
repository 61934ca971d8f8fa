"""Write the memories of files to a running instance, in batches; what is bad is reported and skipped."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from common.errors import Conflict, InvalidInput, SharpwaveError, TooLarge
from jobs.commands.client import Client
from stores.imports.chat import Skipped
from stores.imports.reader import FileReader
from stores.memory.memory import Memory, to_json

FIRST_BATCH, BATCH = 8, 64  # a small one first: what is wrong with the server shows at once
BATCH_BYTES = 4 << 20

Json = dict[str, Any]


@dataclasses.dataclass
class Summary:
    """Counts: `read` memories from the files; of those `written` were acknowledged, as `stored` (new), `existing`
    (already there) or `refused` (by the write gate). `bad` lines and memories were skipped; `left_out` is what the
    rules of a format leave out: system messages, calls of tools, images."""

    read: int = 0
    written: int = 0
    stored: int = 0
    existing: int = 0
    refused: int = 0
    bad: int = 0
    left_out: int = 0

    def count(self, results: Iterable[Json]) -> None:
        for result in results:
            self.written += 1
            if result["status"] == "existing":
                self.existing += 1
            elif result["stored"]:
                self.stored += 1
            else:
                self.refused += 1


def teach_files(
    client: Client,
    files: Iterable[Path],
    *,
    namespace: str,
    max_text_bytes: int,
    report_bad: Callable[[str], None],
    progress: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Write every memory of `files`. Idempotent.

    `report_bad` is called with `file:line: reason`. Raises `SharpwaveError` if the server fails; what was acknowledged
    before that is durable.
    """
    summary = Summary()
    for file in files:
        report = partial(_report, report_bad, file)
        for batch in _batches(file, namespace, max_text_bytes, summary, report):
            _write(client, namespace, batch, summary, report)
            progress(summary)
    return summary


def _report(report_bad: Callable[[str], None], file: Path, reason: str, line: int = 0) -> None:
    report_bad(f"{file}:{line}: {reason}" if line else f"{file}: {reason}")


def _batches(
    file: Path, namespace: str, max_text_bytes: int, summary: Summary, report: Callable[..., None]
) -> Iterator[list[Json]]:
    batch: list[Json] = []
    size = 0
    for found in FileReader(file, namespace=namespace, max_text_bytes=max_text_bytes):
        if isinstance(found, Skipped):
            summary.bad += found.fault
            summary.left_out += not found.fault
            if found.fault:
                report(found.reason, found.line)
            continue
        summary.read += 1
        batch.append(_to_item(found))
        size += len(json.dumps(batch[-1]))
        if len(batch) >= (BATCH if summary.written else FIRST_BATCH) or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _to_item(memory: Memory) -> Json:
    """A memory as the API takes it. A time that the file did not give is the server's to set: it would differ at
    the next reading, and the same memory would look like another one."""
    item = to_json(memory)
    del item["namespace"]
    if not memory.timed:
        del item["time"]
    return {name: value for name, value in item.items() if value is not None}


def _write(
    client: Client, namespace: str, batch: list[Json], summary: Summary, report: Callable[..., None]
) -> None:
    try:
        answer = client.post("/v1/memories", {"namespace": namespace, "memories": batch}, safe=True)
        summary.count(answer["memories"])
    except (Conflict, InvalidInput, TooLarge) as error:
        if len(batch) == 1:
            summary.bad += 1
            report(_reason(batch[0], error))
            return
        for item in batch:  # the call was refused whole: find the ones it was refused for
            _write(client, namespace, [item], summary, report)


def _reason(item: Json, error: SharpwaveError) -> str:
    return f"memory {item['id']!r}: {error.message.removeprefix('memories[0]: ')}"
