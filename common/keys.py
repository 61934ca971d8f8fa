"""Secret keys. The configuration names their location (`env:NAME`, `file:PATH`), never the key itself, because the
configuration is written into every run."""

import os
from pathlib import Path

from common.errors import InvalidInput


def read_key(source: str, name: str, *, at_least: int = 16, at_most: int = 64) -> bytes:
    """The key that `source` names: `env:VARIABLE` or `file:PATH`, without the line end.

    Raises `InvalidInput` for the setting `name` where it is missing or has the wrong number of bytes; the
    message never holds the key.
    """
    where, _, what = source.partition(":")
    if where == "env":
        key = os.environ.get(what, "").encode()
    elif where == "file":
        try:
            key = Path(what).expanduser().read_bytes().rstrip(b"\r\n")
        except OSError as error:
            raise InvalidInput(f"{name} = {source!r}: {error.strerror}", param=name) from None
    else:
        raise InvalidInput(f"{name}: must be env:NAME or file:PATH, never the key itself", param=name)
    if not at_least <= len(key) <= at_most:
        raise InvalidInput(
            f"{name} = {source!r} holds {len(key)} bytes; it must hold {at_least} to {at_most}", param=name
        )
    return key
