"""All keyrings of a store at once, to decrypt what any shard or the engine has encrypted."""

from collections.abc import Iterable
from pathlib import Path

from common.config import StoreConfig
from common.errors import NotFound, NotReady
from stores.crypto.keyring import Keyring
from stores.crypto.master_key import read_master

_PLACES = ("shards/**/ring.json", "blocks/ring.json", "blocks/*/ring.json")


class Keyrings:
    """Decrypts pieces; encrypts none."""

    def __init__(self, rings: Iterable[Keyring]) -> None:
        self._rings = [*rings]

    def decrypt_any(self, sealed: bytes, context: bytes = b"") -> bytes:
        """See `Keyring.decrypt_any`; the piece's key may be in any keyring."""
        gone: NotFound | None = None
        for keyring in self._rings:
            try:
                return keyring.decrypt_any(sealed, context)
            except NotFound as error:
                gone = error
            except NotReady:  # not of this keyring
                continue
        raise gone or NotReady(
            "no keyring of this store holds the key of this content, nor its gravestone",
            code="key_missing",
        )


def keyring_folders(config: StoreConfig) -> list[Path]:
    """Keyring folders of every shard, of any layout, and of the KV blocks."""
    root = Path(config.keys_dir or config.dir).expanduser().resolve()
    return sorted({file.parent for place in _PLACES for file in root.glob(place)})


def read_keyrings(config: StoreConfig) -> Keyrings | None:
    """The store's keyrings; None without encryption. Raises `InvalidInput` if the master key is missing or wrong."""
    if config.master_key is None:
        return None
    master = read_master(config.master_key)
    return Keyrings(Keyring(folder, master) for folder in keyring_folders(config))
