"""Operations on all shards (seal, verify, snapshot, probe) or on one (restart), which need an API key for all
namespaces; and the rotation of a namespace's data key, which needs a key for that namespace."""

import time
from typing import Any

from fastapi import APIRouter

from common.names import ALL
from serve.parts import Asking, Here
from serve.schemas.stores import NothingBody, ProbeBody, RotateBody
from stores.erasure.disk_probe import Canaries

router = APIRouter()


@router.post("/v1/seal")
async def seal(asking: Asking, parts: Here, body: NothingBody | None = None) -> dict[str, Any]:
    """Write `seal.json` beside the shards: where each one's chain stands, and a checksum."""
    asking.check(ALL)
    return await parts.store.chain.seal(now=time.time())


@router.post("/v1/verify")
async def verify(asking: Asking, parts: Here, body: NothingBody | None = None) -> dict[str, Any]:
    """Read every log from the disk, and name each shard's first broken record; the last seal counts, too, and
    `sealed` says when that was made: null where these logs have none."""
    asking.check(ALL)
    seal = await parts.store.chain.sealed()
    broken = await parts.store.chain.verify(seal["shards"])
    shards = [{"shard": number, "broken": fault} for number, fault in enumerate(broken)]
    return {"intact": not any(broken), "sealed": seal["sealed"], "notice": seal["notice"], "shards": shards}


@router.post("/v1/snapshot")
async def snapshot(asking: Asking, parts: Here, body: NothingBody | None = None) -> dict[str, Any]:
    """Write a snapshot of each shard now; `folder` is null where the newest one covers everything."""
    asking.check(ALL)
    made = await parts.store.snapshot()
    return {
        "shards": [{"shard": number, "folder": folder and str(folder)} for number, folder in enumerate(made)]
    }


@router.post("/v1/shards/{shard}/restart")
async def restart(shard: int, asking: Asking, parts: Here, body: NothingBody | None = None) -> dict[str, Any]:
    """End a shard's process and start it anew, so that its log is opened again; returns when it answers."""
    asking.check(ALL)
    return await parts.store.restart(shard)


@router.post("/v1/probe")
async def probe(body: ProbeBody, asking: Asking, parts: Here) -> dict[str, Any]:
    """Look for texts in every file of the store, the bytes of erased pages included, and in every shard."""
    asking.check(ALL)
    vectors = await parts.embed(body.texts) if body.vectors else ()
    places = await parts.store.erasure.probe(
        Canaries(texts=body.texts, vectors=[*vectors], fragment=body.fragment)
    )
    return {"clean": not any(place["found"] or place["unchecked"] for place in places), "places": places}


@router.post("/v1/keys/rotate")
async def rotate_key(body: RotateBody, asking: Asking, parts: Here) -> dict[str, Any]:
    """Wrap everything that the shards hold of a namespace by a fresh data key, and destroy the old one; `rotated`
    is false where a disk had no room to: there the old key stays beside the new one."""
    space = asking.space(body.namespace)
    return {"namespace": space, "rotated": await parts.store.erasure.rotate_key(space)}
