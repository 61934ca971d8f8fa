"""Unknown parameters of URLs, on every route of the real application."""

import re

import pytest
from fastapi.testclient import TestClient

from serve.access import Access
from serve.api import app
from serve.telemetry import Telemetry


@pytest.fixture(scope="module")
def client():
    app.state.access, app.state.telemetry = Access({}), Telemetry()
    app.state.max_body_bytes = app.state.max_import_bytes = 1 << 20
    app.state.parts = app.state.answers = None  # nobody gets that far
    return TestClient(app, raise_server_exceptions=False)


ROUTES = [
    (method.upper(), re.sub(r"\{\w+\}", "1", path))
    for path, methods in app.openapi()["paths"].items()
    for method in methods
] + [("GET", "/docs"), ("GET", "/")]


def test_all_routes_are_among_them():
    assert {
        ("GET", "/v1/memories"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/docs"),
        ("GET", "/ready"),
    } <= {*ROUTES}


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_an_unknown_parameter_is_refused(client, method, path):
    answer = client.request(method, path, params={"user_id": "bob"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "user_id")
    assert "valid here: " in error["message"] or "takes none" in error["message"]


def test_the_valid_ones_are_named(client):
    error = client.get("/v1/memories?namespace=a&user_id=bob").json()["error"]
    assert error["message"].endswith("valid here: conversation, cursor, kind, limit, namespace")
