"""Encryption at rest: AES-256-GCM under one random data key a namespace, wrapped by one master key.

An encrypted piece (the content of one record, one snapshot, one KV block):

    | version | key id 16 | nonce 12 | wrapped piece key 48 | content | tag 16 |

Every piece has a random key of its own, used once, so the content's nonce is fixed at zero and can never
repeat. The piece key is wrapped by the namespace's data key under a random 96-bit nonce; NIST SP 800-38D
bounds that at 2^32 wraps a key, and `Keyring` changes to a fresh data key before that. The content's associated
data binds namespace and context (a record's op and seq): a piece moved elsewhere does not decrypt. A
data key is rotated by rewrapping piece keys (`renew`); content bytes stay, and so do all digests over them.

    folder/ring.json   format and the master key's id
    folder/ID.key      one data key: id, the master key's id, wrapped (key, namespace, number), pieces

What stays visible without the master key: how many namespaces there were, which pieces belong to the same
one (by random key id), sizes and times. Names of namespaces are inside the wraps. Destroying a key
overwrites its file and leaves a tombstone with the id, so that a destroyed key differs from a lost one. Back the
folder up apart from the data, and keep backups no longer than an erased namespace may survive in them.
"""

import base64
import secrets
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from common.errors import Conflict, InvalidInput, NotFound, NotReady, StoreCorrupt
from common.files import read_json, write_json
from stores.crypto.master_key import (
    FORMAT,
    KEY_BYTES,
    NONCE_BYTES,
    MasterKey,
    gravestone,
    overwrite,
    read_noted,
    unwrap_key,
    wrap_key,
)

MAX_PIECES = 1 << 32  # wraps under one data key
RESERVED = 1 << 20  # wraps counted at once, before they are used
ID_BYTES, TAG_BYTES = 16, 16
HEADER_BYTES = 1 + ID_BYTES + NONCE_BYTES + KEY_BYTES + TAG_BYTES
_ZERO = bytes(NONCE_BYTES)


@dataclass(slots=True)
class _DataKey:
    id: bytes
    namespace: str
    number: int  # of the key in its namespace; the highest is the present one
    cipher: AESGCM
    left: int = 0  # wraps reserved and not used


