"""Tenants with API keys and clients that send no memory field: nobody hears or writes what is another's."""

import uuid

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.access import MODE_HEADER, NAMESPACE_HEADER
from tests.conftest import KEYS

OPENED = {"key-anna": {"anna"}, "key-ben": {"ben"}, "key-both": {"anna", "ben"}, "key-quiet": {"anna", "ben"}}
DEFAULTS = {"key-anna": "anna", "key-ben": "ben", "key-quiet": "ben"}
MODES = {"key-ben": "text", "key-quiet": "off"}
QUESTION = "What is the code of the vault?"
SPACES = ("anna", "ben", "carl", "default")


@pytest.fixture(scope="module")
def vaults(guarded):
    """A client; each namespace holds its own code of the vault, as the memory `NAMESPACE-vault`."""
    with httpx.Client(base_url=guarded.url, timeout=180) as client:
        for space in SPACES:
            memory = {"id": f"{space}-vault", "text": f"The code of the vault is {space}-4711."}
            body = {"namespace": space, "memories": [memory]}
            client.post("/v1/memories", json=body, headers=bearer("key-all")).raise_for_status()
        yield client


def bearer(key, namespace=None, mode=None):
    said = {NAMESPACE_HEADER: namespace, MODE_HEADER: mode}
    return {"authorization": f"Bearer {key}"} | {name: value for name, value in said.items() if value}


def chat(client, headers, model="base", memory=None):
    body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 1}
    return client.post(
        "/v1/chat/completions", json=body | ({"memory": memory} if memory else {}), headers=headers
    )


def injected(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["memory"]["injected"]


def test_a_plain_client_hears_the_namespace_of_its_key(vaults):
    client = openai.OpenAI(base_url=f"{vaults.base_url}/v1", api_key="key-ben", max_retries=0)
    asked = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 1}
    heard = client.chat.completions.create(model="base", **asked)
    assert heard.memory["injected"] == ["ben-vault"] and heard.memory["mode"] == "text"
    assert client.chat.completions.create(model="base:off", **asked).memory["injected"] == []
    continued = client.completions.create(model="smollm2-135m:text@ben", prompt=QUESTION, max_tokens=1)
    assert continued.memory["injected"] == ["ben-vault"]
    assert client.models.retrieve("base:off@ben").id == "base:off@ben"
    with pytest.raises(openai.PermissionDeniedError):
        client.chat.completions.create(model="base@anna", **asked)
    with pytest.raises(openai.NotFoundError, match="@NAMESPACE"):
        client.chat.completions.create(model="base:loud", **asked)


def test_what_says_it_first_wins(vaults):
    memory = {"namespace": "anna", "mode": "text"}
    every = bearer("key-quiet", "ben", "prefix")
    assert injected(chat(vaults, every, "base:full@ben", memory)) == ["anna-vault"]
    told = chat(vaults, every, "base:full@anna").json()["memory"]
    assert (told["mode"], told["injected"]) == ("full", ["anna-vault"])
    told = chat(vaults, bearer("key-quiet", "anna", "text")).json()["memory"]
    assert (told["mode"], told["injected"]) == ("text", ["anna-vault"])
    told = chat(vaults, bearer("key-quiet")).json()["memory"]
    assert (told["mode"], told["injected"]) == ("off", [])
    told = chat(vaults, bearer("key-all")).json()["memory"]
    assert (told["mode"], told["injected"]) == ("prefix", ["default-vault"])


def test_a_key_of_several_namespaces_says_which(vaults):
    refused = chat(vaults, bearer("key-both"))
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "namespace_needed"
    assert "anna, ben" in refused.json()["error"]["message"]
    assert injected(chat(vaults, bearer("key-both"), "base:off")) == []
    assert injected(chat(vaults, bearer("key-both", "anna"))) == ["anna-vault"]
    assert vaults.get("/v1/memories", headers=bearer("key-both")).status_code == 400


