"""What the routes of the stores refuse: bad input by its name, what is not there, and keys of other namespaces."""

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from serve.access import Access
from serve.http import BodyLimit, install_error_handlers
from serve.routes import memories, operations, stores, transfer
from tests.support.store_api import FACTS, assert_refused, generation, tell, write

RACE = {"key": "k", "generation": 0}
BAD = [
    ("/v1/facts/query", {"subject": ""}, 400, "subject"),
    ("/v1/facts/query", {"subject": "Ada", "query": "Ada"}, 400, "query"),
    ("/v1/facts/query", {"source": "Ada"}, 400, "target"),
    ("/v1/facts/query", {"patterns": []}, 400, "patterns"),
    ("/v1/facts/query", {"patterns": [["?x", "is_a", "?y"]], "query": "Ada"}, 400, "query"),
    ("/v1/facts/query", {"at": "yesterday"}, 400, "at"),
    ("/v1/facts/query", {"at": 1, "history": True}, 400, "at"),
    ("/v1/facts/query", {"limit": 0}, 400, "limit"),
    ("/v1/facts/query", {"subjekt": "Ada"}, 400, "subjekt"),
    ("/v1/facts/query", {"subject": "x" * 600}, 400, "subject"),
    ("/v1/places/query", {"op": "teleport"}, 400, "op"),
    ("/v1/places/query", {"op": "position"}, 400, "place"),
    ("/v1/places/query", {"op": "nearest"}, 400, "place"),
    ("/v1/places/query", {"op": "nearest", "x": 1}, 400, "place"),
    ("/v1/places/query", {"op": "within", "place": "a", "radius": -1}, 400, "radius"),
    ("/v1/places/query", {"op": "macros", "place": "a"}, 400, "place"),
    ("/v1/lines", {"key": "", "value": "x"}, 400, "key"),
    ("/v1/lines", {"key": "k", "value": ""}, 400, "value"),
    ("/v1/lines", {"key": "k", "value": "x", "prev_anchor": "zz"}, 400, "prev_anchor"),
    ("/v1/lines", {"key": "k", "value": "x" * 100_000}, 413, "text"),
    ("/v1/lines/query", {}, 400, "query"),
    ("/v1/lines/query", {"vector": [1.0, 0.0]}, 400, "vector"),
    ("/v1/lines/query", {"query": "x", "k": 0}, 400, "k"),
    ("/v1/lines/race", {**RACE, "candidates": []}, 400, "candidates"),
    ("/v1/lines/race", {**RACE, "candidates": [{"value": "x", "colour": 1}]}, 400, "candidates.0.colour"),
    ("/v1/lines/race", {**RACE, "candidates": [{"value": "x"}, {"value": "x"}]}, 400, "candidates"),
    ("/v1/lines/race", {**RACE, "candidates": [{"value": "x", "time": "?"}]}, 400, "candidates[0].time"),
    ("/v1/conversations/c/push", {"turns": []}, 400, "turns"),
    ("/v1/conversations/c/push", {"turns": [{"role": "bot", "text": "x"}]}, 400, "turns.0.role"),
    ("/v1/conversations/c/peek", {"n": -1}, 400, "n"),
    (
        "/v1/conversations/" + "c" * 600 + "/push",
        {"turns": [{"role": "user", "text": "x"}]},
        400,
        "conversation",
    ),
    ("/v1/conversations/c/pop", {"namespace": " etc"}, 400, "namespace"),
    ("/v1/memories/export", {"format": "csv"}, 400, "format"),
    ("/v1/probe", {"texts": []}, 400, "texts"),
    ("/v1/seal", {"shards": 1}, 400, "shards"),
    ("/v1/keys/rotate", {}, 400, "store.master_key"),
]


@pytest.mark.parametrize(("path", "body", "status", "param"), BAD)
def test_bad_input_is_named(http, path, body, status, param):
    assert_refused(http.post(path, json=body), status, param)


@pytest.mark.parametrize(
    ("id", "body", "status", "param"),
    [
        ("nope", {"text": "x"}, 404, "id"),
        ("m", {}, 400, "body"),
        ("m", {"text": ""}, 400, "text"),
        ("m", {"object": "x"}, 400, "object"),
        ("m", {"text": "x" * 100_000}, 413, "text"),
        ("m", {"text": "x", "generation": -1}, 400, "generation"),
        ("f1", {"place": "x"}, 400, "place"),
    ],
)
def test_bad_updates_are_named(http, id, body, status, param):
    write(http, "bad-update", {"id": "m", "text": "Ada moved."})
    tell(http, "bad-update", FACTS[0])
    known = generation(http, "bad-update", id) if id != "nope" else 1
    answer = http.patch(f"/v1/memories/{id}", json={"namespace": "bad-update", "generation": known, **body})
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text


def test_unknown_things_are_404(http):
    assert http.get("/v1/memories/nope/history").status_code == 404
    missing = http.get("/v1/lines", params={"key": "nope"})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "line_not_found")


def test_a_file_over_the_limit_is_refused_as_it_arrives():
    app = FastAPI()
    app.add_middleware(BodyLimit)
    install_error_handlers(app)
    app.include_router(transfer.router)
    app.state.access, app.state.parts, app.state.max_import_bytes = Access({}), None, 1000
    pieces = (b"x" * 400 for _ in range(3))
    with TestClient(app) as client:
        answer = client.post("/v1/memories/import", content=pieces)
    assert (answer.status_code, answer.json()["error"]["param"]) == (413, "body")


# Keys


def routes():
    """Every route of the routers, with the least that gets past its body's checks."""
    bodies = {
        "/v1/lines": {"key": "k", "value": "v"},
        "/v1/lines/query": {"query": "q"},
        "/v1/lines/bias": {"query": "q"},
        "/v1/lines/race": {**RACE, "candidates": [{"value": "v"}]},
        "/v1/places/query": {"op": "macros"},
        "/v1/probe": {"texts": ["text"]},
        "/v1/memories": {"memories": [{"text": "x"}]},
        "/v1/memories/search": {"query": "x"},
        "/v1/memories/{memory_id:path}": {"generation": 1, "text": "x"},
        "/v1/conversations/{conversation:path}/push": {"turns": [{"role": "user", "text": "x"}]},
    }
    for module in (operations, memories, stores, transfer):
        for route in module.router.routes:
            if route.path == "/v1/namespaces":  # lists those that the key may use: `test_surface.py`
                continue
            for method in route.methods:
                yield method, route.path, bodies.get(route.path, {})


@pytest.mark.parametrize(("method", "path", "body"), routes())
def test_every_route_asks_for_a_key_of_its_namespace(method, path, body):
    """The check comes first: no part is there to be reached."""
    app = FastAPI()
    install_error_handlers(app)
    for module in (operations, memories, stores, transfer):
        app.include_router(module.router)
    app.state.access = Access({"k1": ["a"]})
    app.state.parts = app.state.answers = None
    operator = path in {route.path for route in operations.router.routes} - {"/v1/keys/rotate"}
    url = path.replace("{memory_id:path}", "m").replace("{conversation:path}", "c").replace("{shard}", "0")
    query = "" if operator else "?namespace=b&key=k"
    if method in ("GET", "DELETE") or path == "/v1/memories/import":
        sent = {}
    else:
        sent = {"json": body if operator else {"namespace": "b", **body}}
        query = ""
    with TestClient(app) as client:
        assert client.request(method, url + query, **sent).status_code == 401
        answer = client.request(method, url + query, headers={"Authorization": "Bearer k1"}, **sent)
    assert (answer.status_code, answer.json()["error"]["param"]) == (403, "namespace"), answer.text
