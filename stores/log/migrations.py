"""Stores of the previous format, made into ones of today's when they are opened.

Format 2 gave records anchors of any length and logs the options of their chain. Contents, digests and
anchors stay as they are, so seals and receipts of before still hold.
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
    """From one format to the next: what to do with a log's meta, and with the bytes of each record."""

    meta: Callable[[Json], Json]
    record: Callable[[bytes, int], bytes]


def migration(meta: Json | None) -> Migration | None:
    """What a log with this `meta` needs to be of today's format; None where nothing is to do, or nothing
    can be done."""
    return MIGRATIONS.get(meta["format"]) if meta else None


def _meta_2(meta: Json) -> Json:
    return {**meta, "format": 2, "identity": {**meta["identity"], **PLAIN.identity}}


def _record_2(raw: bytes, seq: int) -> bytes:
    return records.encode(decode_1(raw, seq))


def decode_1(raw: bytes, seq: int) -> Record:
    """A record of format 1. Raises `StoreCorrupt` naming `seq` where the bytes are not what was written."""
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