def test_every_route_has_the_default(vaults):
    headers = bearer("key-anna")
    line = {"key": "k", "value": "tea"}
    vaults.post("/v1/lines", json=line, headers=headers).raise_for_status()
    assert vaults.get("/v1/lines?key=k", headers=headers).json()["value"] == "tea"
    assert vaults.get("/v1/lines?key=k", headers=bearer("key-ben")).status_code == 404
    turn = {"turns": [{"role": "user", "text": "hello"}]}
    vaults.post("/v1/conversations/c/push", json=turn, headers=headers).raise_for_status()
    peeked = [
        vaults.post("/v1/conversations/c/peek", json={}, headers=bearer(key)).json()["turns"]
        for key in ("key-anna", "key-ben")
    ]
    assert [len(turns) for turns in peeked] == [1, 0]
    file = vaults.post("/v1/memories/export", json={}, headers=headers).text
    assert "anna-4711" in file and "ben-4711" not in file
    taken = vaults.post("/v1/memories/import", content=file, headers=bearer("key-anna", "anna"))
    assert taken.json()["namespace"] == "anna" and taken.json()["new"] == 0


NAMED = st.none() | st.sampled_from(SPACES)
MODE = st.none() | st.sampled_from(["text", "prefix", "off", "full"])
CALLS = st.sampled_from(["chat", "chat", "completions", "search", "list", "write", "get", "delete"])


@settings(
    max_examples=60, deadline=None, database=None, derandomize=True, suppress_health_check=[*HealthCheck]
)
@given(st.sampled_from(sorted(OPENED)), CALLS, NAMED, NAMED, NAMED, MODE, MODE, MODE)
def test_nobody_hears_or_writes_what_is_anothers(
    vaults, key, call, body_space, suffix_space, header_space, body_mode, suffix_mode, header_mode
):
    headers = bearer(key, header_space, header_mode)
    in_body = {} if body_space is None else {"namespace": body_space}
    generates = call in ("chat", "completions")
    mode = body_mode or suffix_mode or header_mode or MODES.get(key, "prefix")
    space = body_space or (generates and suffix_space) or header_space or DEFAULTS.get(key)
    said = body_space or (generates and suffix_space)
    written = f"{space}-{uuid.uuid4().hex}"
    if generates:
        model = (
            "base" + (f":{suffix_mode}" if suffix_mode else "") + (f"@{suffix_space}" if suffix_space else "")
        )
        body = {
            "model": model,
            "max_tokens": 1,
            "memory": in_body | ({"mode": body_mode} if body_mode else {}),
        }
        asked = (
            {"messages": [{"role": "user", "content": QUESTION}]} if call == "chat" else {"prompt": QUESTION}
        )
        path = "/v1/chat/completions" if call == "chat" else "/v1/completions"
        answer = vaults.post(path, json=body | asked, headers=headers)
    elif call == "search":
        answer = vaults.post("/v1/memories/search", json=in_body | {"query": QUESTION}, headers=headers)
    elif call == "list":
        answer = vaults.get("/v1/memories", params=in_body, headers=headers)
    elif call == "write":
        memory = {"id": written, "text": f"The code of the vault is now {written}."}
        answer = vaults.post("/v1/memories", json=in_body | {"memories": [memory]}, headers=headers)
    else:
        other = next(name for name in SPACES if name != space)
        answer = vaults.request(call.upper(), f"/v1/memories/{other}-vault", params=in_body, headers=headers)

    needs_none = generates and mode == "off" and not said
    suffix_is_foreign = generates and suffix_space is not None and suffix_space not in OPENED[key]
    if suffix_is_foreign or (not needs_none and space is not None and space not in OPENED[key]):
        assert answer.status_code == 403
    elif space is None and not needs_none:
        assert answer.status_code == 400
    elif call in ("get", "delete"):
        assert answer.status_code == 404
    else:
        assert answer.status_code == 200, answer.text
        heard = answer.text
        assert not any(f"{other}-" in heard for other in SPACES if other != space), (space, heard)
        if generates:
            told = answer.json()["memory"]
            assert told["mode"] == mode and bool(told["injected"]) == (mode != "off")
    for name in SPACES:  # what is where it belongs, and nothing else
        held = vaults.get("/v1/memories?limit=1000", params={"namespace": name}, headers=bearer("key-all"))
        ids = [memory["id"] for memory in held.json()["memories"] if not memory["id"].startswith("line-")]
        assert f"{name}-vault" in ids and all(id.startswith(f"{name}-") for id in ids)


def test_the_keys_are_the_ones_of_the_instance():
    assert {*OPENED} == {*KEYS} - {"key-all"}
