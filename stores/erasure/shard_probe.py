"""After an erasure: does a running shard still hold the content, in its log, its memories or its indexes?"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from common.errors import SharpwaveError
from common.types import Json
from stores.erasure.disk_probe import Canaries, ReportRow
from stores.locks import ReadWriteLock
from stores.log.base import Log
from stores.memory.memory import canonical
from stores.view.view import Space, View

SAME = 0.9999  # cosine from which a row of an index counts as the canary's vector


def probe_shard(
    log: Log,
    view: View,
    view_lock: ReadWriteLock,
    canaries: Canaries,
    *,
    others: Mapping[str, Callable[[Canaries], Iterable[str]]] | None = None,
) -> list[Json]:
    """Search what a running shard holds, decrypted: log, memories with their versions, turns, keyed memories, and
    vector indexes. `others` are further searches by name, of data that only its owner can read: each returns where it
    found something."""
    needles = canaries.needles()
    rows = {name: ReportRow(name, needles) for name in ("log", "memories", "turns", "lines", "index")}
    try:
        for record in log.records():
            rows["log"].look(record.body + b"\0" + record.vector, f"record {record.seq}")
    except SharpwaveError as error:
        rows["log"].cannot("the log", error.message)
    with view_lock.read_in_parts() as took:
        for number, space in enumerate([*view.spaces.values()]):
            for entry in [*space.entries.values()]:
                took(1)
                for version in entry.versions:
                    content = canonical([version.memory, entry.rivals, entry.assertions])
                    rows["memories"].look(content, f"memory of record {version.seq}")
            for conversation, turns in [*space.conversations.everything()]:
                took(len(turns))
                rows["turns"].look(canonical([conversation, turns]), f"conversation of space {number}")
            rows["lines"].look(space.keyed.raw(), f"lines of space {number}")
            _look_in_index(rows["index"], space, canaries, number)
    for name, look in (others or {}).items():
        row = rows[name] = ReportRow(name, needles)
        row.checked += 1
        for where in look(canaries):
            row.note("any", "as its owner searches", where)
    return [row.report() for row in rows.values()]


def _look_in_index(row: ReportRow, space: Space, canaries: Canaries, number: int) -> None:
    row.checked += len(space.index)
    if not canaries.vectors or not len(space.index):
        return
    row.checked += len(space.passages)
    for canary, vector in enumerate(np.stack(canaries.vectors).astype(np.float32)):
        for index_row, cosine in space.passages.search(vector.reshape(1, -1), 1).items():
            if cosine >= SAME:
                row.note(f"vector {canary}", "nearest passage", f"row {index_row} of space {number}")
    cosines, found = space.index.search(np.stack(canaries.vectors).astype(np.float32), 1)
    for canary, (cosine, index_row) in enumerate(zip(cosines[:, 0], found[:, 0], strict=True)):
        if cosine >= SAME:
            row.note(f"vector {canary}", "nearest row", f"row {index_row} of space {number}")
