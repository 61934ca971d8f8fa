"""Routes of memories: a fixed path is never taken for the id of a memory."""

import pytest
from starlette.routing import Match

from serve.api import app
from serve.routes import memories, transfer


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("GET", "/v1/memories/weakest", "weakest"),
        ("POST", "/v1/memories/search", "search"),
        ("POST", "/v1/memories/forget", "forget"),
        ("POST", "/v1/memories/export", "export"),
        ("POST", "/v1/memories/import", "import_file"),
        ("GET", "/v1/memories/m1", "get"),
        ("PATCH", "/v1/memories/m1", "update"),
        ("DELETE", "/v1/memories/m1", "delete"),
        ("GET", "/v1/memories/m1/history", "history"),
    ],
)
def test_fixed_paths_are_not_taken_for_ids(method, path, name):
    scope = {"type": "http", "method": method, "path": path, "headers": []}
    matching = [
        route.name
        for router in (transfer.router, memories.router)
        for route in router.routes
        if route.matches(scope)[0] is Match.FULL
    ]
    assert matching[0] == name


def test_the_application_has_them_all():
    described = app.openapi()["paths"]
    for router in (transfer.router, memories.router):
        for route in router.routes:
            assert {method.lower() for method in route.methods} <= described[route.path_format].keys()
