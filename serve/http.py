"""Shared by all routes: the format of errors, the limit on bodies, and which other origins may call."""

import contextlib
import json
import re
from collections.abc import AsyncIterable, Iterable, Sequence
from typing import Any, get_args
from urllib.parse import unquote

import ray.exceptions
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from ray.serve.exceptions import RayServeException
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.errors import InvalidInput, NotReady, Overloaded, SharpwaveError, Unsupported
from serve.encodings import decoded, too_large

SLASH = "\ufdd0"  # stands for a %2F in a path; a character that Unicode leaves to the inside of programs
STREAMED = ("/v1/memories/import",)
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # an escape that may be half a character


def unwrap(error: BaseException) -> SharpwaveError:
    """The `SharpwaveError` behind an error, also if it crossed a process. Any other error is an internal one."""
    cause: Any = getattr(error, "cause", None) if isinstance(error, ray.exceptions.RayError) else None
    for found in (cause, error):
        if isinstance(found, SharpwaveError) and not isinstance(found, ray.exceptions.RayTaskError):
            return found
    if isinstance(error, TimeoutError | ray.exceptions.GetTimeoutError):
        return NotReady("a part of the system did not answer in time; retry")
    if isinstance(error, ray.exceptions.RayActorError | RayServeException):
        return NotReady(f"a part of the system is restarting: {type(error).__name__}; retry")
    return SharpwaveError(f"{type(error).__name__}: {error}".splitlines()[0])


def respond(error: BaseException) -> JSONResponse:
    ours = unwrap(error)
    headers = {"Retry-After": f"{ours.retry_after_s:g}"} if isinstance(ours, Overloaded) else None
    return JSONResponse(ours.to_dict(), status_code=ours.status, headers=headers)


class HeldStream(StreamingResponse):
    """A stream of events that leaves the context manager `held` when it ends, for any reason."""

    def __init__(
        self, events: AsyncIterable[str], held: contextlib.AbstractAsyncContextManager, *, media_type: str
    ) -> None:
        super().__init__(events, media_type=media_type)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)


def install_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(SharpwaveError)
    async def ours(_: Request, error: SharpwaveError) -> JSONResponse:
        return respond(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return respond(explain(error, request))

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        kind = "not_found_error" if error.status_code == 404 else "invalid_request_error"
        body = {"message": str(error.detail), "type": kind, "param": None, "code": kind}
        return JSONResponse({"error": body}, status_code=error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def other(_: Request, error: Exception) -> JSONResponse:
        return respond(error)


def install_cors(app: FastAPI, origins: Sequence[str]) -> None:
    """Let pages of these origins call the interface from a browser. Outermost, so that refusals have the headers, too.

    Without `allow_credentials`: an API key is sent by the page itself, in a header."""
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[*origins],
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=["*"],
            expose_headers=["Retry-After"],
        )


def explain(error: RequestValidationError, request: Request) -> InvalidInput:
    """The first validation error as name, value, rule; for an unknown field, with the valid ones."""
    first = error.errors()[0]
    names = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    where = ".".join(names) or "body"
    if first["type"] == "json_invalid":
        return InvalidInput(f"the body is not JSON: {first.get('ctx', {}).get('error', '')}", param="body")
    if first["type"] == "extra_forbidden":
        valid = ", ".join(sorted(_fields(request, names[:-1])))
        return InvalidInput(f"unknown field {where!r}; valid here: {valid}", param=where)
    value = repr(first.get("input"))
    return InvalidInput(f"{where} = {value[:80]}: {first['msg']}", param=where)


def _fields(request: Request, path: list[str]) -> Iterable[str]:
    """Names of the fields that the route's body has at `path`."""
    model = _model(request.scope["route"].body_field.field_info.annotation)
    for name in path:
        if not name.isdigit():  # a place in a list
            model = _model(model.model_fields[name].annotation)
    return model.model_fields


def _model(annotation: Any) -> Any:
    """The pydantic class in an annotation: the class itself, or inside a list or union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model, get_args(annotation))), None)


class EncodedSlashes:
    """Middleware: a `%2F` in a path is part of a name and does not divide the path. Routes get it back with `whole`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = scope.get("raw_path") or b""
        if scope["type"] == "http" and b"%2f" in raw.lower():
            parts = raw.partition(b"?")[0].decode("latin-1").split("/")
            scope = {**scope, "path": "/".join(unquote(part).replace("/", SLASH) for part in parts)}
        await self._app(scope, receive, send)


def whole(name: str) -> str:
    """A parameter of a path as the client meant it."""
    return name.replace(SLASH, "/")


class BodyLimit:
    """Middleware that refuses a body over `app.state.max_body_bytes` with 413, by its header or as it arrives. Of a
    gzip body that is the size unpacked; other encodings get 415.
    Bodies of the `STREAMED` paths are not buffered, and limited by `app.state.max_import_bytes`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        streamed, state = scope["path"] in STREAMED, scope["app"].state
        limit = state.max_import_bytes if streamed else state.max_body_bytes
        try:
            scope, receive = decoded(scope, receive, limit)
            if streamed:
                receive = _counted(receive, limit)
            else:
                body = await _whole(scope, receive, limit)
                if body is None:
                    return
                receive = _replay(body, receive)
        except SharpwaveError as error:
            await _send_json(send, error)
            return
        await self._app(scope, receive, send)


async def _whole(scope: Scope, receive: Receive, limit: int) -> bytes | None:
    """The body, or None if the client left. Raises `TooLarge`, and `InvalidInput` for text that is no Unicode."""
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if declared.isdigit() and int(declared) > limit:
        raise too_large(limit)
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > limit:
            raise too_large(limit)
    if SURROGATE.search(body) and not _whole_characters(body):
        raise InvalidInput("the body holds half a surrogate pair", param="body")
    return bytes(body)


def _counted(receive: Receive, limit: int) -> Receive:
    """Raises `TooLarge` in the route that reads on."""
    size = 0

    async def counted() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > limit:
            raise too_large(limit)
        return message

    return counted


def _whole_characters(body: bytes | bytearray) -> bool:
    """Whether every string of the JSON can be encoded as UTF-8. Invalid JSON is left to the route to refuse."""
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    except (ValueError, RecursionError):
        return True
    return True


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _send_json(send: Send, error: SharpwaveError) -> None:
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    if isinstance(error, Unsupported):
        headers.append((b"accept-encoding", b"gzip"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(error.to_dict()).encode()})
