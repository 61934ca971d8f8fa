"""A seal: the heads of all shards' chains, kept apart from the logs.

A chain that verifies is consistent in itself. The seal adds which chain it is: a log that was truncated, or
rewritten from some record on, no longer holds the sealed anchor at the sealed `seq`. `seal.json` is
`{version, sealed, shards: [{shard, seq, anchor}], checksum}`; the checksum is FNV-1a/64 over the canonical JSON
of all else, and detects damage to the file, not forgery: keep a copy elsewhere.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common.errors import StoreCorrupt
from common.files import read_json, write_json
from common.types import Json
from stores.memory.memory import canonical

NAME = "seal.json"
VERSION = 1
_OFFSET, _PRIME, _MASK = 0xCBF29CE484222325, 0x100000001B3, (1 << 64) - 1


def seal(folder: Path, shards: Iterable[Mapping[str, Any]], *, now: float) -> Json:
    """Write `seal.json` into `folder`, whole or not at all, from each shard's `final()`; returns it."""
    found = sorted(({name: s[name] for name in ("shard", "seq", "anchor")} for s in shards), key=_number)
    content: Json = {"version": VERSION, "sealed": now, "shards": found}
    sealed = {**content, "checksum": f"{fnv1a(canonical(content)):016x}"}
    write_json(folder / NAME, sealed)
    return sealed


def read_seal(folder: Path) -> Json | None:
    """The last seal, or None. Raises `StoreCorrupt` if its checksum is wrong."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        sealed: Json = read_json(path)
        content = {name: value for name, value in sealed.items() if name != "checksum"}
        intact = sealed["checksum"] == f"{fnv1a(canonical(content)):016x}"
    except (ValueError, KeyError, AttributeError, TypeError):
        intact = False
    if not intact:
        raise StoreCorrupt(f"{path} fails its checksum: restore it from a copy, or seal again")
    return sealed


def fnv1a(data: bytes) -> int:
    """FNV-1a, 64 bits."""
    value = _OFFSET
    for byte in data:
        value = (value ^ byte) * _PRIME & _MASK
    return value


def _number(shard: Mapping[str, Any]) -> int:
    return int(shard["shard"])