class Keyring:
    """The data keys of one folder. Safe for threads. Other processes may share the folder; their keys
    are read when a piece under one is met."""

    def __init__(self, folder: Path, master: MasterKey) -> None:
        """Raises `InvalidInput` if the master key is not the one that wraps these keys."""
        self.folder = folder
        self._master = master
        self._lock = threading.RLock()
        self._keys: dict[bytes, _DataKey] = {}
        self._present: dict[str, _DataKey] = {}
        self._destroyed: set[bytes] = set()
        keyring = folder / "ring.json"
        if not keyring.exists():
            write_json(keyring, {"format": FORMAT, "master": master.id})
        made = read_json(keyring)
        if made["format"] != FORMAT:
            raise Conflict(f"keyring {folder} is format {made['format']}, not {FORMAT}: use its own version")
        if made["master"] != master.id:
            raise InvalidInput(
                f"store.master_key: keyring {folder} belongs to master key {made['master']}, not to "
                f"{master.id}; give that one, or rotate the keyring to this one",
                param="store.master_key",
            )
        self._read_folder()

    # Sealing

    def encrypt(self, namespace: str, data: bytes, context: bytes = b"") -> bytes:
        """`data` as an encrypted piece under the namespace's key, which is made if there is none."""
        with self._lock:
            key = self._reserve(namespace)
        piece = secrets.token_bytes(KEY_BYTES)
        content = AESGCM(piece).encrypt(_ZERO, data, _bind(namespace, context))
        return _wrap_piece(key, piece) + content

    def decrypt(self, namespace: str, sealed: bytes, context: bytes = b"") -> bytes:
        """The inverse of `encrypt`. Raises `NotFound(code="key_destroyed")` if the key was destroyed,
        `NotReady(code="key_missing")` if the keyring never had it, `StoreCorrupt` if the bytes, the namespace or
        the context differ."""
        key = self._key_of(sealed)
        if key.namespace != namespace:
            raise StoreCorrupt("a sealed piece belongs to another namespace: it was moved from outside")
        return self._open(key, sealed, context)

    def decrypt_any(self, sealed: bytes, context: bytes = b"") -> bytes:
        """As `decrypt`, with the namespace taken from the piece's key."""
        return self._open(self._key_of(sealed), sealed, context)

    def encrypt_bytes(self, namespace: str, data: bytes) -> bytes:
        """A file's content, encrypted."""
        return self.encrypt(namespace, data, b"file")

    def decrypt_bytes(self, namespace: str, data: bytes) -> bytes:
        return self.decrypt(namespace, data, b"file")

    def is_destroyed(self, sealed: bytes) -> bool:
        """True if the piece's key was destroyed, so that it can never be decrypted."""
        return self._find(_key_id(sealed)) is None and _key_id(sealed) in self._destroyed

    # The life of keys

    @property
    def namespaces(self) -> list[str]:
        """The namespaces that have a key."""
        return [*self._present]

    def rotate(self, namespace: str) -> list[bytes]:
        """Encrypt from now on under a fresh data key. The old ones, whose ids are returned, still decrypt their
        pieces."""
        with self._lock:
            self._read_folder()
            old = [key.id for key in self._of(namespace)]
            self._make(namespace)
            return old

    def renew(self, sealed: bytes) -> bytes:
        """The piece wrapped by its namespace's present key; only the header changes."""
        key = self._key_of(sealed)
        if self._present[key.namespace].id == key.id:
            return sealed
        with self._lock:
            present = self._reserve(key.namespace)
        return _wrap_piece(present, _unwrap_piece(key, sealed)) + sealed[HEADER_BYTES:]

    def drop_old(self, namespace: str) -> int:
        """Destroy all but the present key, once every piece is renewed. Returns how many were
        destroyed."""
        with self._lock:
            present = self._present.get(namespace)
            return self._destroy([k for k in self._of(namespace) if present and k.id != present.id])

    def destroy_keys(self, ids: Iterable[bytes]) -> int:
        with self._lock:
            return self._destroy([self._keys[id] for id in ids if id in self._keys])

    def destroy(self, namespace: str) -> int:
        """Destroy the namespace's keys: everything encrypted under them, in any copy, becomes unreadable. Returns how
        many were destroyed; a crash may leave some, which a repeated call destroys."""
        with self._lock:
            self._read_folder()
            return self._destroy(self._of(namespace))

    def _of(self, namespace: str) -> list[_DataKey]:
        return [key for key in self._keys.values() if key.namespace == namespace]

    def _reserve(self, namespace: str) -> _DataKey:
        """The present key, for one more wrap. Wraps are counted on disk before they are used."""
        key = self._present.get(namespace)
        if key is None:
            self._read_folder()
            key = self._present.get(namespace) or self._make(namespace)
        if not key.left:
            file = self.folder / _name(key.id)
            noted = read_noted(file)
            if "wrapped" not in noted:  # destroyed by another process
                self._read_folder()
                return self._reserve(namespace)
            if noted["pieces"] + RESERVED > MAX_PIECES:
                key = self._make(namespace)
                file = self.folder / _name(key.id)
                noted = read_json(file)
            write_json(file, {**noted, "pieces": noted["pieces"] + RESERVED})
            key.left = RESERVED
        key.left -= 1
        return key

    def _make(self, namespace: str) -> _DataKey:
        """A fresh key, on disk before it encrypts anything."""
        number = 1 + max((key.number for key in self._of(namespace)), default=0)
        id, secret = secrets.token_bytes(ID_BYTES), secrets.token_bytes(KEY_BYTES)
        inner = {"key": base64.b64encode(secret).decode(), "namespace": namespace, "number": number}
        write_json(self.folder / _name(id), {**wrap_key(id, inner, self._master), "pieces": 0})
        return self._hold(_DataKey(id, namespace, number, AESGCM(secret)))

    def _hold(self, key: _DataKey) -> _DataKey:
        self._keys[key.id] = key
        present = self._present.get(key.namespace)
        if present is None or (key.number, key.id) > (present.number, present.id):
            self._present[key.namespace] = key
        return key

    def _destroy(self, keys: list[_DataKey]) -> int:
        for key in keys:
            file = self.folder / _name(key.id)
            overwrite(file)
            write_json(file, gravestone(key.id))
            del self._keys[key.id]
            self._destroyed.add(key.id)
        for namespace in {key.namespace for key in keys}:
            left = self._of(namespace)
            if left:
                self._present[namespace] = max(left, key=lambda key: (key.number, key.id))
            else:
                self._present.pop(namespace, None)
        return len(keys)

    def _key_of(self, sealed: bytes) -> _DataKey:
        id = _key_id(sealed)
        key = self._find(id)
        if key is not None:
            return key
        if id in self._destroyed:
            raise NotFound("the key of this content was destroyed with its namespace", code="key_destroyed")
        raise NotReady(
            f"keyring {self.folder} does not hold key {id.hex()}, nor its gravestone: give the keyring that "
            "belongs to this data, not an older copy",
            code="key_missing",
        )

    def _find(self, id: bytes) -> _DataKey | None:
        with self._lock:
            if id not in self._keys and id not in self._destroyed:
                self._read_folder()
            return self._keys.get(id)

    def _open(self, key: _DataKey, sealed: bytes, context: bytes) -> bytes:
        try:
            piece = AESGCM(_unwrap_piece(key, sealed))
            return piece.decrypt(_ZERO, sealed[HEADER_BYTES:], _bind(key.namespace, context))
        except InvalidTag:
            raise StoreCorrupt(
                "a sealed piece was changed, or moved here from another place: restore it from a copy"
            ) from None

    def _read_folder(self) -> None:
        """Read keys and tombstones that are new in the folder."""
        for file in self.folder.glob("*.key"):
            id = bytes.fromhex(file.stem)
            if id in self._destroyed:
                continue
            noted = read_noted(file)
            if "wrapped" in noted and id not in self._keys:
                inner = unwrap_key(noted, self._master, file)
                secret = base64.b64decode(inner["key"])
                self._hold(_DataKey(id, inner["namespace"], inner["number"], AESGCM(secret)))
            elif "wrapped" not in noted:
                self._destroyed.add(id)
                if gone := self._keys.pop(id, None):
                    self._present = {n: k for n, k in self._present.items() if k.id != gone.id}
                    for key in self._of(gone.namespace):
                        self._hold(key)


