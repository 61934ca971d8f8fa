"""/docs without the internet."""

import re

from fastapi import FastAPI
from fastapi.testclient import TestClient

from serve.http import install_error_handlers
from serve.routes import offline_docs


def test_the_page_and_all_that_it_loads_are_here():
    app = FastAPI(docs_url=None)
    install_error_handlers(app)
    app.include_router(offline_docs.router)
    client = TestClient(app)
    page = client.get("/docs")
    assert page.status_code == 200 and "://" not in page.text
    for path in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        loaded = client.get(f"/{path}")
        assert loaded.status_code == 200 and len(loaded.content) > 1000
    assert client.get("/openapi.json").json()["openapi"].startswith("3.1")
    assert (
        b"5." in re.search(rb'PACKAGE_VERSION:"([^"]+)', client.get("/docs/swagger-ui-bundle.js").content)[1]
    )
    assert client.get("/docs/redoc.standalone.js").status_code == 404
