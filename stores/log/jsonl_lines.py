"""A log's records, commits and states as lines of text; see `jsonl.py` for what they mean.

Each line is a JSON object that ends with the CRC of everything before it.
"""

import base64
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from common.errors import StoreCorrupt
from stores.log.base import GONE, Operation
from stores.log.record import Op, Record

START = b'{"state":'  # how a log begins
_RECORD = b'{"record":'
_BODY, _VECTOR = b',"body":', b',"vector":'  # how those fields of a record begin
_CRC = b',"crc":"%08x"}\n'
_CRC_BYTES = len(_CRC % 0)


def state(meta: Mapping[str, Any]) -> bytes:
    return _line({"state": meta})


def _line(fields: Mapping[str, Any]) -> bytes:
    return _close(_dump(fields)[:-1])


def _close(start: bytes) -> bytes:
    """End a line with the checksum of its content."""
    return start + _CRC % zlib.crc32(start)


def kind(text: bytes) -> str | None:
    """`record`, `commit` or `state`; None if the line is damaged."""
    if text[-_CRC_BYTES:] != _CRC % zlib.crc32(text[:-_CRC_BYTES]):
        return None
    return text[2 : text.index(b'"', 2)].decode()


def commit(number: int, operation: Operation, dropped: Iterable[str]) -> bytes:
    """The line of a commit. `dropped`: operations whose results are removed."""
    kept = {"request": operation.request, "result": operation.result, "erase": [*operation.erase]}
    return _line({"commit": number, "op_id": operation.op_id, **kept, "drop": sorted(dropped)})


def without_result(text: bytes) -> bytes:
    fields = json.loads(text)
    del fields["crc"]
    return _line({**fields, **GONE})


def number(text: bytes) -> int:
    """The number in a record's line."""
    return int(text[len(_RECORD) : text.index(b",", len(_RECORD))])


def encode(record: Record) -> bytes:
    """The line of a record. The body is stored as readable JSON if it is an object on one line, else in base64, like
    the vector."""
    fields = {
        "record": record.seq,
        "op": record.op.name.lower(),
        "epoch": record.epoch,
        "time": record.time,
        "op_id": record.op_id,
        "digest": record.digest.hex(),
        "salt": record.salt.hex(),
        "anchor": record.anchor.hex(),
    }
    body = record.body if _readable(record.body) else _dump({"base64": _base64(record.body)})
    vector = _dump(_base64(record.vector))
    return _close(_dump(fields)[:-1] + _BODY + body + _VECTOR + vector)


def decode(text: bytes) -> Record:
    fields = json.loads(text)
    body = fields["body"]
    return Record(
        op=Op[fields["op"].upper()],
        seq=fields["record"],
        epoch=fields["epoch"],
        time=fields["time"],
        op_id=fields["op_id"],
        digest=bytes.fromhex(fields["digest"]),
        salt=bytes.fromhex(fields["salt"]),
        anchor=bytes.fromhex(fields["anchor"]),
        body=base64.b64decode(body["base64"]) if [*body] == ["base64"] else _within(text),
        vector=base64.b64decode(fields["vector"]),
    )


def _within(text: bytes) -> bytes:
    """The body as it is in a record's line. Fields before it hold no unescaped quote, the one after it is base64."""
    return text[text.index(_BODY) + len(_BODY) : text.rindex(_VECTOR)]


def broken(text: bytes, seq: int, where: str) -> StoreCorrupt:
    """The error for a damaged line, with what can still be read of it."""
    found: dict[str, str | None] = {}
    for name in ("op", "op_id"):
        value = re.search(rb'"%s":"([^"]*)"' % name.encode(), text)
        found[name] = value[1].decode(errors="replace") if value else None
    fault = {"seq": seq, **found, "reason": "its line fails its checksum"}
    return StoreCorrupt(
        f"{where}: record {seq} fails its checksum: restore this shard from a copy", fault=fault
    )


def _readable(body: bytes) -> bool:
    try:
        content = json.loads(body.decode())
        return isinstance(content, dict) and "base64" not in content and b"\n" not in body
    except ValueError:
        return False


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
