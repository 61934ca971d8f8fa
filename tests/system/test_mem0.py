"""mem0's interface over HTTP, as its client sends it: `tests/clients/mem0_client.py` runs the client itself."""

import httpx
import pytest

ADA = {"user_id": "ada"}
SAID = [{"role": "user", "content": "x"}]


@pytest.fixture(scope="module")
def anna(guarded):
    """A client with a key of namespace `anna`, which sends it as mem0's does."""
    with httpx.Client(
        base_url=guarded.url, timeout=180, headers={"authorization": "Token key-anna"}
    ) as client:
        yield client


@pytest.fixture
def quick(anna):
    """mem0's quick start: what was added, of one user."""
    messages = [
        {"role": "user", "content": "Hi, I'm Ada. I'm a vegetarian and I'm allergic to nuts."},
        {"role": "assistant", "content": "Hello Ada! I've noted it."},
    ]
    added = told(
        anna.post("/v3/memories/add/", json={"messages": messages, "metadata": {"topic": "food"}, **ADA})
    )
    yield added["results"]
    anna.delete("/v1/memories/", params={"user_id": "*"})


def told(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()


def everything(client, **more):
    return told(client.post("/v3/memories/", json={"filters": ADA, **more}))


def test_the_quick_start(anna, quick):
    assert {"org_id", "project_id"} <= told(anna.get("/v1/ping/")).keys()
    assert [one["event"] for one in quick] == ["ADD", "ADD"] and "vegetarian" in quick[0]["memory"]
    asked = {"query": "What can I cook for Ada?", "filters": ADA, "top_k": 1, "rerank": True}
    [found] = told(anna.post("/v3/memories/search/", json=asked))["results"]
    assert found["user_id"] == "ada" and found["metadata"] == {"topic": "food"} and found["score"] > 0
    assert found["id"] in {one["id"] for one in quick} and not found["memory"].startswith("user:")
    assert told(anna.post("/v3/memories/search/", json={**asked, "threshold": 10.0}))["results"] == []
    page = everything(anna)
    assert page["count"] == 2 and page["next"] is page["previous"] is None
    assert [one["id"] for one in page["results"]] == [one["id"] for one in reversed(quick)]


def test_the_same_is_added_once(anna, quick):
    messages = [{"role": "user", "content": "I moved to Porto."}]
    for event in ("ADD", "NONE"):
        body = {"messages": messages, "run_id": "r1", **ADA}
        [again] = told(anna.post("/v3/memories/add/", json=body))["results"]
        assert again["event"] == event
    kept = told(anna.get(f"/v1/memories/{again['id']}/"))
    assert (kept["run_id"], kept["memory"]) == ("r1", "I moved to Porto.")


def test_one_memory_from_first_to_last(anna, quick):
    path = f"/v1/memories/{quick[0]['id']}/"
    changed = told(anna.put(path, json={"text": "I eat fish now.", "metadata": {"topic": "fish"}}))
    assert changed["memory"] == changed["text"] == "I eat fish now." and changed["metadata"] == {
        "topic": "fish"
    }
    versions = told(anna.get(f"{path}history/"))
    assert [one["event"] for one in versions] == ["ADD", "UPDATE"]
    assert versions[0]["old_memory"] is None and versions[1]["old_memory"] == versions[0]["new_memory"]
    assert versions[1]["new_memory"] == "I eat fish now."
    told(anna.delete(path, params={"delete_linked": "true"}))
    gone = anna.get(path)
    assert gone.status_code == 404 and gone.json()["detail"] == gone.json()["error"]["message"]
    assert anna.delete(path).status_code == anna.get(f"{path}history/").status_code == 404


def test_pages(anna, quick):
    first = told(anna.post("/v3/memories/", params={"page": 1, "page_size": 1}, json={"filters": ADA}))
    assert first["count"] == 2 and len(first["results"]) == 1 and first["previous"] is None
    second = told(anna.post(first["next"], json={"filters": ADA}))
    assert second["results"][0]["id"] == quick[0]["id"] and second["next"] is None and second["previous"]


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ({"user_id": "ada"}, 2),
        ({"user_id": "*"}, 3),
        ({"agent_id": "*"}, 1),
        ({"OR": [{"user_id": "ada"}, {"agent_id": "chef"}]}, 3),
        ({"AND": [{"user_id": "*"}, {"NOT": [{"user_id": "ada"}]}]}, 1),
        ({"user_id": {"in": ["ada", "carl"]}}, 2),
        ({"AND": [{"user_id": "ada"}, {"metadata": {"topic": "food"}}]}, 2),
        ({"AND": [{"user_id": "ada"}, {"metadata": {"topic": "sport"}}]}, 0),
        ({"AND": [{"user_id": "*"}, {"created_at": {"lt": "2020-01-01"}}]}, 0),
    ],
)
def test_filters(anna, quick, filters, count):
    other = {"messages": [{"role": "user", "content": "I like soup."}], "user_id": "ben", "agent_id": "chef"}
    told(anna.post("/v3/memories/add/", json=other))
    assert told(anna.post("/v3/memories/", json={"filters": filters}))["count"] == count


