"""Compressed bodies arrive as if they had been sent plain, however they are cut, and never larger than the limit."""

import gzip
import json

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.http import BodyLimit, install_cors, install_error_handlers

LIMIT = 1 << 20


def served(*origins):
    app = FastAPI()
    app.add_middleware(BodyLimit)
    install_error_handlers(app)
    install_cors(app, origins)
    app.state.max_body_bytes = LIMIT
    app.state.max_import_bytes = 4 * LIMIT

    async def size(request: Request) -> dict:
        total = [len(piece) async for piece in request.stream()]
        return {"bytes": sum(total), "encoding": request.headers.get("content-encoding")}

    app.post("/size")(size)
    app.post("/v1/memories/import")(size)  # streamed

    @app.post("/echo")
    async def echo(request: Request) -> dict:
        return {"said": await request.json()}

    return app


@pytest.fixture(scope="module")
def client():
    with TestClient(served("https://page.example")) as client:
        yield client


def send(client, path, data, encoding="gzip"):
    return client.post(path, content=data, headers={"content-encoding": encoding})


def cut(data, size):
    return (data[i : i + size] for i in range(0, len(data), size))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=2000), st.integers(1, 700), st.integers(1, 3))
def test_gzip_is_the_same_as_plain_however_it_is_cut(client, text, size, members):
    plain = json.dumps({"text": text}).encode()
    step = max(1, len(plain) // members)
    packed = b"".join(gzip.compress(part) for part in cut(plain, step))
    assert send(client, "/echo", cut(packed, size)).json() == client.post("/echo", content=plain).json()


@pytest.mark.parametrize(("path", "limit"), [("/size", LIMIT), ("/v1/memories/import", 4 * LIMIT)])
def test_the_limit_is_on_the_size_unpacked(client, path, limit):
    fits = send(client, path, gzip.compress(bytes(limit)))
    assert fits.json() == {"bytes": limit, "encoding": None}
    for bomb in (gzip.compress(bytes(limit + 1)), gzip.compress(bytes(200 * limit))):
        assert len(bomb) < limit  # it is not the size sent that is refused
        refused = send(client, path, bomb)
        assert (refused.status_code, refused.json()["error"]["type"]) == (413, "too_large_error")
    nothing = gzip.compress(b"") * (limit // 20 + 1)
    assert send(client, path, nothing).status_code == 413


@pytest.mark.parametrize("path", ["/size", "/v1/memories/import"])
def test_what_is_not_whole_gzip_is_refused(client, path):
    whole = gzip.compress(b"x" * 100_000)
    for bad, says in [
        (b"plain", "not gzip"),
        (whole[:-1], "in the middle"),
        (whole[: len(whole) // 2], "in the middle"),
        (whole + b"more", "not gzip"),
        (whole[:-8] + bytes(8), "not gzip"),
    ]:
        refused = send(client, path, bad)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "body")
        assert says in refused.json()["error"]["message"]
    assert send(client, path, b"").json()["bytes"] == 0


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd", "gzip, gzip", "GZIP, br", "nonsense"])
def test_other_encodings_are_named_and_refused(client, encoding):
    for path in ("/echo", "/v1/memories/import"):
        refused = send(client, path, b"{}", encoding)
        assert refused.status_code == 415 and refused.headers["accept-encoding"] == "gzip"
        assert repr(encoding.lower()) in refused.json()["error"]["message"]
        assert refused.json()["error"]["param"] == "content-encoding"
    assert send(client, "/echo", b"{}", "identity").json() == {"said": {}}
    assert send(client, "/echo", gzip.compress(b"{}"), "X-GZIP").json() == {"said": {}}


def test_a_page_of_a_listed_origin_may_call_and_no_other(client):
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    preflight = client.options("/echo", headers={"origin": "https://page.example", **asked})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://page.example"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert preflight.headers["access-control-allow-headers"] == "authorization"
    assert "access-control-allow-credentials" not in preflight.headers
    other = client.options("/echo", headers={"origin": "https://other.example", **asked})
    assert other.status_code == 400 and "access-control-allow-origin" not in other.headers
    for answer in (
        client.post("/echo", json={}, headers={"origin": "https://page.example"}),
        client.post(
            "/echo", content=b"{}", headers={"origin": "https://page.example", "content-encoding": "br"}
        ),
    ):  # a page may read refusals, too
        assert answer.headers["access-control-allow-origin"] == "https://page.example"


def test_without_the_setting_no_page_may_call():
    with TestClient(served()) as plain:
        answer = plain.post("/echo", json={}, headers={"origin": "https://page.example"})
        assert answer.status_code == 200 and "access-control-allow-origin" not in answer.headers
        asked = {"origin": "https://page.example", "access-control-request-method": "POST"}
        assert plain.options("/echo", headers=asked).status_code == 405
