"""Adapter versions: list them, set an alias, retire one.

A caller sees the versions of the namespaces that its API key may use. An alias affects the requests of all callers, so
setting one needs a key for all namespaces.
"""

from fastapi import APIRouter

from common.errors import NotFound
from common.names import ALL
from serve.access import Principal
from serve.parts import Asking, Here, Json, Parts
from serve.schemas import responses as told
from serve.schemas.requests import AliasBody

router = APIRouter()


@router.get("/v1/adapters", response_model=told.AdaptersAnswer)
async def adapters(asking: Asking, parts: Here) -> Json:
    """All versions with the facts of their manifests, oldest first."""
    digests = [manifest["digest"] for manifest in parts.adapters.manifests()]
    return {"adapters": [_entry(digest, parts) for digest in digests if parts.visible(digest, asking)]}


@router.get("/v1/adapters/{name}", response_model=told.AdapterEntry)
async def adapter(name: str, asking: Asking, parts: Here) -> Json:
    """One version by its digest or by an alias."""
    return _entry(_found(name, asking, parts), parts)


@router.post("/v1/adapters/{name}/alias", response_model=told.AdapterEntry)
async def set_alias(name: str, body: AliasBody, asking: Asking, parts: Here) -> Json:
    """Have an alias name this version from the next request on; requests that run keep theirs. 409 for a version that
    could not be loaded onto the model served here."""
    asking.check(ALL)
    digest = _found(name, asking, parts)
    await parts.set_alias(body.alias, digest)
    return _entry(digest, parts)


@router.delete("/v1/adapters/{digest}", response_model=told.RetiredAnswer)
async def retire(digest: str, asking: Asking, parts: Here, aliases: bool = False) -> Json:
    """Take a version away: requests that run finish, later ones get 404. 409 while an alias names it; with
    `aliases` they go, too."""
    if not parts.visible(digest, asking):
        raise no_adapter(digest)
    if aliases:
        asking.check(ALL)
    parts.adapters.retire(digest, with_aliases=aliases)
    return {"digest": digest, "kv_blocks": await parts.engines.retire(digest)}


def _found(name: str, asking: Principal, parts: Parts) -> str:
    """The digest; raises `NotFound`."""
    digest = parts.adapters.aliases().get(name, name)
    if not parts.visible(digest, asking):
        raise no_adapter(name)
    return digest


def no_adapter(name: str) -> NotFound:
    return NotFound(f"adapter {name!r} does not exist", param="adapter", code="adapter_not_found")


def _entry(digest: str, parts: Parts) -> Json:
    aliases = [alias for alias, named in sorted(parts.adapters.aliases().items()) if named == digest]
    manifest = parts.adapters.manifest(digest)
    return {"digest": digest, "model": f"base:{digest}", "aliases": aliases, "manifest": manifest}
