"""API keys, the namespaces they give access to, and what a request gets that does not say its own.

The namespace and the memory mode of a request are said by, the first of them wins: a field of the body or of the query,
the name of the model (`model_names.py`), a header, the API key, the configuration.
"""

import dataclasses
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from starlette.datastructures import Headers

from common.api_keys import KeyRights
from common.errors import Forbidden, InvalidInput, Unauthorized
from common.names import ALL, check_name
from common.types import MODES

LOOPBACK = ("127.0.0.1", "::1", "localhost")
NAMESPACE_HEADER, MODE_HEADER = "X-Sharpwave-Namespace", "X-Sharpwave-Memory"


@dataclass(frozen=True)
class Principal:
    """The caller of a request: the namespaces that the API key may use, and the namespace and the memory mode of a
    request whose body does not say them."""

    namespaces: frozenset[str]
    namespace: str | None = None
    mode: str | None = None

    def may(self, namespace: str) -> bool:
        return ALL in self.namespaces or namespace in self.namespaces

    def check(self, namespace: str) -> None:
        """Raises `Forbidden`."""
        if not self.may(namespace):
            raise Forbidden(f"this API key may not use namespace {namespace!r}", param="namespace")

    def space(self, given: str | None) -> str:
        """The namespace of a request that itself says `given`, or nothing. Raises `Forbidden`, and `InvalidInput` where
        nothing says one."""
        found = self.namespace if given is None else given
        if found is None:
            several = ", ".join(sorted(self.namespaces - {ALL}))
            opened = f"this API key opens several: {several}" if several else "there is no default"
            raise InvalidInput(
                f"namespace: is needed, {opened}; name it in the request, as in model 'base@NAMESPACE', in the header "
                f"{NAMESPACE_HEADER}, or as the key's `namespace` in serve.api_keys",
                param="namespace",
                code="namespace_needed",
            )
        self.check(found)
        return found

    def told(self, headers: Headers) -> "Principal":
        """This caller with what the headers say. Raises `InvalidInput` for a header that says nothing valid."""
        namespace, mode = _header(headers, NAMESPACE_HEADER), _header(headers, MODE_HEADER)
        if mode is not None and mode not in MODES:
            raise InvalidInput(f"{MODE_HEADER}: must be one of {', '.join(MODES)}", param=MODE_HEADER)
        return dataclasses.replace(
            self,
            namespace=self.namespace
            if namespace is None
            else check_name(namespace, "namespace", NAMESPACE_HEADER),
            mode=mode or self.mode,
        )


class Access:
    """The configured API keys. Without any, every caller may use everything; `check_bind` allows that on loopback
    only. `default`: the namespace of requests that name none, for callers who may use all."""

    def __init__(
        self, keys: Mapping[str, KeyRights | Sequence[str]], default: str | None = "default"
    ) -> None:
        self.everyone = Principal(frozenset([ALL]), default)
        self._keys = {key: self._rights(KeyRights.model_validate(rights)) for key, rights in keys.items()}

    def _rights(self, rights: KeyRights) -> Principal:
        opened = frozenset(rights.namespaces)
        default = self.everyone.namespace if ALL in opened else None
        return Principal(opened, rights.default or default, rights.memory)

    def principal(self, header: str | None, schemes: Sequence[str] = ("bearer",)) -> Principal:
        """Raises `Unauthorized` for a missing or unknown key."""
        if not self._keys:
            return self.everyone
        scheme, _, given = (header or "").partition(" ")
        found = None
        for key, principal in self._keys.items():  # no early exit: the time must not tell which key is near
            if hmac.compare_digest(key.encode(), given.strip().encode()):
                found = principal
        if scheme.lower() not in schemes or found is None:
            raise Unauthorized("an API key is needed: send 'Authorization: Bearer KEY'")
        return found


def _header(headers: Headers, name: str) -> str | None:
    """What the header says: UTF-8, percent-encoded where it is more than ASCII. Raises `InvalidInput` if it comes more
    than once, as where a proxy adds its own to the client's, or is no UTF-8."""
    values = headers.getlist(name)
    if len({*values}) > 1:
        raise InvalidInput(f"{name}: is there {len(values)} times; send it once", param=name)
    try:
        return unquote_to_bytes(values[0].encode("latin-1")).decode() if values else None
    except UnicodeDecodeError:
        raise InvalidInput(f"{name}: must be UTF-8, percent-encoded", param=name) from None


def check_bind(host: str, keys: Mapping[str, object]) -> None:
    """Raises `InvalidInput` for an address that other machines can reach if no API key is configured."""
    if host not in LOOPBACK and not keys:
        raise InvalidInput(
            f"serve.host = {host!r} is open to other machines and serve.api_keys is empty; "
            "set a key, or bind to 127.0.0.1",
            param="serve.host",
        )
