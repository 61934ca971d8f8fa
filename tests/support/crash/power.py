"""A power failure, from the journal that `power.c` keeps of a writer: any part of what was written to a
file since it was last synced may be missing, in any order."""

import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

_ENTRY = struct.Struct("=QQQQ")  # inode, offset, length, size
_SECTOR = 512


def preload(folder: Path, watched: Path) -> dict[str, str]:
    """Environment of a writer whose files in `watched` can lose power."""
    if not (compiler := shutil.which("cc")):
        pytest.skip("needs a C compiler to simulate a power failure")
    library = folder / "power.so"
    source = Path(__file__).with_name("power.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return {
        "LD_PRELOAD": str(library),
        "POWER_FOLDER": str(watched),
        "POWER_JOURNAL": str(folder / "journal"),
    }


def fail(journal: Path, watched: Path, rng: random.Random) -> int:
    """Take back what was never synced, or some of it. Returns the number of bytes that changed."""
    files = {file.stat().st_ino: file for file in watched.rglob("*") if file.is_file()}
    unsynced = _unsynced(journal.read_bytes()) if journal.exists() else {}
    return sum(_lose(files[inode], writes, rng) for inode, writes in unsynced.items() if inode in files)


def _unsynced(journal: bytes) -> dict[int, list[tuple[int, int, bytes]]]:
    """By inode: offset, the file's size before, the bytes before, of each write since the last sync."""
    writes: dict[int, list[tuple[int, int, bytes]]] = {}
    place = 0
    while place + _ENTRY.size <= len(journal):
        inode, offset, length, size = _ENTRY.unpack_from(journal, place)
        old = journal[place + _ENTRY.size : place + _ENTRY.size + length]
        if len(old) < length:
            break  # killed while it was noted: the write itself never came
        place += _ENTRY.size + length
        if length:
            writes.setdefault(inode, []).append((offset, size, old))
        else:
            writes.pop(inode, None)
    return writes


def _lose(file: Path, writes: list[tuple[int, int, bytes]], rng: random.Random) -> int:
    data = bytearray(file.read_bytes())
    before = bytearray(data)
    for offset, _, old in reversed(writes):
        end = min(offset + len(old), len(before))
        before[offset:end] = old[: max(0, end - offset)]
    synced_size = min(size for _, size, _ in writes)
    kept = rng.choice((0.0, 0.5, 0.9, 1.0))
    changed = 0
    for start in range(0, len(data), _SECTOR):
        sector = slice(start, start + _SECTOR)
        if data[sector] != before[sector] and rng.random() >= kept:
            data[sector] = before[sector]
            changed += len(data[sector])
    if len(data) > synced_size and rng.random() < 0.5:  # nor was its new length
        del data[rng.randint(synced_size, len(data)) :]
    with file.open("r+b") as handle:
        handle.write(data)
        handle.truncate(len(data))
    return changed
