"""KV blocks at rest: host memory in front of disk.

On disk one safetensors file a block, `<folder>/<namespace digest>/<fingerprint>/<id digest>.safetensors`; disk
holds every block, memory the recently used ones up to a byte budget. The namespace is part of the key and of the path:
nothing crosses it. A block whose token ids are not the memory's present ones is a miss, never an answer.
With a `Sealer` the files are encrypted by namespace; one that it cannot open is a miss too.
"""

import contextlib
import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from safetensors import safe_open
from safetensors.torch import load, save

from common.errors import SharpwaveError
from common.files import write_bytes
from models.erased import ErasedMarks
from models.prefix import KVBlock

Key = tuple[str, str, str]
Notes = dict[str, str]


class Sealer(Protocol):
    """Encryption by namespace, as a key ring of the stores does it. Opening what was sealed under a key
    that is gone, or is not what was sealed, raises a `SharpwaveError`."""

    def seal_bytes(self, namespace: str, data: bytes) -> bytes: ...

    def open_bytes(self, namespace: str, data: bytes) -> bytes: ...

    def destroy(self, namespace: str) -> int: ...


class BlockStore:
    """Thread-safe. `hits`, `disk_hits` and `misses` count look-ups."""

    def __init__(self, folder: Path, budget_bytes: int, *, sealer: Sealer | None = None) -> None:
        self._folder = folder
        self._sealer = sealer
        self._budget = budget_bytes
        self._held: OrderedDict[Key, KVBlock] = OrderedDict()
        self._held_bytes = 0
        self._lock = threading.Lock()
        self.erased = ErasedMarks(folder / "erased")
        self.hits = self.disk_hits = self.misses = 0

    def get(self, namespace: str, memory_id: str, fingerprint: str, ids: Sequence[int]) -> KVBlock | None:
        """The block of this memory as it reads now, or None."""
        key = (namespace, memory_id, fingerprint)
        with self._lock:
            block = self._held.get(key)
            if block is not None:
                self._held.move_to_end(key)
        from_disk = block is None
        block = block or self._read(key)
        found = block is not None and block.ids == tuple(ids)
        with self._lock:
            self.hits += found
            self.disk_hits += found and from_disk
            self.misses += not found
            if found and from_disk and block is not None:
                self._hold(key, block)
        return block if found else None

    def has(self, namespace: str, memory_id: str, fingerprint: str, ids: Sequence[int]) -> bool:
        """Whether `get` would find it; reads no tensor and counts nothing."""
        key = (namespace, memory_id, fingerprint)
        held, path = self._held.get(key), self._path(key)
        if held is not None:
            return held.ids == tuple(ids)
        if not path.is_file():
            return False
        if self._sealer is not None:
            block = self._read(key)
            return block is not None and block.ids == tuple(ids)
        with safe_open(path, framework="pt") as file:
            return tuple(json.loads(file.metadata()["ids"])) == tuple(ids)

    def put(self, namespace: str, block: KVBlock) -> None:
        key = (namespace, block.memory_id, block.fingerprint)
        note = {
            "memory": block.memory_id,
            "fingerprint": block.fingerprint,
            "ids": json.dumps(block.ids),
            "text": block.text,
        }
        data = save({"states": block.states.cpu().contiguous()}, metadata=note)
        write_bytes(self._path(key), self._sealer.seal_bytes(namespace, data) if self._sealer else data)
        with self._lock:
            self._hold(key, block)

    def forget(self, namespace: str, memory_ids: Iterable[str]) -> int:
        """Remove every version's block of these memories, memory and disk. Returns how many files went.
        Where none of the namespace is left, its key is destroyed: copies of the files are noise then."""
        ids, removed = set(memory_ids), 0
        with self._lock:
            for key in [k for k in self._held if k[0] == namespace and k[1] in ids]:
                self._drop(key)
        for folder in self._fingerprint_folders(namespace):
            for memory_id in ids:
                removed += _unlinked(folder / f"{_digest(memory_id)}.safetensors")
        if self._sealer is not None and not any((self._folder / _digest(namespace)).glob("*/*")):
            self._sealer.destroy(namespace)
        return removed

    def purge(self, fingerprint: str) -> int:
        """Remove all blocks of a model version that has retired. Returns how many files went."""
        with self._lock:
            for key in [key for key in self._held if key[2] == fingerprint]:
                self._drop(key)
        removed = sum(_unlinked(path) for path in self._folder.glob(f"*/{fingerprint}/*.safetensors"))
        for folder in self._folder.glob(f"*/{fingerprint}"):
            with contextlib.suppress(OSError):  # another process has just written into it
                folder.rmdir()
        return removed

    @property
    def held_bytes(self) -> int:
        return self._held_bytes

    def _hold(self, key: Key, block: KVBlock) -> None:
        self._drop(key)
        self._held[key] = block
        self._held_bytes += block.size_bytes
        while self._held_bytes > self._budget and self._held:
            self._drop(next(iter(self._held)))

    def _drop(self, key: Key) -> None:
        block = self._held.pop(key, None)
        if block is not None:
            self._held_bytes -= block.size_bytes

    def _read(self, key: Key) -> KVBlock | None:
        path = self._path(key)
        if not path.is_file():
            return None
        if self._sealer is None:
            with safe_open(path, framework="pt") as file:
                note = file.metadata()
                states = file.get_tensor("states")
        else:
            try:
                data = self._sealer.open_bytes(key[0], path.read_bytes())
            except (SharpwaveError, FileNotFoundError):  # its key is gone, or so is the file by now
                return None
            note, states = _notes(data), load(data)["states"]
        return KVBlock(key[1], key[2], tuple(json.loads(note["ids"])), note["text"], states)

    def _path(self, key: Key) -> Path:
        namespace, memory_id, fingerprint = key
        return self._folder / _digest(namespace) / fingerprint / f"{_digest(memory_id)}.safetensors"

    def _fingerprint_folders(self, namespace: str) -> list[Path]:
        folder = self._folder / _digest(namespace)
        return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _unlinked(path: Path) -> bool:
    """Whether the file went by this call: another process may have removed it."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _notes(data: bytes) -> Notes:
    """What stands beside the tensors of a safetensors file: its header is a length and JSON."""
    end = 8 + int.from_bytes(data[:8], "little")
    notes: Notes = json.loads(data[8:end])["__metadata__"]
    return notes


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
