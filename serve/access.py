"""API keys and the namespaces they give access to."""

import hmac
from dataclasses import dataclass

from common.errors import Forbidden, InvalidInput, Unauthorized
from common.names import ALL, normal

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Principal:
    """The caller of a request: the namespaces that the API key may use."""

    namespaces: frozenset[str]

    def may(self, namespace: str) -> bool:
        return ALL in self.namespaces or namespace in self.namespaces

    def check(self, namespace: str) -> None:
        """Raises `Forbidden`."""
        if not self.may(namespace):
            raise Forbidden(f"this API key may not use namespace {namespace!r}", param="namespace")


class Access:
    """The configured API keys. Without any, every caller may use everything; `check_bind` allows that on loopback
    only."""

    def __init__(self, keys: dict[str, list[str]]) -> None:
        self._keys = {key: Principal(frozenset(map(normal, namespaces))) for key, namespaces in keys.items()}

    def principal(self, header: str | None) -> Principal:
        """Raises `Unauthorized` for a missing or unknown key."""
        if not self._keys:
            return Principal(frozenset([ALL]))
        scheme, _, given = (header or "").partition(" ")
        found = None
        for key, principal in self._keys.items():  # no early exit: the time must not tell which key is near
            if hmac.compare_digest(key.encode(), given.strip().encode()):
                found = principal
        if scheme.lower() != "bearer" or found is None:
            raise Unauthorized("an API key is needed: send 'Authorization: Bearer KEY'")
        return found


def check_bind(host: str, keys: dict[str, list[str]]) -> None:
    """Raises `InvalidInput` for an address that other machines can reach if no API key is configured."""
    if host not in LOOPBACK and not keys:
        raise InvalidInput(
            f"serve.host = {host!r} is open to other machines and serve.api_keys is empty; "
            "set a key, or bind to 127.0.0.1",
            param="serve.host",
        )
