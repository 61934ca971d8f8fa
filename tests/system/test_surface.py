"""Edges of the HTTP interface on a running instance: encodings, times, namespaces, cut texts, the page."""

import gzip
import json

import httpx
import pytest

from common import config
from jobs.instance import instance as instances

ISO, SECONDS = "2026-03-01T10:00:00Z", 1772359200.0


def packed(http, path, value, encoding="gzip"):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    headers = {"content-encoding": encoding, "content-type": "application/json"}
    return http.post(path, content=gzip.compress(data) if encoding == "gzip" else data, headers=headers)


def test_a_packed_write_is_a_write(http):
    body = {"namespace": "packed", "memories": [{"id": "m", "text": "Ada keeps bees.", "time": ISO}]}
    assert packed(http, "/v1/memories", body).json()["stored"] == 1
    assert http.get("/v1/memories/m", params={"namespace": "packed"}).json()["time"] == SECONDS
    file = http.post("/v1/memories/export", json={"namespace": "packed"}).content
    again = packed(http, "/v1/memories/import?namespace=packed2", file)
    assert again.json() == {"namespace": "packed2", "read": 1, "new": 1, "existing": 0}
    refused = packed(http, "/v1/memories", body, "br")
    assert refused.status_code == 415 and "'br'" in refused.json()["error"]["message"]
    too_large = packed(http, "/v1/memories", bytes(2 << 20))
    assert too_large.status_code == 413


def test_turns_and_lines_take_both_forms_of_time(http):
    turns = [{"role": "user", "text": "a", "time": ISO}, {"role": "user", "text": "b", "time": SECONDS}]
    pushed = http.post("/v1/conversations/c/push", json={"namespace": "times", "turns": turns})
    assert pushed.json()["pushed"] == 2
    seen = http.post("/v1/conversations/c/peek", json={"namespace": "times", "n": 2}).json()["turns"]
    assert [turn["time"] for turn in seen] == [SECONDS, SECONDS]
    turns[1]["time"] = "yesterday"
    bad = http.post("/v1/conversations/c/push", json={"namespace": "times", "turns": turns})
    assert bad.status_code == 400 and bad.json()["error"]["param"] == "turns.1.time"
    assert "ISO 8601" in bad.json()["error"]["message"]
    line = {"namespace": "times", "key": "k", "value": "tea", "time": ISO}
    http.post("/v1/lines", json=line).raise_for_status()
    assert http.get("/v1/lines", params={"namespace": "times", "key": "k"}).json()["time"] == SECONDS
    for at in (ISO, SECONDS, str(SECONDS)):
        assert http.post("/v1/facts/query", json={"namespace": "times", "at": at}).status_code == 200
    bad = http.post("/v1/facts/query", json={"namespace": "times", "at": "soon"})
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "at")


def test_namespaces_are_listed(http):
    http.post("/v1/memories", json={"namespace": "listed", "memories": [{"text": "a"}, {"text": "b"}]})
    found = {row["namespace"]: row["memories"] for row in http.get("/v1/namespaces").json()["namespaces"]}
    assert found["listed"] == 2 and "not-listed" not in found


def test_an_embedding_says_where_it_cut_a_text(http):
    texts = ["short", "tea " * 300, "tea " * 254]
    answer = http.post("/v1/embeddings", json={"input": texts, "user": "u"}).json()
    assert [w for w in answer["warnings"] if w.startswith("input")] == [
        "input[1]: 256 of its 302 tokens were read, the rest is not in its vector; send shorter pieces"
    ]
    assert answer["usage"]["prompt_tokens"] == 3 + 256 + 256
    assert "warnings" not in http.post("/v1/embeddings", json={"input": texts[0]}).json()


def test_the_page_can_tell_what_chats(http):
    models = http.get("/v1/models").json()["data"]
    assert [row["id"] for row in models if row["task"] == "embedding"] == ["text-embedding-ada-002", "minilm"]
    assert http.get("/v1/models/minilm").json()["task"] == "embedding"
    assert http.get("/v1/models/base").json()["task"] == "chat"
    page = http.get("/")
    assert page.status_code == 200 and 'rel="icon"' in page.text


@pytest.mark.slow
def test_an_instance_lets_pages_of_its_setting_call(tmp_path):
    overrides = {"store.dir": str(tmp_path), "serve.port": 0, "serve.cors_origins": ["https://page.example"]}
    try:
        url = instances.up(config.load(env={}, overrides=overrides)).url
        asked = {"origin": "https://page.example", "access-control-request-method": "POST"}
        preflight = httpx.options(f"{url}/v1/memories/search", headers=asked)
        assert preflight.headers["access-control-allow-origin"] == "https://page.example"
        refused = httpx.post(f"{url}/v1/memories/search", json={}, headers=asked)
        assert refused.status_code == 400 and "access-control-allow-origin" in refused.headers
        other = httpx.get(f"{url}/health", headers={"origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers
    finally:
        instances.down(tmp_path)
