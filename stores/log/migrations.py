"""Migration of logs of the previous format when they are opened.

Format 2 gave records anchors of any length and logs the options of their chain. Contents, digests and
anchors stay as they are, so earlier seals and receipts stay valid.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from common.errors import StoreCorrupt
from common.types import Json
from stores.log import record as records
from stores.log.record import PLAIN, Op, Record

_HEADER_1 = struct.Struct(">IBQQd32s16s8sHII")


@dataclass(frozen=True)
class Migration:
    """One migration: functions that convert a log's meta and the bytes of each record."""

    meta: Callable[[Json], Json]
    record: Callable[[bytes, int], bytes]


def migration(meta: Json | None) -> Migration | None:
    """The migration that a log with this `meta` needs to have the current format; None if it needs none, or none
    exists."""
    return MIGRATIONS.get(meta["format"]) if meta else None


def _meta_2(meta: Json) -> Json:
    return {**meta, "format": 2, "identity": {**meta["identity"], **PLAIN.identity}}


def _record_2(raw: bytes, seq: int) -> bytes:
    return records.encode(decode_1(raw, seq))


def decode_1(raw: bytes, seq: int) -> Record:
    """A record of format 1. Raises `StoreCorrupt` naming `seq` if the bytes are damaged."""
    records.check_crc(raw, f"record {seq}")
    _, op, number, epoch, time, digest, salt, anchor, *lengths = _HEADER_1.unpack_from(raw)
    if number != seq:
        raise StoreCorrupt(f"record {seq} holds record {number}: the log was changed from outside")
    ends = [_HEADER_1.size]
    for length in lengths:
        ends.append(ends[-1] + length)
    op_id, body, vector = (raw[start:end] for start, end in pairwise(ends))
    return Record(
        op=Op(op),
        seq=seq,
        epoch=epoch,
        time=time,
        op_id=op_id.decode(),
        digest=digest,
        salt=salt,
        anchor=anchor,
        body=body,
        vector=vector,
    )


MIGRATIONS = {1: Migration(meta=_meta_2, record=_record_2)}
