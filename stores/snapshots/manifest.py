"""The manifest of a snapshot: what it covers, and the digests that its files must have."""

import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

from common.errors import StoreCorrupt
from common.types import Json
from stores.memory.memory import canonical

FORMAT = "sharpwave-snapshot"
SCHEMA_VERSION = 1
MANIFEST = "manifest.json"


def file_digest(path: Path) -> Json:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "digest": _digest(file)}


def _digest(file: Any) -> str:
    """SHA-256, which processors accelerate: opening a large store is bound by this."""
    digest, buffer = sha256(), memoryview(bytearray(1 << 20))
    while size := file.readinto(buffer):
        digest.update(buffer[:size])
    return digest.hexdigest()


def write_manifest(folder: Path, manifest: Json) -> None:
    own = blake2b(canonical(manifest), digest_size=32).hexdigest()
    with (folder / MANIFEST).open("wb") as file:
        file.write(json.dumps({**manifest, "digest": own}, indent=1).encode())
        file.flush()
        os.fsync(file.fileno())


def read_manifest(folder: Path) -> Json:
    """Raises `StoreCorrupt` whose code is the reason: `manifest`, `digest` or `schema`."""
    try:
        manifest: Json = json.loads((folder / MANIFEST).read_bytes())
        own = manifest.pop("digest")
        schema, kind = manifest["schema"], manifest["format"]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise refused(folder, "manifest", f"its manifest cannot be read ({type(error).__name__})") from error
    if kind != FORMAT or schema != SCHEMA_VERSION:
        raise refused(folder, "schema", f"it is {kind} {schema}, this version reads {SCHEMA_VERSION}")
    if own != blake2b(canonical(manifest), digest_size=32).hexdigest():
        raise refused(folder, "digest", "its manifest was changed")
    return manifest


def check_files(folder: Path, manifest: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raises `StoreCorrupt` with the code `digest` if a file is damaged."""

    def matches(name: str) -> bool:
        try:
            return file_digest(folder / name) == manifest["files"][name]
        except OSError:
            return False

    names = [*names]
    with ThreadPoolExecutor(len(names)) as pool:
        for name, whole in zip(names, pool.map(matches, names), strict=True):
            if not whole:
                raise refused(folder, "digest", f"{name} is damaged")


def refused(folder: Path, reason: str, what: str) -> StoreCorrupt:
    return StoreCorrupt(f"snapshot {folder.name} is passed over: {what}", code=reason)
