"""HTTP client of the command line: returns answers, raises the server's errors as the classes of `common.errors`."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx

from common import errors
from common.errors import NotFound, NotReady, Overloaded, SharpwaveError

KINDS = {
    error.kind: error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, SharpwaveError)
}


class Client:
    """Client of one server. An overloaded server is retried for `patience_s`; a request without an answer, or
    answered "not ready", is repeated only if it is `safe` to do twice."""

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout_s: float = 300.0, patience_s: float = 60.0
    ) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s)
        self._patience_s = patience_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self._http.close()

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        return self._send("GET", path, safe=True, params={k: v for k, v in query.items() if v is not None})

    def post(self, path: str, body: dict[str, Any], *, safe: bool = False) -> dict[str, Any]:
        return self._send("POST", path, safe=safe, json=body)

    def patch(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._send("PATCH", path, safe=False, json=body)

    def delete(self, path: str, **query: Any) -> dict[str, Any]:
        return self._send("DELETE", path, safe=True, params=query)

    def find(self, path: str, **query: Any) -> dict[str, Any] | None:
        """As `get`, but None instead of `NotFound`."""
        try:
            return self.get(path, **query)
        except NotFound:
            return None

    def upload(self, path: str, file: Path, **query: Any) -> dict[str, Any]:
        """Send a file as the body."""
        with file.open("rb") as content:
            return self._once("POST", path, content=content, params=query)

    def download(self, path: str, body: dict[str, Any], file: Path) -> int:
        """Write the answer to `file` atomically; returns its size in bytes."""
        part = file.with_name(f".{file.name}.part")
        try:
            with self._http.stream("POST", path, json=body) as response, part.open("wb") as output:
                if response.is_error:
                    response.read()
                    raise _error(response)
                for piece in response.iter_bytes():
                    output.write(piece)
            part.replace(file)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        finally:
            part.unlink(missing_ok=True)
        return file.stat().st_size

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The JSON events of a streamed answer, up to its `[DONE]`."""
        try:
            with self._http.stream("POST", path, json={**body, "stream": True}) as response:
                if response.is_error:
                    response.read()
                    raise _error(response)
                for line in response.iter_lines():
                    text = line.removeprefix("data: ").strip()
                    if not line.startswith("data: ") or text == "[DONE]":
                        continue
                    event = json.loads(text)
                    if "error" in event:
                        raise _from_body(event["error"])
                    yield event
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _send(self, method: str, path: str, *, safe: bool, **options: Any) -> dict[str, Any]:
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                return self._once(method, path, **options)
            except Overloaded as error:
                pause_s = error.retry_after_s
                if time.monotonic() + pause_s > deadline:
                    raise
            except NotReady:
                pause_s = 0.5
                if not safe or time.monotonic() + pause_s > deadline:
                    raise
            time.sleep(pause_s)

    def _once(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise _error(response)
        answer = response.json()
        assert isinstance(answer, dict)
        return answer

    def _unreachable(self, error: httpx.TransportError) -> NotReady:
        return NotReady(
            f"no answer from {self.url} ({type(error).__name__}); `sharpwave status` tells whether it runs",
            code="unreachable",
        )


def _error(response: httpx.Response) -> SharpwaveError:
    try:
        found = response.json()["error"]
    except (ValueError, KeyError, TypeError):  # not ours: a proxy's page, or Serve's own plain text
        message = f"HTTP {response.status_code}: {response.text[:200].strip()}"
        return NotReady(message) if response.status_code in (502, 503, 504) else SharpwaveError(message)
    error = _from_body(found)
    if isinstance(error, Overloaded):
        error.retry_after_s = float(response.headers.get("Retry-After", error.retry_after_s))
    return error


def _from_body(found: dict[str, Any]) -> SharpwaveError:
    error = KINDS.get(found.get("type", ""), SharpwaveError)
    return error(found["message"], param=found.get("param"), code=found.get("code"))