def is_encrypted(data: bytes) -> bool:
    """True if this could be an encrypted piece; JSON, Parquet and safetensors begin differently."""
    return len(data) >= HEADER_BYTES + TAG_BYTES and data[0] == FORMAT


def _name(id: bytes) -> str:
    return f"{id.hex()}.key"


def _bind(namespace: str, context: bytes) -> bytes:
    return b"sharpwave piece 1\0" + namespace.encode() + b"\0" + context


def _key_id(sealed: bytes) -> bytes:
    if not is_encrypted(sealed):
        raise StoreCorrupt("this is no sealed piece, or one of a later version")
    return sealed[1 : 1 + ID_BYTES]


def _wrap_piece(key: _DataKey, piece: bytes) -> bytes:
    head = bytes([FORMAT]) + key.id
    nonce = secrets.token_bytes(NONCE_BYTES)
    return head + nonce + key.cipher.encrypt(nonce, piece, _bind(key.namespace, head))


def _unwrap_piece(key: _DataKey, sealed: bytes) -> bytes:
    head = sealed[: 1 + ID_BYTES]
    nonce, wrapped = (
        sealed[len(head) : len(head) + NONCE_BYTES],
        sealed[len(head) + NONCE_BYTES : HEADER_BYTES],
    )
    return key.cipher.decrypt(nonce, wrapped, _bind(key.namespace, head))