def test_who_there_is_and_all_of_one(anna, quick):
    told(
        anna.post(
            "/v3/memories/add/", json={"messages": [{"role": "user", "content": "Hello."}], "user_id": "ben"}
        )
    )
    found = told(anna.get("/v1/entities/"))["results"]
    counts = [(one["type"], one["name"], one["total_memories"]) for one in found]
    assert counts == [("user", "ada", 2), ("user", "ben", 1)]
    told(anna.delete("/v2/entities/user/ben/"))
    assert anna.delete("/v2/entities/user/ben/").status_code == 404
    told(anna.delete("/v1/memories/", params={"filters": str(ADA)}))
    assert told(anna.get("/v1/entities/"))["results"] == []


def test_several_at_once(anna, quick):
    ids = [one["id"] for one in quick]
    changes = [{"memory_id": id, "text": f"Changed {i}."} for i, id in enumerate(ids)]
    told(anna.put("/v1/batch/", json={"memories": changes}))
    assert [one["memory"] for one in everything(anna)["results"]] == ["Changed 1.", "Changed 0."]
    told(anna.request("DELETE", "/v1/batch/", json={"memories": [{"memory_id": id} for id in ids]}))
    assert everything(anna)["count"] == 0


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v3/memories/search/", {"query": "x"}),  # of whom?
        ("POST", "/v3/memories/", {"filters": {}}),
        ("POST", "/v3/memories/", {"filters": {"colour": "red"}}),
        ("POST", "/v3/memories/", {"filters": {"user_id": {"like": "a"}}}),
        ("POST", "/v3/memories/add/", {"messages": SAID}),
        ("POST", "/v3/memories/add/", {"messages": [{"role": "king", "content": "x"}], **ADA}),
        (
            "POST",
            "/v3/memories/add/",
            {"messages": SAID, "expiration_date": "2030-01-01", **ADA},
        ),
        ("DELETE", "/v1/memories/", None),
        ("DELETE", "/v1/memories/?filters=x", None),
        ("DELETE", "/v1/memories/?name=ada", None),
        ("DELETE", "/v2/entities/king/ada/", None),
    ],
)
def test_what_says_too_little_or_too_much_is_refused(anna, quick, method, path, body):
    answer = anna.request(method, path, json=body)
    assert answer.status_code == 400 and answer.json()["detail"]
    assert everything(anna)["count"] == 2


def test_tenants_are_apart(anna, quick, guarded):
    id = quick[0]["id"]
    with httpx.Client(base_url=guarded.url, headers={"authorization": "Token key-ben"}, timeout=60) as ben:
        assert everything(ben)["count"] == 0
        assert told(ben.get("/v1/entities/"))["results"] == []
        for method in ("GET", "DELETE"):
            assert ben.request(method, f"/v1/memories/{id}/").status_code == 404
        assert ben.put(f"/v1/memories/{id}/", json={"text": "mine"}).status_code == 404
        told(ben.delete("/v1/memories/", params={"user_id": "*"}))
        refused = ben.get("/v1/ping/", headers={"authorization": "Token nobody"})
        assert refused.status_code == 401 and refused.json()["detail"]
    with httpx.Client(base_url=guarded.url, headers={"authorization": "Token key-both"}, timeout=60) as both:
        assert both.post("/v3/memories/", json={"filters": ADA}).status_code == 400
        chosen = {"X-Sharpwave-Namespace": "anna"}
        assert told(both.post("/v3/memories/", json={"filters": ADA}, headers=chosen))["count"] == 2
    assert everything(anna)["count"] == 2


def test_a_chat_hears_one_user_by_a_filter(anna, quick):
    filter = {"field": "context.user_id", "op": "eq", "value": "ada"}
    body = {"messages": [{"role": "user", "content": "Is Ada a vegetarian?"}], "max_tokens": 1}
    headers = {"authorization": "Bearer key-anna"}
    heard = told(
        anna.post("/v1/chat/completions", json={**body, "memory": {"filter": filter}}, headers=headers)
    )
    assert {*heard["memory"]["injected"]} <= {one["id"] for one in quick} and heard["memory"]["injected"]


def test_without_the_setting_there_is_nothing(http):
    for method, path in (("GET", "/v1/ping/"), ("POST", "/v3/memories/"), ("GET", "/v1/entities/")):
        assert http.request(method, path, json={"filters": ADA}).status_code in (404, 405)
