"""Store of KV blocks in three tiers: device memory, host memory, disk.

Each block is one safetensors file, `<folder>/<namespace digest>/<fingerprint>/<id digest>.safetensors`; blocks of a
history (`KVBlock.front`) end in `.history.safetensors`. Disk is authoritative: a block whose file has been removed, by
any process, is a miss. Each tier has a byte budget and evicts the least recently used block. The namespace is part of
the key and of the path, so no block is shared between namespaces. A block whose token ids or history differ from the
requested ones is a miss.

With an `Encryptor` the files are encrypted by namespace; a file that cannot be decrypted is a miss.
"""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor

from common.errors import SharpwaveError
from common.files import write_bytes
from models.kv.erasure_marks import ErasedMarks
from models.kv.prefix import KVBlock
from models.kv.quantised import Int8States
from models.kv.safetensors_metadata import Notes, read_notes
from models.kv.tiers import Key, Tier

PLAIN, HISTORY = ".safetensors", ".history.safetensors"
LEFT_ON_DISK = 0.9  # of the budget, once it is exceeded: so that not every write has to look at all files


class Encryptor(Protocol):
    """Encryption by namespace, as the stores' keyrings implement it. `decrypt_bytes` raises a `SharpwaveError` if the
    key has been destroyed or the data has been altered."""

    def encrypt_bytes(self, namespace: str, data: bytes) -> bytes: ...

    def decrypt_bytes(self, namespace: str, data: bytes) -> bytes: ...

    def destroy(self, namespace: str) -> int: ...


