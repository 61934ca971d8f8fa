"""What an operator asks of all shards: seal, verify, snapshot. These need a key of every namespace."""

import time
from typing import Any

from fastapi import APIRouter

from serve.access import ALL
from serve.parts import Asking, Here
from serve.store_schema import NothingBody

router = APIRouter()


@router.post("/v1/seal")
async def seal(asking: Asking, parts: Here, body: NothingBody | None = None) -> dict[str, Any]:
    """Write `seal.json` beside each shard: its final anchor and a checksum."""
    asking.check(ALL)
    return {"seals": await parts.store.seal(now=time.time())}


@router.post("/v1/verify")
async def verify(asking: Asking, parts: Here, body: NothingBody | None = None) -> dict[str, Any]:
    """Read every log from the disk, and name each shard's first broken record."""
    asking.check(ALL)
    broken = await parts.store.verify()
    shards = [{"shard": number, "broken": fault} for number, fault in enumerate(broken)]
    return {"intact": not any(broken), "shards": shards}


@router.post("/v1/snapshot")
async def snapshot(asking: Asking, parts: Here, body: NothingBody | None = None) -> dict[str, Any]:
    """Write a snapshot of each shard now; `folder` is null where the newest one covers everything."""
    asking.check(ALL)
    made = await parts.store.snapshot()
    return {"shards": [{"shard": number, "folder": folder} for number, folder in enumerate(made)]}
