"""Namespaces and ids as other systems have them, over HTTP and the command line of a running instance."""

import json
import unicodedata
from urllib.parse import quote

import pytest

from common.names import encoded
from jobs import cli

SPACES = ["anna@example.org", "team/nord süd", "日本", "50% ?&#'\"\\"]
IDS = ["mail/2026/01 #1?", "a/history", "history", "Zoë", "😀%2F", "search", "..a", "x\\y:z"]


@pytest.fixture
def run(capsys, monkeypatch, tmp_path, instance):
    monkeypatch.chdir(tmp_path)

    def call(*arguments, where=("--url", instance.url)):
        monkeypatch.setattr("sys.argv", ["sharpwave", *map(str, arguments), *where, "--json"])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        assert int(caught.value.code or 0) == cli.OK, err
        return json.loads(out)

    return call


@pytest.mark.parametrize("space", SPACES)
def test_every_route_takes_any_name(http, space):
    memories = [{"id": id, "text": f"Parcel {i} went to shelf {i * 7}."} for i, id in enumerate(IDS)]
    fact = {"id": "f/1", "kind": "relational", "subject": "Ada", "relation": "lives_in", "object": "Turku"}
    body = {"namespace": space, "memories": [*memories, fact]}
    assert http.post("/v1/memories", json=body).json()["stored"] == len(IDS) + 1
    where = {"namespace": space}
    for memory in memories:
        path = f"/v1/memories/{encoded(memory['id'])}"
        found = http.get(path, params=where).json()
        assert (found["id"], found["namespace"], found["text"]) == (memory["id"], space, memory["text"])
        changed = {
            **where,
            "generation": found["statistics"]["generation"],
            "text": memory["text"] + " Again.",
        }
        assert http.patch(path, json=changed).status_code == 200
        versions = http.get(f"{path}/history", params=where).json()
        assert versions["id"] == memory["id"] and len(versions["versions"]) == 2
    listed, cursor = [], None
    while True:
        page = http.get(
            "/v1/memories", params=where | {"limit": 2} | ({"cursor": cursor} if cursor else {})
        ).json()
        listed += [each["id"] for each in page["memories"]]
        if (cursor := page["next"]) is None:
            break
    assert sorted(listed) == sorted([*IDS, "f/1"])
    hits = http.post("/v1/memories/search", json={**where, "query": "shelf 7", "k": 20}).json()["results"]
    assert set(IDS) <= {hit["memory"]["id"] for hit in hits}
    facts = http.post("/v1/facts/query", json={**where, "subject": "Ada"}).json()["facts"]
    assert [each["id"] for each in facts] == ["f/1"]
    assert http.post("/v1/lines", json={**where, "key": space, "value": "tea"}).status_code == 200
    assert http.get("/v1/lines", params={**where, "key": space}).json()["value"] == "tea"
    talk = f"/v1/conversations/{quote('a/push', safe='')}"
    turns = {**where, "turns": [{"role": "user", "text": "Hi"}]}
    assert http.post(f"{talk}/push", json=turns).json()["length"] == 1
    assert http.post(f"{talk}/peek", json={**where, "n": 9}).json()["turns"][0]["text"] == "Hi"
    receipt = http.delete(f"/v1/memories/{encoded(IDS[0])}", params=where).json()
    assert receipt["forgotten"] == [IDS[0]]
    receipt = http.post("/v1/memories/forget", json={**where, "ids": [IDS[1]]}).json()
    assert receipt["forgotten"] == [IDS[1]]
    assert http.get(f"/v1/memories/{encoded(IDS[1])}", params=where).status_code == 404
    asked = {
        "model": "base",
        "messages": [{"role": "user", "content": "Where is parcel 3?"}],
        "max_tokens": 2,
    }
    answer = http.post("/v1/chat/completions", json={**asked, "memory": {**where, "k": 2}}).json()
    assert len(answer["memory"]["injected"]) == 2


def test_one_name_in_two_unicode_forms_is_one_name(http):
    space, id = "nfc-Ångström", "Zoë/é"
    long = [unicodedata.normalize("NFD", each) for each in (space, id)]
    item = {"namespace": long[0], "memories": [{"id": long[1], "text": "Once."}]}
    assert http.post("/v1/memories", json=item).json()["memories"][0]["id"] == id
    assert (
        http.get(f"/v1/memories/{quote(long[1], safe='')}", params={"namespace": space}).json()["text"]
        == "Once."
    )
    assert len(http.get("/v1/memories", params={"namespace": long[0]}).json()["memories"]) == 1
    assert http.post("/v1/memories/forget", json={"namespace": space, "ids": [long[1]]}).json()[
        "forgotten"
    ] == [id]


@pytest.mark.parametrize("bad", ["", " a", "a\n", "\u0000", "a" * 129])
def test_what_is_no_name_is_refused_with_the_rule(http, bad):
    calls = [
        http.post("/v1/memories", json={"namespace": bad, "memories": [{"text": "x"}]}),
        http.post("/v1/memories", json={"namespace": "names", "memories": [{"id": bad, "text": "x"}]}),
        http.get("/v1/memories", params={"namespace": bad}),
        http.post("/v1/memories/search", json={"namespace": bad, "query": "x"}),
    ]
    for answer in calls:
        assert answer.status_code == 400 and "128" in answer.json()["error"]["message"], answer.text
    answer = http.post("/v1/memories", json={"namespace": "names", "memories": [{"id": "..", "text": "x"}]})
    assert answer.status_code == 400 and "reserved" in answer.json()["error"]["message"]


def test_a_context_key_with_a_dot_can_be_named_in_a_filter(http):
    item = {"text": "Mail came.", "context": {"mail.to": {"first.name": "Bo"}, "a": {"b": 1}}}
    http.post("/v1/memories", json={"namespace": "dots", "memories": [item]})
    for field, value in (("context.mail.to.first.name", "Bo"), ("context.a.b", 1)):
        spec = {"field": field, "op": "eq", "value": value}
        body = {"namespace": "dots", "query": "mail", "filter": spec}
        assert len(http.post("/v1/memories/search", json=body).json()["results"]) == 1


def test_the_command_line_takes_any_name(run, instance, tmp_path):
    space, id = "bo@example.org/ß", "mail/1 ?"
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps({"id": id, "text": "Bo keeps bees."}) + "\n")
    here = ("--namespace", space)
    assert run("teach", file, *here)["stored"] == 1
    assert run("get", id, *here)["id"] == id
    run("update", id, "--text", "Bo keeps hens.", *here)
    assert len(run("history", id, *here)["versions"]) == 2
    assert run("search", "hens", *here)["results"][0]["memory"]["id"] == id
    assert run("forget", "--id", id, "--dry-run", *here)["would_forget"] == [id]
    for form in ("jsonl", "parquet"):
        out = tmp_path / f"out.{form}"
        run("export", out, *here)
        other = f"{form} ✉ {space}"
        assert run("import", out, "--namespace", other)["new"] == 1
        assert run("get", id, "--namespace", other)["text"] == "Bo keeps hens."
    rows = run("sql", "SELECT namespace, id FROM memories", *here, where=("--store", instance.store))["rows"]
    assert rows == [[space, id]]
    assert run("forget", "--id", id, "--force", *here)["forgotten"] == [id]
