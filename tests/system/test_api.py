"""The HTTP contract on a running instance, with real clients."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.support.answers import assert_same_answer, chat_entries
from tests.support.store_api import assert_refused

FACTS = {
    "ada": "Ada Quill lives in Lisbon.",
    "bo": "Bo Tarn works as a baker.",
    "cy": "Cy Vell keeps a goat.",
    "dee": "Dee Marn plays the harp.",
    "eli": "Eli Sorn was born in Oslo.",
}
QUESTION = [{"role": "user", "content": "Where does Ada Quill live?"}]


def write(http, namespace, memories, **more):
    return http.post("/v1/memories", json={"namespace": namespace, "memories": memories, **more})


def wait_for_blocks(http):
    deadline = time.monotonic() + 120
    while http.get("/ready").json()["engine"]["pending_blocks"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def chat(http, namespace, **more):
    memory = {"namespace": namespace, **more.pop("memory", {})}
    return http.post(
        "/v1/chat/completions", json={"messages": QUESTION, "max_tokens": 12, "memory": memory, **more}
    )


def scored(http, namespace, **more):
    """The tokens of a chat with their log-probabilities, as `assert_same_answer` compares them."""
    [choice] = chat(http, namespace, logprobs=True, top_logprobs=2, **more).json()["choices"]
    return chat_entries(choice["logprobs"]["content"])


@pytest.fixture(scope="module")
def taught(instance):
    """Namespace `facts`, written and encoded."""
    import httpx

    with httpx.Client(base_url=instance.url, timeout=180) as client:
        answer = write(client, "facts", [{"id": id, "text": text} for id, text in FACTS.items()])
        assert answer.status_code == 200, answer.text
        wait_for_blocks(client)
        yield "facts"


def test_every_kind_is_written_in_order_on_both_shards(http):
    memories = [
        {"kind": "episodic", "text": "Ada moved.", "conversation": "c1", "time": "2026-03-01T10:00:00Z"},
        {
            "kind": "relational",
            "subject": "Ada",
            "relation": "lives_in",
            "object": "Lisbon",
            "confidence": 0.9,
        },
        {"kind": "spatial", "place": "library", "relation": "left_of", "other": "cafe"},
        {"kind": "spatial", "place": "museum", "x": 3.0, "y": 4.0},
        *({"text": f"Note number {i}."} for i in range(12)),
    ]
    answer = write(http, "kinds", memories).json()
    assert (answer["written"], answer["stored"]) == (16, 16)
    assert [row["kind"] for row in answer["memories"]] == [
        memory.get("kind", "episodic") for memory in memories
    ]
    assert {row["shard"] for row in answer["memories"]} == {0, 1}
    assert all(
        row["status"] == "new" and row["anchor"] and row["gate"]["reason"] for row in answer["memories"]
    )
    found = http.get(f"/v1/memories/{answer['memories'][1]['id']}", params={"namespace": "kinds"}).json()
    assert found["object"] == "Lisbon" and "Ada" in found["text"] and found["statistics"]["usage"] == 0


def test_list_pages_through_everything_once(http, taught):
    seen, cursor = [], None
    while True:
        query = {"namespace": taught, "limit": 2, **({"cursor": cursor} if cursor else {})}
        page = http.get("/v1/memories", params=query).json()
        seen += [memory["id"] for memory in page["memories"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert sorted(seen) == sorted(FACTS)


def test_search_ranks_filters_and_traces(http, taught):
    body = {"namespace": taught, "query": "Who makes bread?", "k": 2, "trace": True}
    answer = http.post("/v1/memories/search", json=body).json()
    assert answer["results"][0]["memory"]["id"] == "bo" and len(answer["results"]) == 2
    stages = answer["trace"]["stages"]
    assert [stage["stage"] for stage in stages] == "embed dense words lexical fuse gate concert order".split()
    assert all(stage["ms"] >= 0.0 for stage in stages) and stages[1]["best"][0]["id"]
    body["filter"] = {"not": {"field": "id", "op": "eq", "value": "bo"}}
    assert http.post("/v1/memories/search", json=body).json()["results"][0]["memory"]["id"] != "bo"


@pytest.mark.parametrize("mode", ["full", "text", "prefix", "hybrid", "off"])
def test_chat_in_every_mode(http, taught, mode):
    reply = chat(http, taught, memory={"mode": mode, "k": 2}).json()
    memory, usage = reply["memory"], reply["usage"]
    assert memory["mode"] == mode and memory["fallback"] is None
    assert usage["prompt_tokens_details"]["cached_tokens"] == memory["prefix_tokens"]
    injected = {"full": 5, "off": 0}.get(mode, 2)
    assert len(memory["injected"]) == injected
    assert (memory["prefix_tokens"] > 0) == (mode in ("prefix", "hybrid"))
    if mode in ("text", "prefix", "hybrid"):
        assert memory["retrieved"][0]["id"] == "ada" and memory["retrieved"][0]["score"] > 0.5
    if mode == "text":
        assert "Lisbon" in reply["choices"][0]["message"]["content"]


def test_a_chat_that_does_not_say_how_many_gets_those_that_matter(http, taught):
    memory = chat(http, taught, memory={"mode": "prefix"}).json()["memory"]
    assert memory["injected"] == ["ada"] and len(memory["retrieved"]) == 5
    flat = chat(http, taught, memory={"mode": "prefix", "retrieval": "flat"}).json()["memory"]
    assert flat["injected"] == [found["id"] for found in flat["retrieved"]]


def test_prefix_with_one_memory_answers_as_text_does(http, taught):
    prefix, text = (scored(http, taught, memory={"mode": mode, "k": 1}) for mode in ("prefix", "text"))
    assert_same_answer(prefix, text)


def test_the_openai_client_works_streaming_too(instance, taught):
    client = openai.OpenAI(base_url=f"{instance.url}/v1", api_key="none")
    request = {"model": "base", "messages": QUESTION, "max_tokens": 12}
    memory = {"memory": {"namespace": taught, "mode": "text"}}
    whole = client.chat.completions.create(**request, extra_body=memory)
    assert "Lisbon" in whole.choices[0].message.content and whole.choices[0].finish_reason == "stop"
    chunks = list(
        client.chat.completions.create(
            **request, stream=True, stream_options={"include_usage": True}, extra_body=memory
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1
    assert [model.id for model in client.models.list()][:2] == ["base", "smollm2-135m"]
    with pytest.raises(openai.NotFoundError, match="known: base"):
        client.chat.completions.create(**{**request, "model": "gpt-4"})


def test_concurrent_requests_answer_as_alone(http, taught):
    alone = scored(http, taught, memory={"mode": "text"})
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda _: scored(http, taught, memory={"mode": "text"}), range(6)))
    for answer in together:
        assert_same_answer(answer, alone)


def test_a_client_that_leaves_does_not_hold_the_model(http, taught):
    with http.stream(
        "POST",
        "/v1/chat/completions",
        json={"messages": QUESTION, "max_tokens": 4000, "stream": True, "memory": {"mode": "off"},
              "stop": None, "temperature": 2.0, "seed": 1},
    ) as response:  # fmt: skip
        next(response.iter_lines())
    started = time.monotonic()
    assert chat(http, taught, memory={"mode": "off"}).status_code == 200
    assert time.monotonic() - started < 60  # 4,000 tokens take minutes


def test_score_one_entry_an_assistant_message(http):
    messages = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "Paris"},
        {"role": "user", "content": "And of Italy?"},
        {"role": "assistant", "content": "Rome"},
    ]
    scores = http.post("/v1/score", json={"model": "base", "messages": messages, "logprobs": 1}).json()[
        "scores"
    ]
    assert [(row["entry_index"], row["num_tokens"]) for row in scores] == [(1, 1), (3, 1)]
    assert all(-20 < row["total_logprob"] < 0 for row in scores)


def test_questions_to_an_empty_namespace_are_answered_without_memory(http):
    memory = chat(http, "nobody").json()["memory"]
    nothing = {"retrieved": [], "evidence": "none", "injected": [], "prefix_tokens": 0, "fallback": None}
    assert memory == {"mode": "prefix", **nothing}


def test_writes_are_idempotent_and_conflicts_write_nothing(http):
    item = {"id": "x1", "text": "One."}
    assert write(http, "idem", [item]).json()["memories"][0]["status"] == "new"
    assert write(http, "idem", [item]).json()["memories"][0]["status"] == "existing"
    clash = write(http, "idem", [{"id": "x2", "text": "Two."}, {"id": "x1", "text": "Other."}])
    assert (clash.status_code, clash.json()["error"]["param"]) == (409, "id")
    assert http.get("/v1/memories/x2", params={"namespace": "idem"}).status_code == 404


def test_forgetting_is_everywhere_and_has_a_receipt(http):
    write(
        http, "erase", [{"id": "keep", "text": "Ada likes tea."}, {"id": "gone", "text": "Ada has a secret."}]
    )
    wait_for_blocks(http)
    receipt = http.delete("/v1/memories/gone", params={"namespace": "erase"}).json()
    assert receipt["forgotten"] == ["gone"] and receipt["kv_blocks"] == 1 and receipt["adapters"] == []
    assert http.delete("/v1/memories/gone", params={"namespace": "erase"}).status_code == 404
    found = http.post("/v1/memories/search", json={"namespace": "erase", "query": "secret"}).json()["results"]
    assert [row["memory"]["id"] for row in found] == ["keep"]
    both = {"namespace": "erase", "all": True, "ids": ["keep"]}
    assert http.post("/v1/memories/forget", json=both).status_code == 400
    assert http.post("/v1/memories/forget", json={"namespace": "erase", "all": True}).json()["forgotten"] == [
        "keep"
    ]
    write(http, "erase", [{"id": "gone", "text": FACTS["ada"]}])  # the id holds content again
    wait_for_blocks(http)
    assert chat(http, "erase", max_tokens=1).json()["memory"]["fallback"] is None


BAD = [
    ("/v1/memories", {"memories": []}, 400, "memories"),
    ("/v1/memories", {"memories": [{"text": ""}]}, 400, "memories[0].text"),
    ("/v1/memories", {"memories": [{"text": "a"}, {"text": "b", "colour": 1}]}, 400, "memories[1].colour"),
    ("/v1/memories", {"memories": [{"kind": "olfactory", "text": "a"}]}, 400, "memories[0].kind"),
    ("/v1/memories", {"memories": [{"text": "x" * 100_000}]}, 413, "memories[0].text"),
    ("/v1/memories", {"memories": "many"}, 400, "memories"),
    ("/v1/memories", {"memories": [{"text": "a"}], "namespace": " etc"}, 400, "namespace"),
    ("/v1/memories/search", {"query": "x", "kk": 1}, 400, "kk"),
    (
        "/v1/memories/search",
        {"query": "x", "filter": {"field": "time", "op": "like", "value": 1}},
        400,
        "filter",
    ),
    ("/v1/chat/completions", {"messages": []}, 400, "messages"),
    ("/v1/chat/completions", {"messages": [{"role": "bot", "content": "x"}]}, 400, "messages"),
    ("/v1/chat/completions", {"messages": QUESTION, "memory": {"mode": "magic"}}, 400, "memory.mode"),
    ("/v1/chat/completions", {"messages": QUESTION, "memory": {"modus": "off"}}, 400, "memory.modus"),
    ("/v1/chat/completions", {"messages": QUESTION, "temperature": -1}, 400, "temperature"),
    ("/v1/chat/completions", {"messages": QUESTION, "max_tokens": 9000}, 400, "messages"),
    ("/v1/chat/completions", {"messages": QUESTION, "model": "base:0123456789abcdef"}, 404, "model"),
    ("/v1/score", {"messages": QUESTION}, 400, "messages"),
]


@pytest.mark.parametrize(("path", "body", "status", "param"), BAD)
def test_bad_input_is_named(http, path, body, status, param):
    assert_refused(http.post(path, json=body), status, param)


def test_unknown_fields_name_the_valid_ones(http):
    body = {"messages": QUESTION, "memory": {"modus": "off"}}
    message = http.post("/v1/chat/completions", json=body).json()["error"]["message"]
    assert "filter, k, kinds, mode, namespace, retrieval" in message


def test_bodies_that_are_not_json_numbers_or_too_large(http):
    headers = {"content-type": "application/json"}
    assert http.post("/v1/memories", content=b"{nope", headers=headers).status_code == 400
    nan = b'{"memories": [{"kind": "spatial", "place": "a", "x": NaN, "y": 1}]}'
    assert http.post("/v1/memories", content=nan, headers=headers).json()["error"]["param"] == "memories[0].x"
    assert http.post("/v1/memories", content=b"x" * (2 << 20), headers=headers).status_code == 413
    pieces = (b"x" * 65536 for _ in range(32))  # chunked: no content-length to go by
    assert http.post("/v1/memories", content=pieces, headers=headers).status_code == 413


def test_partial_writes_keep_the_good_ones(http):
    answer = write(http, "partial", [{"text": "good"}, {"text": ""}, {"text": "fine"}], partial=True).json()
    assert [row["status"] for row in answer["memories"]] == ["new", "refused", "new"]
    assert (answer["written"], answer["stored"]) == (3, 2)


def test_unknown_openai_parameters_are_accepted_and_listed(http):
    reply = chat(http, "nobody", reasoning_effort="high", top_k=3, presence_penalty=0.5, user="me").json()
    assert [warning.split("'")[1] for warning in reply["warnings"]] == ["reasoning_effort", "top_k"]


def test_operator_pages(http):
    assert http.get("/health").json() == {"status": "ok"}
    ready = http.get("/ready").json()
    assert ready["status"] == "ready" and len(ready["store"]["shards"]) == 2
    told = http.get("/metrics").text.splitlines()
    assert any(line.startswith("sharpwave_retrieval_requests_total ") for line in told)
    for name, metric in (
        ("gate_attempts", "gate_attempts_total"),
        ("gate_accepts", "gate_accepts_total"),
        ("duplicates", "duplicates_total"),
        ("store_size", "store_size"),
    ):
        assert f"sharpwave_{metric} {float(ready['telemetry'][name])}" in told
    assert "<title>Sharpwave</title>" in http.get("/").text
    assert "/v1/chat/completions" in json.dumps(http.get("/openapi.json").json())
    assert http.get("/docs").status_code == 200
    assert http.get("/nowhere").json()["error"]["type"] == "not_found_error"
