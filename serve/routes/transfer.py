"""Export and import of a namespace as a file. A thread reads or writes the file (`stores/transfer/files.py`) and calls
the shards through the event loop, a page at a time."""

import asyncio
import os
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from common.errors import InvalidInput
from common.names import encoded
from serve.parts import Asking, Here, Json, Parts, Vectors, fresh_op
from serve.schemas.requests import Namespace
from serve.schemas.stores import ExportBody
from stores.transfer import files

router = APIRouter()

MEDIA_TYPES = {"jsonl": "application/x-ndjson", "parquet": "application/vnd.apache.parquet"}
PARQUET_MAGIC = b"PAR1"
PIECE_BYTES = 1 << 20  # of a file sent
AT_ONCE = 4  # files being written or read; the threads that searches use are others
Answer = TypeVar("Answer")


@router.post("/v1/memories/export", response_class=StreamingResponse)
async def export(body: ExportBody, asking: Asking, parts: Here) -> StreamingResponse:
    """The namespace's memories, or those of one conversation, with statistics, versions and, if wanted, vectors,
    as one file."""
    space = asking.space(body.namespace)
    rows = _pages(parts, space, body, asyncio.get_running_loop())
    file = await _in_thread(partial(saved, body.format, rows, body.vectors))
    name = f"{encoded(space)}.{body.format}"
    headers = {
        "content-length": str(os.fstat(file.fileno()).st_size),
        "content-disposition": f'attachment; filename="{name}"',
    }
    return StreamingResponse(_pieces(file), media_type=MEDIA_TYPES[body.format], headers=headers)


def saved(form: str, rows: Iterator[Json], vectors: bool) -> BinaryIO:
    """Write the rows to an unlinked temporary file, so that no memory stays on disk if the client disconnects."""
    with tempfile.TemporaryDirectory(prefix="sharpwave-") as folder:
        path = Path(folder) / f"export.{form}"
        files.save(path, rows, now=time.time(), vectors=vectors)
        return path.open("rb")


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while piece := file.read(PIECE_BYTES):
            yield piece


@router.post("/v1/memories/import")
async def import_file(
    request: Request, asking: Asking, parts: Here, namespace: Namespace | None = None
) -> dict[str, Any]:
    """Take over the memories of a file that export gave; those that are there already are passed over."""
    space = asking.space(namespace)
    path = await _received(request)
    loop = asyncio.get_running_loop()
    try:
        return await _in_thread(partial(_import, path, space, parts, loop))
    finally:
        path.unlink(missing_ok=True)


def _import(path: Path, namespace: str, parts: Parts, loop: asyncio.AbstractEventLoop) -> Json:
    statuses: Counter[str] = Counter()

    def take(rows: Sequence[Json], *, op_id: str, now: float) -> None:
        generation = parts.store.generation
        answers = _wait(parts.store.memories.import_rows(rows, op_id=op_id, now=now), loop)
        statuses.update(answer["status"] for answer in answers)
        told = zip(rows, answers, strict=True)
        new = [(row["memory"]["text"], answer) for row, answer in told if answer["status"] == "new"]
        _wait(parts.encode_soon(namespace, new, generation=generation), loop)

    def embed(texts: Sequence[str]) -> Vectors:
        return _wait(parts.embed(texts), loop)

    _, rows = files.load(path, max_text_bytes=parts.config.store.max_text_bytes, into=namespace)
    read = files.import_rows(rows, take, op_id=fresh_op(), now=time.time(), embed=embed)
    counts = {"namespace": namespace, "read": read, "new": statuses["new"], "existing": statuses["existing"]}
    outdated = _wait(parts.outdated_since(namespace), loop) if statuses["new"] else []
    return {**counts, **({"adapters": outdated} if outdated else {})}


async def _received(request: Request) -> Path:
    """Save the request's body to a temporary file whose suffix is its format."""
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


def _pages(parts: Parts, namespace: str, body: ExportBody, loop: asyncio.AbstractEventLoop) -> Iterator[Json]:
    rows = parts.store.memories.export_rows(namespace, conversation=body.conversation)
    while page := _wait(_some(rows), loop):
        yield from page


async def _some(rows: AsyncIterator[Json]) -> list[Json]:
    """The next `files.BATCH` rows; an empty list at the end."""
    found = []
    async for row in rows:
        found.append(row)
        if len(found) == files.BATCH:
            break
    return found


def _wait(call: Coroutine[Any, Any, Answer], loop: asyncio.AbstractEventLoop) -> Answer:
    return asyncio.run_coroutine_threadsafe(call, loop).result()


async def _in_thread(work: Callable[[], Answer]) -> Answer:
    return await asyncio.get_running_loop().run_in_executor(_threads(), work)


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(AT_ONCE, thread_name_prefix="transfer")


def _temporary(form: str) -> Path:
    with tempfile.NamedTemporaryFile(prefix="sharpwave-", suffix=f".{form}", delete=False) as file:
        return Path(file.name)
