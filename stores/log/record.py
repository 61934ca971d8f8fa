"""One operation of a shard's log, as bytes.

    | crc32 | op | seq | epoch | time | digest | salt | 4 lengths | anchor | op_id | body | vector |

The CRC covers everything after it, so a flipped bit is found, and so is a record filed under the wrong
number. `digest` is BLAKE2b-256 of operation, time, body and vector under a random salt (of an encrypted
body without its header, which changes with its key; see `stores.crypto.keyring`); `anchor` chains it to the previous
record: `anchor_n = BLAKE2b-64(anchor_{n-1} || digest_n)`; see `Chain` for the options. An erased record has lost
body, vector and salt but not its digest: the chain still verifies, and without the salt a guess of the
content cannot be tested against the digest.
"""

import json
import os
import struct
import zlib
from dataclasses import dataclass, field, replace
from enum import IntEnum
from hashlib import blake2b
from itertools import pairwise
from typing import Any

from common.errors import StoreCorrupt
from stores.crypto.keyring import HEADER_BYTES, is_encrypted

SALT_BYTES = 16
_HEADER = struct.Struct(">IBQQd32s16sBHII")
_HEAD = struct.Struct(">BdI")  # what a digest covers before the body
_ERASED = bytes(SALT_BYTES)
_CRC_BYTES = 4


class Op(IntEnum):
    """What a record does to the shard. `View` documents the content of each."""

    PUT = 1
    TOUCH = 2
    SCORE = 3
    FORGET = 4
    SUPERSEDE = 5
    AGGREGATE = 6
    CLOSE = 7
    TURNS = 8
    RACE = 9
    IMPORT = 10


@dataclass(frozen=True, kw_only=True)
class Chain:
    """How anchors are computed: 64 bits detect damage and mistakes, 256 bits resist forgery; with a secret `key` (16
    to 64 bytes) nobody without it can make a chain that verifies."""

    bits: int = 64
    key: bytes = field(default=b"", repr=False)

    @property
    def genesis(self) -> bytes:
        """The anchor before the first record."""
        return bytes(self.bits // 8)

    @property
    def identity(self) -> dict[str, Any]:
        """What a log stores of the chain's options: the key's fingerprint, never the key."""
        fingerprint = blake2b(b"sharpwave chain", digest_size=8, key=self.key).hexdigest()
        return {"anchor_bits": self.bits, "chain_key": fingerprint if self.key else None}

    def link(self, previous: bytes, digest: bytes) -> bytes:
        return blake2b(previous + digest, digest_size=self.bits // 8, key=self.key).digest()


PLAIN = Chain()


@dataclass(slots=True, kw_only=True)  # frozen, creating one would take three times as long
class Record:
    """One record; immutable by convention. `body` is JSON; `vector` the memory's embedding as raw little-endian
    float32, if any. `parsed` is the value that `body` was encoded from, if the record was just made."""

    op: Op
    seq: int
    epoch: int
    time: float
    op_id: str
    digest: bytes
    salt: bytes
    anchor: bytes
    body: bytes
    vector: bytes
    parsed: dict[str, Any] | None = field(default=None, compare=False, repr=False)

    @property
    def erased(self) -> bool:
        return self.salt == _ERASED

    def content(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.body) if self.parsed is None else self.parsed
        return content


def make(
    op: Op,
    *,
    seq: int,
    epoch: int,
    time: float,
    op_id: str,
    previous: bytes,
    body: bytes,
    vector: bytes,
    chain: Chain = PLAIN,
    parsed: dict[str, Any] | None = None,
    salt: bytes | None = None,
) -> Record:
    """A record that follows the one whose anchor is `previous`. `salt` is random and used once: see
    `salts`."""
    salt = salt or os.urandom(SALT_BYTES)
    digest = _digest(op, time, body, vector, salt)
    return Record(
        op=op,
        seq=seq,
        epoch=epoch,
        time=time,
        op_id=op_id,
        digest=digest,
        salt=salt,
        anchor=chain.link(previous, digest),
        body=body,
        vector=vector,
        parsed=parsed,
    )


def salts(count: int) -> list[bytes]:
    """Salts for so many records, drawn at once, since each draw is a system call."""
    drawn = os.urandom(SALT_BYTES * count)
    return [drawn[start : start + SALT_BYTES] for start in range(0, len(drawn), SALT_BYTES)]


def intact(record: Record) -> bool:
    """True if the content, unless erased, matches its digest."""
    if record.erased:
        return not record.body and not record.vector
    return record.digest == _digest(record.op, record.time, record.body, record.vector, record.salt)


def erase(record: Record) -> Record:
    return replace(record, body=b"", vector=b"", salt=_ERASED, parsed=None)


def encode(record: Record) -> bytes:
    op_id = record.op_id.encode()
    header = _HEADER.pack(
        0,
        record.op,
        record.seq,
        record.epoch,
        record.time,
        record.digest,
        record.salt,
        len(record.anchor),
        len(op_id),
        len(record.body),
        len(record.vector),
    )
    return add_crc(b"".join((header[_CRC_BYTES:], record.anchor, op_id, record.body, record.vector)))


def decode(raw: bytes, seq: int) -> Record:
    """The record in these bytes. Raises `StoreCorrupt` naming `seq` if they are damaged."""
    try:
        check_crc(raw, f"record {seq}")
    except StoreCorrupt as error:
        raise StoreCorrupt(error.message, fault=_fault(raw, seq)) from None
    _, op, number, epoch, time, digest, salt, *lengths = _HEADER.unpack_from(raw)
    if number != seq:
        raise StoreCorrupt(
            f"record {seq} holds record {number}: the log was changed from outside", fault=_fault(raw, seq)
        )
    ends = [_HEADER.size]
    for length in lengths:
        ends.append(ends[-1] + length)
    anchor, op_id, body, vector = (raw[start:end] for start, end in pairwise(ends))
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


def fault(record: Record, reason: str) -> dict[str, Any]:
    """`{seq, op, op_id, reason}` of a broken record."""
    return {"seq": record.seq, "op": record.op.name.lower(), "op_id": record.op_id, "reason": reason}


def _fault(raw: bytes, seq: int) -> dict[str, Any]:
    """`fault` from damaged bytes: what can still be read of them, else None."""
    found: dict[str, Any] = {"seq": seq, "op": None, "op_id": None, "reason": "fails its checksum"}
    if len(raw) >= _HEADER.size:
        _, op, *_, anchor, op_id, _, _ = _HEADER.unpack_from(raw)
        start = _HEADER.size + anchor
        found["op"] = Op(op).name.lower() if op in [*Op] else None
        found["op_id"] = raw[start : start + op_id].decode(errors="replace")
    return found


def add_crc(data: bytes) -> bytes:
    """The data with its CRC32 in front."""
    return zlib.crc32(data).to_bytes(_CRC_BYTES, "big") + data


def check_crc(raw: bytes, what: str) -> bytes:
    """The data without its CRC32. Raises `StoreCorrupt` if that does not match."""
    data = raw[_CRC_BYTES:]
    if len(raw) < _CRC_BYTES or zlib.crc32(data).to_bytes(_CRC_BYTES, "big") != raw[:_CRC_BYTES]:
        raise StoreCorrupt(f"{what} fails its checksum: restore this shard from a copy")
    return data


def _digest(op: Op, time: float, body: bytes, vector: bytes, salt: bytes) -> bytes:
    body = body[HEADER_BYTES:] if is_encrypted(body) else body
    content = b"".join((_HEAD.pack(op, time, len(body)), body, vector))
    return blake2b(content, digest_size=32, salt=salt).digest()