class BlockStore:
    """Thread-safe store of KV blocks. `hits`, `device_hits`, `disk_hits` and `misses` count look-ups, `evicted`
    counts files evicted from disk. A device budget of 0, as on a CPU, disables that tier; a disk budget of 0 means no
    bound. `erased` records erasures for the code that queues and writes blocks."""

    def __init__(
        self,
        folder: Path,
        budget_bytes: int,
        *,
        disk_bytes: int = 0,
        device: torch.device | None = None,
        device_bytes: int = 0,
        encryptor: Encryptor | None = None,
    ) -> None:
        self._folder = folder
        self.erased = ErasedMarks(folder / "erased")
        self._sealer = encryptor
        self._host = Tier(budget_bytes)
        self._on_device = Tier(device_bytes if device is not None and device.type == "cuda" else 0)
        self._device = device
        self._disk_budget = disk_bytes
        self._disk_bytes: int | None = None  # as far as this process knows; None: not looked yet
        self._lock = threading.Lock()
        self.hits = self.device_hits = self.disk_hits = self.misses = self.evicted = 0

    def get(
        self, namespace: str, memory_id: str, fingerprint: str, ids: Sequence[int], front: str = ""
    ) -> KVBlock | None:
        """The block of this memory if its token ids are `ids` and its preceding history is `front`, else None."""
        key = (namespace, memory_id, fingerprint)
        path = self._path(key, front)
        with self._lock:
            on_device, on_host = self._on_device.get(key), self._host.get(key)
        block = on_device or on_host or self._read(key, path)
        with self._lock:
            if block is None or not _is(block, ids, front) or not _touched(path):
                self.misses += 1
                if not path.is_file():
                    self._drop(key)
                return None
            self.hits += 1
            self.device_hits += on_device is not None
            self.disk_hits += on_device is None and on_host is None
            if on_device is None:
                self._hold(key, block)
            return block

    def has(
        self, namespace: str, memory_id: str, fingerprint: str, ids: Sequence[int], front: str = ""
    ) -> bool:
        """Whether `get` would find the block. Reads no tensors and changes no counter."""
        key = (namespace, memory_id, fingerprint)
        path = self._path(key, front)
        if not path.is_file():
            return False
        with self._lock:
            held = self._host.get(key)
        if held is not None:
            return _is(held, ids, front)
        note = self._note(namespace, path)
        return note is not None and tuple(json.loads(note["ids"])) == tuple(ids) and note["front"] == front

    def put(self, namespace: str, block: KVBlock) -> None:
        key = (namespace, block.memory_id, block.fingerprint)
        path = self._path(key, block.front)
        data = save(
            {name: tensor.cpu().contiguous() for name, tensor in block.tensors.items()}, _notes_of(block)
        )
        sealed = self._sealer.encrypt_bytes(namespace, data) if self._sealer else data
        write_bytes(path, sealed)
        with self._lock:
            self._drop(key)
            if path.is_file():  # else it was erased just now
                self._hold(key, block)
            if self._disk_bytes is not None:
                self._disk_bytes += len(sealed)
        self._make_room(besides=path)

    def forget(self, namespace: str, memory_ids: Iterable[str]) -> int:
        """Remove the blocks of these memories, and blocks encoded after them, for every version and from all tiers.

        Returns the number of files removed. If none of the namespace is left, its key is destroyed, which makes
        copies of the files unreadable."""
        ids, removed = set(memory_ids), 0
        folder = self._folder / _digest(namespace)
        names = [_digest(memory_id) + ending for memory_id in ids for ending in (PLAIN, HISTORY)]
        for version in folder.glob("*/"):
            removed += sum(_unlinked(version / name) for name in names)
        for path in folder.glob(f"*/*{HISTORY}"):
            note = self._note(namespace, path)
            if note is None or ids & {*json.loads(note["behind"])}:  # of one that cannot be read nobody knows
                removed += _unlinked(path)
        # After the files: `get` and `put` hold nothing whose file is gone.
        self._drop_where(lambda key, block: key[0] == namespace and bool(ids & {key[1], *block.behind}))
        if self._sealer is not None and not any(folder.glob("*/*")):
            self._sealer.destroy(namespace)
        return removed

    def purge(self, fingerprint: str) -> int:
        """Remove all blocks of a retired model version. Returns the number of files removed."""
        removed = sum(_unlinked(path) for path in self._folder.glob(f"*/{fingerprint}/*.safetensors"))
        self._drop_where(lambda key, _: key[2] == fingerprint)
        for folder in self._folder.glob(f"*/{fingerprint}"):
            with contextlib.suppress(OSError):  # another process has just written into it
                folder.rmdir()
        return removed

    @property
    def held_bytes(self) -> int:
        return self._host.size_bytes

    @property
    def device_bytes(self) -> int:
        return self._on_device.size_bytes

    def counts(self) -> dict[str, int]:
        return {
            "hits": self.hits,
            "device_hits": self.device_hits,
            "disk_hits": self.disk_hits,
            "misses": self.misses,
            "evicted": self.evicted,
            "host_bytes": self.held_bytes,
            "device_bytes": self.device_bytes,
        }

    def _hold(self, key: Key, block: KVBlock) -> None:
        self._host.hold(key, block, self._to_host)
        if self._device is not None and self._on_device.budget_bytes:
            device = self._device
            self._on_device.hold(key, block, lambda tensor: tensor.to(device, non_blocking=True))

    def _to_host(self, tensor: Tensor) -> Tensor:
        # Pinned where there is a device: copied there without a detour, while other work goes on.
        return tensor.cpu().pin_memory() if self._on_device.budget_bytes else tensor.cpu()

    def _drop(self, key: Key) -> None:
        self._host.drop(key)
        self._on_device.drop(key)

    def _drop_where(self, chosen: Callable[[Key, KVBlock], bool]) -> None:
        with self._lock:
            for tier in (self._host, self._on_device):
                for key in [key for key, block in tier.blocks.items() if chosen(key, block)]:
                    tier.drop(key)

    def _make_room(self, besides: Path) -> None:
        """Evict the least recently used files while disk is over its budget, whichever process wrote them."""
        if not self._disk_budget or (self._disk_bytes is not None and self._disk_bytes <= self._disk_budget):
            return
        files = []
        for path in self._folder.glob("*/*/*.safetensors"):
            with contextlib.suppress(FileNotFoundError):  # another process was quicker
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in files)
        if total > self._disk_budget:
            for _, size, path in sorted(files):
                if total <= LEFT_ON_DISK * self._disk_budget:
                    break
                if path != besides:
                    self.evicted += _unlinked(path)
                    total -= size
        with self._lock:
            self._disk_bytes = total

    def _note(self, namespace: str, path: Path) -> Notes | None:
        """A file's metadata; None if it cannot be read."""
        try:
            if self._sealer is not None:
                return _whole(read_notes(self._sealer.decrypt_bytes(namespace, path.read_bytes())))
            with safe_open(path, framework="pt") as file:
                return _whole(file.metadata())
        except (SharpwaveError, FileNotFoundError):  # its key is gone, or so is the file by now
            return None

    def _read(self, key: Key, path: Path) -> KVBlock | None:
        try:
            data = path.read_bytes()
            if self._sealer is not None:
                data = self._sealer.decrypt_bytes(key[0], data)
        except (SharpwaveError, FileNotFoundError):
            return None
        note, tensors = _whole(read_notes(data)), load(data)
        return KVBlock(
            memory_id=key[1],
            fingerprint=key[2],
            ids=tuple(json.loads(note["ids"])),
            text=note["text"],
            states=tensors["states"] if "states" in tensors else Int8States(**tensors),
            width=int(note["width"]),
            front=note["front"],
            behind=tuple(json.loads(note["behind"])),
        )

    def _path(self, key: Key, front: str) -> Path:
        namespace, memory_id, fingerprint = key
        name = _digest(memory_id) + (HISTORY if front else PLAIN)
        return self._folder / _digest(namespace) / fingerprint / name


def _is(block: KVBlock, ids: Sequence[int], front: str) -> bool:
    return block.ids == tuple(ids) and block.front == front


def _touched(path: Path) -> bool:
    """Record the use of a file as its modification time; False if the file no longer exists."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _unlinked(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _notes_of(block: KVBlock) -> Notes:
    return {
        "memory": block.memory_id,
        "fingerprint": block.fingerprint,
        "ids": json.dumps(block.ids),
        "text": block.text,
        "width": str(block.width),
        "front": block.front,
        "behind": json.dumps(block.behind),
    }


def _whole(notes: Notes) -> Notes:
    """Add the defaults of fields that files of older versions lack."""
    return {"width": str(len(json.loads(notes["ids"]))), "front": "", "behind": "[]", **notes}


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
