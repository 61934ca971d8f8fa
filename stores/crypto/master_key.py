"""Data keys at rest: one small file a key, wrapped by the master key.

    | format | id | master key's id | nonce | wrapped {key, namespace, number} | pieces |

A destroyed key's file is overwritten and marked, so that a destroyed key differs from a lost one. The
master key itself is a line of text in a file or an environment variable, never in the configuration.
"""

import base64
import json
import os
import secrets
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from common.errors import Conflict, InvalidInput, StoreCorrupt
from common.files import sync_folder, write_bytes, write_json
from common.keys import read_key

FORMAT = 1
MASTER_PREFIX = "sharpwave-master-1:"
KEY_BYTES, NONCE_BYTES = 32, 12


@dataclass(frozen=True)
class MasterKey:
    """32 bytes that wrap data keys; its text is `sharpwave-master-1:` and their base64."""

    key: bytes = field(repr=False)

    @property
    def id(self) -> str:
        """Names the key in files and messages without revealing it."""
        return blake2b(b"sharpwave master", digest_size=8, key=self.key).hexdigest()

    @property
    def text(self) -> str:
        return MASTER_PREFIX + base64.b64encode(self.key).decode()


def new_master() -> MasterKey:
    return MasterKey(secrets.token_bytes(KEY_BYTES))


def parse_master(text: bytes | str, source: str) -> MasterKey:
    """Read a master key's text. Raises `InvalidInput` naming `source`, never the text."""
    encoded = (text.decode(errors="replace") if isinstance(text, bytes) else text).strip()
    try:
        key = base64.b64decode(encoded.removeprefix(MASTER_PREFIX), validate=True)
    except ValueError:
        key = b""
    if not encoded.startswith(MASTER_PREFIX) or len(key) != KEY_BYTES:
        raise InvalidInput(
            f"{source} holds no master key: expected {MASTER_PREFIX} and {KEY_BYTES} bytes in base64",
            param="store.master_key",
        )
    return MasterKey(key)


def read_master(source: str) -> MasterKey:
    """The master key that `store.master_key` names: `env:NAME` or `file:PATH`. Raises `InvalidInput`."""
    return parse_master(read_key(source, "store.master_key"), f"store.master_key = {source!r}")


def write_master(path: Path, master: MasterKey) -> None:
    """Write a key file that only its owner can read. Raises `Conflict` if the file exists: overwriting a key would
    lose everything encrypted under it."""
    if path.exists():
        raise Conflict(f"master key file {str(path)!r} exists; give another path", param="store.master_key")
    write_bytes(path, f"{master.text}\n".encode())  # mkstemp gives mode 600


def rotate_master(folder: Path, old: MasterKey, new: MasterKey) -> int:
    """Wrap every data key of a keyring by `new`; encrypted data does not change. Returns how many were wrapped.

    For a keyring that no process has open. A crash leaves keys under both, and a repeated call completes the
    rotation. Raises `InvalidInput` if a key is under neither.
    """
    wrapped = 0
    for file in sorted(folder.glob("*.key")):
        noted = read_noted(file)
        if "wrapped" in noted and noted["master"] != new.id:
            inner = unwrap_key(noted, old, file)
            write_json(file, {**noted, **wrap_key(bytes.fromhex(file.stem), inner, new)})
            wrapped += 1
    write_json(folder / "ring.json", {"format": FORMAT, "master": new.id})
    return wrapped


def wrap_key(id: bytes, inner: dict[str, Any], master: MasterKey) -> dict[str, Any]:
    nonce = secrets.token_bytes(NONCE_BYTES)
    wrapped = AESGCM(master.key).encrypt(nonce, json.dumps(inner).encode(), b"sharpwave key 1" + id)
    return {
        "format": FORMAT,
        "id": id.hex(),
        "master": master.id,
        "nonce": nonce.hex(),
        "wrapped": base64.b64encode(wrapped).decode(),
    }


def unwrap_key(noted: dict[str, Any], master: MasterKey, file: Path) -> dict[str, Any]:
    if noted["master"] != master.id:
        raise InvalidInput(
            f"store.master_key: {file} is wrapped by master key {noted['master']}, not by {master.id}; "
            "give that one, or finish the rotation to this one",
            param="store.master_key",
        )
    associated = b"sharpwave key 1" + bytes.fromhex(noted["id"])
    try:
        raw = AESGCM(master.key).decrypt(
            bytes.fromhex(noted["nonce"]), base64.b64decode(noted["wrapped"]), associated
        )
    except InvalidTag:
        raise StoreCorrupt(f"key file {file} was changed: restore it from a copy") from None
    inner: dict[str, Any] = json.loads(raw)
    return inner


def gravestone(id: bytes) -> dict[str, Any]:
    return {"format": FORMAT, "id": id.hex(), "destroyed": True}


def read_noted(file: Path) -> dict[str, Any]:
    """Read a key file; one that a crash left overwritten with zeros is a destroyed key."""
    raw = file.read_bytes()
    if not raw.strip(b"\0"):
        write_json(file, gravestone(bytes.fromhex(file.stem)))
        raw = file.read_bytes()
    noted: dict[str, Any] = json.loads(raw)
    return noted


def overwrite(file: Path) -> None:
    """Overwrite the key with zeros, so that the freed block does not hold it. A journal, a file system snapshot or
    flash that moves blocks may still; only an encrypted disk prevents that."""
    with file.open("r+b") as opened:
        opened.write(bytes(file.stat().st_size))
        opened.flush()
        os.fsync(opened.fileno())
    sync_folder(file.parent)
