"""Export and import of a namespace as a file: `stores/transfer.py` reads and writes it in a thread, which asks the
shards through the event loop, a page at a time."""

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from common.errors import InvalidInput
from serve.parts import Asking, Here, Json, Namespace, Parts, Vectors, fresh_op
from serve.store_schema import ExportBody
from stores import transfer
from stores.memory import check_name

router = APIRouter()

MEDIA_TYPES = {"jsonl": "application/x-ndjson", "parquet": "application/vnd.apache.parquet"}
PARQUET_MAGIC = b"PAR1"
Answer = TypeVar("Answer")


@router.post("/v1/memories/export", response_class=FileResponse)
async def export(body: ExportBody, asking: Asking, parts: Here) -> FileResponse:
    """The namespace's memories, or those of one conversation, with statistics, versions and, if wanted, vectors."""
    asking.check(body.namespace)
    path = _temporary(body.format)
    loop = asyncio.get_running_loop()
    try:
        rows = _pages(parts, body, loop)
        await asyncio.to_thread(transfer.save, path, rows, now=time.time(), vectors=body.vectors)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return FileResponse(
        path,
        media_type=MEDIA_TYPES[body.format],
        filename=f"{body.namespace.replace(':', '_')}.{body.format}",
        background=BackgroundTask(path.unlink, missing_ok=True),
    )


@router.post("/v1/memories/import")
async def import_file(
    request: Request, asking: Asking, parts: Here, namespace: Namespace = "default"
) -> dict[str, Any]:
    """Take over the memories of a file that export gave; those that are there already are passed over."""
    asking.check(namespace)
    check_name(namespace, "namespace")
    path = await _received(request)
    loop = asyncio.get_running_loop()
    try:
        return await asyncio.to_thread(_import, path, namespace, parts, loop)
    finally:
        path.unlink(missing_ok=True)


def _import(path: Path, namespace: str, parts: Parts, loop: asyncio.AbstractEventLoop) -> Json:
    statuses: Counter[str] = Counter()

    def take(rows: Sequence[Json], *, op_id: str, now: float) -> None:
        answers = _wait(parts.store.take(rows, op_id=op_id, now=now), loop)
        statuses.update(answer["status"] for answer in answers)
        texts = [(row["memory"]["id"], row["memory"]["text"]) for row in rows]
        new = [pair for pair, answer in zip(texts, answers, strict=True) if answer["status"] == "new"]
        _wait(parts.encode_soon(namespace, new), loop)

    def embed(texts: Sequence[str]) -> Vectors:
        return _wait(parts.embed(texts), loop)

    _, rows = transfer.load(path, max_text_bytes=parts.config.store.max_text_bytes, into=namespace)
    read = transfer.import_rows(rows, take, op_id=fresh_op(), now=time.time(), embed=embed)
    return {"namespace": namespace, "read": read, "new": statuses["new"], "existing": statuses["existing"]}


async def _received(request: Request) -> Path:
    """The request's body as a file, named for its format."""
    path = _temporary("jsonl")
    size = 0
    try:
        with path.open("wb") as file:
            async for piece in request.stream():
                size += file.write(piece)
        if not size:
            raise InvalidInput("the body is empty; send the file that export gave", param="body")
        with path.open("rb") as file:
            return path.rename(path.with_suffix(".parquet")) if file.read(4) == PARQUET_MAGIC else path
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _pages(parts: Parts, body: ExportBody, loop: asyncio.AbstractEventLoop) -> Iterator[Json]:
    rows = parts.store.export_rows(body.namespace, conversation=body.conversation)
    while page := _wait(_some(rows), loop):
        yield from page


async def _some(rows: AsyncIterator[Json]) -> list[Json]:
    """The next rows; none at the end."""
    found = []
    async for row in rows:
        found.append(row)
        if len(found) == transfer.BATCH:
            break
    return found


def _wait(call: Coroutine[Any, Any, Answer], loop: asyncio.AbstractEventLoop) -> Answer:
    return asyncio.run_coroutine_threadsafe(call, loop).result()


def _temporary(form: str) -> Path:
    with tempfile.NamedTemporaryFile(prefix="sharpwave-", suffix=f".{form}", delete=False) as file:
        return Path(file.name)
