"""Request bodies that are sent compressed: gzip is unpacked as it arrives, within a bound; others are refused."""

import zlib
from collections.abc import MutableMapping
from typing import Any

from starlette.types import Message, Receive, Scope

from common.errors import InvalidInput, TooLarge, Unsupported

PIECE = 1 << 16  # bytes that are unpacked at once
_GZIP = 16 + zlib.MAX_WBITS
_OF_THE_BODY = (b"content-encoding", b"content-length")


def too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is over the limit of {limit} bytes; send less at once", param="body")


def decoded(scope: Scope, receive: Receive, limit: int) -> tuple[Scope, Receive]:
    """The request as if it had been sent plain. Raises `Unsupported` for encodings other than gzip. The new `receive`
    raises `TooLarge` beyond `limit` bytes, packed or unpacked, and `InvalidInput` for what is not whole gzip data."""
    named = [value.decode("latin-1") for name, value in scope["headers"] if name == b"content-encoding"]
    encoding = ", ".join(named).strip().lower()
    if encoding in ("", "identity"):
        return scope, receive
    if encoding not in ("gzip", "x-gzip"):
        raise Unsupported(
            f"content-encoding {encoding[:64]!r} is not supported; send the body as gzip, or plain",
            param="content-encoding",
        )
    plain = [(name, value) for name, value in scope["headers"] if name not in _OF_THE_BODY]
    return {**scope, "headers": plain}, _Unpacked(receive, limit)


class _Unpacked:
    """A `receive` that unpacks the body of another, `PIECE` bytes a message."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._member = zlib.decompressobj(_GZIP)
        self._data, self._more, self._full = b"", True, False
        self._packed = self._unpacked = 0

    async def __call__(self) -> Message:
        while not self._data and not self._full and self._more:
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            self._take(message)
        piece = self._unpack() if self._data or self._full else b""
        waiting = bool(self._data) or self._full or self._more
        if not waiting and self._packed and not self._member.eof:
            raise InvalidInput("the body ends in the middle of its gzip data", param="body")
        return {"type": "http.request", "body": piece, "more_body": waiting}

    def _take(self, message: MutableMapping[str, Any]) -> None:
        self._data = message.get("body", b"")
        self._more = message.get("more_body", False)
        self._packed += len(self._data)
        if self._packed > self._limit:
            raise too_large(self._limit)

    def _unpack(self) -> bytes:
        if self._member.eof:  # a gzip file may have several members
            self._member = zlib.decompressobj(_GZIP)
        try:
            piece = self._member.decompress(self._data, PIECE)
        except zlib.error as error:
            raise InvalidInput(f"the body is not gzip data: {error}", param="body") from None
        self._full = len(piece) == PIECE and not self._member.eof  # there may be more behind it
        self._data = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
        self._unpacked += len(piece)
        if self._unpacked > self._limit:
            raise too_large(self._limit)
        return piece
