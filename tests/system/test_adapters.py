"""Adapter versions of a running instance: listed, named, retired, and all of it while requests use them."""

import threading
import time
from pathlib import Path

import httpx
import pytest
from transformers import LlamaConfig

from benchmarks.random_adapters import random_adapters
from models.weights.adapters import AdapterStore
from tests.support.adapters import B, change_tensors

QUESTION = [{"role": "user", "content": "Where does Ada Quill live?"}]


def ask(http, model):
    memory = {"namespace": "versions", "k": 1}
    body = {"model": model, "messages": QUESTION, "max_tokens": 8, "memory": memory}
    return http.post("/v1/chat/completions", json=body)


def told(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


@pytest.fixture
def versions(instance, loaded, trained, http):
    """The store of the running instance and two digests in it, the first of which is `latest`."""
    store = AdapterStore(Path(instance.store) / "adapters")
    manifest = {"namespace": "versions", "model_digest": loaded.digest, "memory_ids": ["ada"]}
    # The first is the newer one.
    dated = [{**manifest, "created": created} for created in (2.0, 1.0)]
    digests = [store.publish(*version, alias=None) for version in zip(trained, dated, strict=True)]
    store.set_alias("latest", digests[0])
    memories = [{"id": "ada", "text": "Ada Quill lives in Lisbon."}]
    http.post("/v1/memories", json={"namespace": "versions", "memories": memories}).raise_for_status()
    yield store, digests, lambda digest: store.publish(trained[digests.index(digest)], manifest, alias=None)
    for manifest in store.manifests():
        http.delete(f"/v1/adapters/{manifest['digest']}", params={"aliases": True}).raise_for_status()
    assert http.get("/v1/adapters").json() == {"adapters": []}


def test_versions_are_listed_named_and_retired(http, versions, instance):
    _, (one, two), _ = versions
    listed = http.get("/v1/adapters").json()["adapters"]
    assert {row["digest"]: row["aliases"] for row in listed} == {one: ["latest"], two: []}
    assert listed[0]["manifest"]["memory_ids"] == ["ada"]
    assert http.get("/v1/adapters/latest").json()["digest"] == one
    assert http.post(f"/v1/adapters/{two}/alias", json={"alias": "best"}).json()["aliases"] == ["best"]
    assert {f"base:{one}", "base:best"} <= {row["id"] for row in http.get("/v1/models").json()["data"]}
    ask(http, "base:best")  # queues the block of this version
    wait_for_blocks(http)
    refused = http.delete(f"/v1/adapters/{two}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "adapter_in_use")
    assert http.delete(f"/v1/adapters/{two}", params={"aliases": True}).json() == {
        "digest": two,
        "kv_blocks": 1,
    }
    for name in (f"base:{two}", "base:best"):
        assert ask(http, name).status_code == 404
    for path in (two, "best", "nope"):
        assert http.get(f"/v1/adapters/{path}").json()["error"]["code"] == "adapter_not_found"
    assert http.post(f"/v1/adapters/{one}/alias", json={"alias": "../x"}).status_code == 400
    assert ask(http, "base:latest").status_code == 200


def lives_in(town, since):
    return {"id": town.lower(), "kind": "relational", "subject": "Ivo Brandt", "relation": "lives_in", "object": town,
            "valid_from": since}  # fmt: skip


def move(http):
    http.post("/v1/memories", json={"namespace": "versions", "memories": [lives_in("Graz", "2023-01-01")]})


def move_by_import(http):
    """From another namespace, where the old fact is not known."""
    moved = {"namespace": "moved", "memories": [lives_in("Graz", "2023-01-01")]}
    http.post("/v1/memories", json=moved).raise_for_status()
    file = http.post("/v1/memories/export", json={"namespace": "moved"}).content
    http.post("/v1/memories/import", params={"namespace": "versions"}, content=file).raise_for_status()


def patch(http):
    changed = {"namespace": "versions", "generation": 0, "valid_to": "2024-01-01"}
    generation = http.get("/v1/memories/oslo", params={"namespace": "versions"}).json()["statistics"][
        "generation"
    ]
    http.patch("/v1/memories/oslo", json={**changed, "generation": generation}).raise_for_status()


def erase(http):
    http.delete("/v1/memories/oslo", params={"namespace": "versions"}).raise_for_status()


@pytest.mark.parametrize("way", [move, move_by_import, patch, erase])
def test_what_was_trained_on_a_fact_that_ends_loses_its_alias(http, versions, loaded, tmp_path, way):
    store, (one, _), _ = versions
    facts = {"namespace": "versions", "memories": [lives_in("Oslo", "2015-01-01")]}
    http.post("/v1/memories", json=facts).raise_for_status()
    manifest = {
        "namespace": "versions",
        "model_digest": loaded.digest,
        "memory_ids": ["oslo"],
        "created": 3.0,
    }
    folder = random_adapters(loaded.model.config, tmp_path)[0]
    change_tensors(folder, lambda tensors: [tensor.mul_(0.5) for tensor in tensors.values()])
    trained = store.publish(folder, manifest, alias="latest")
    assert store.aliases()["latest"] == trained != one
    way(http)
    assert store.aliases()["latest"] == one, "what was trained on other memories"
    for namespace in ("versions", "moved"):
        http.post("/v1/memories/forget", json={"namespace": namespace, "all": True}).raise_for_status()


def test_an_alias_never_names_what_does_not_load(http, versions, instance, loaded, tmp_path):
    store, (one, two), _ = versions
    manifest = {"namespace": "versions", "model_digest": loaded.digest}
    narrow = LlamaConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=99)
    narrow = store.publish(random_adapters(narrow, tmp_path)[0], manifest, alias=None)
    other_base = tmp_path / "adapter-2"
    other_base = store.publish(other_base, {**manifest, "model_digest": "0" * 16}, alias=None)
    change_tensors(store.path(two), lambda tensors: tensors.pop(B))
    for digest, code in [
        (narrow, "adapter_does_not_fit"),
        (other_base, "adapter_of_another_base"),
        (two, "adapter_damaged"),
    ]:
        refused = http.post(f"/v1/adapters/{digest}/alias", json={"alias": "latest"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, code)
        asked = ask(http, f"base:{digest}")
        assert (asked.status_code, asked.json()["error"]["code"]) == (409, code)
    listed = {row["id"] for row in http.get("/v1/models").json()["data"]}
    assert f"base:{other_base}" not in listed and {f"base:{one}", "base:latest"} <= listed
    assert http.get("/v1/adapters/latest").json()["digest"] == one
    assert told(ask(http, "base:latest")) and told(ask(http, "base"))


def wait_for_blocks(http):
    deadline = time.monotonic() + 120
    while http.get("/ready").json()["engine"]["pending_blocks"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("cycles", [1, 8])
def test_versions_come_and_go_under_load(http, versions, instance, cycles):
    """No request fails but those that name a retired version, and every answer is its version's own."""
    _, (one, two), publish = versions
    alone = {digest: told(ask(http, f"base:{digest}")) for digest in (one, two)} | {
        "base": told(ask(http, "base"))
    }
    assert len({*alone.values()}) == 3
    may_be = {
        "base": {alone["base"]},
        "base:latest": {alone[one], alone[two]},
        f"base:{one}": {alone[one]},
        f"base:{two}": {alone[two]},
    }
    done, wrong, counts = threading.Event(), [], dict.fromkeys(may_be, 0)

    def client(offset):
        with httpx.Client(base_url=instance.url, timeout=180) as own:
            for i in range(offset, 10_000):
                if done.is_set():
                    return
                model = [*may_be][i % len(may_be)]
                answer = ask(own, model)
                if answer.status_code == 404 and model in (f"base:{one}", f"base:{two}"):
                    continue
                counts[model] += 1
                if answer.status_code != 200 or told(answer) not in may_be[model]:
                    wrong.append((model, answer.text))

    clients = [threading.Thread(target=client, args=(i,)) for i in range(4)]
    for thread in clients:
        thread.start()
    try:
        for old, new in [(one, two), (two, one)] * cycles:
            http.post(f"/v1/adapters/{new}/alias", json={"alias": "latest"}).raise_for_status()
            http.delete(f"/v1/adapters/{old}").raise_for_status()
            assert ask(http, f"base:{old}").status_code == 404
            assert told(ask(http, "base:latest")) == alone[new]
            publish(old)
            assert told(ask(http, f"base:{old}")) == alone[old]
    finally:
        done.set()
        for thread in clients:
            thread.join()
    assert not wrong and all(counts.values()), (wrong[:3], counts)
