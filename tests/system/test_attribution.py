"""Retrieved, injected, influenced: three facts of an answer, over HTTP."""

import json

import pytest

from tests.support.store_api import ok, post, write

ASK = {"messages": [{"role": "user", "content": "Where does Ada Quill live?"}], "max_tokens": 12}


@pytest.fixture(scope="module")
def told(instance):
    import httpx

    with httpx.Client(base_url=instance.url, timeout=180) as http:
        texts = {"ada": "Ada Quill lives in Lisbon.", "bo": "Bo Tarn, a baker, knows Ada Quill."}
        write(http, "influence", *({"id": id, "text": text} for id, text in texts.items()))
    return "influence"


@pytest.mark.parametrize("mode", ["prefix", "text", "hybrid"])
def test_what_mattered_is_told_where_it_is_asked_for(http, told, mode):
    memory = {"namespace": told, "mode": mode, "k": 2}
    plain = ok(post(http, "/v1/chat/completions", **ASK, memory=memory))
    assert "influence" not in plain["memory"] and "attribute_ms" not in plain["timings"]
    answer = ok(post(http, "/v1/chat/completions", **ASK, memory={**memory, "attribute": True}))
    assert answer["choices"][0]["message"] == plain["choices"][0]["message"]
    found = {each["id"]: each["divergence"] for each in answer["memory"]["influence"]}
    assert [*found] == answer["memory"]["injected"] and set(found) == {"ada", "bo"}
    assert mode == "hybrid" or found["ada"] > max(0.5, found["bo"])
    assert 0 <= answer["memory"]["influence_noise"] < 1e-2 and answer["timings"]["attribute_ms"] > 0


def test_a_stream_tells_it_last(http, told):
    memory = {"namespace": told, "k": 2, "attribute": True}
    whole = ok(post(http, "/v1/chat/completions", **ASK, memory=memory))["memory"]
    with http.stream("POST", "/v1/chat/completions", json={**ASK, "memory": memory, "stream": True}) as reply:
        events = [line[6:] for line in reply.iter_lines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    *before, last = map(json.loads, events)
    assert all("memory" not in event for event in before)
    streamed = {each["id"]: each["divergence"] for each in last["memory"]["influence"]}
    assert streamed == pytest.approx(
        {each["id"]: each["divergence"] for each in whole["influence"]}, abs=1e-2
    )


def test_without_memories_the_list_is_empty(http):
    memory = {"mode": "off", "attribute": True}
    assert ok(post(http, "/v1/chat/completions", **ASK, memory=memory))["memory"]["influence"] == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n": 2}, "ask for one"),
        ({"memory": {"mode": "text", "k": 65}}, None),
        ({"memory": {"attribute": 3}}, "bool"),
    ],
)
def test_what_cannot_be_told_is_refused(http, told, changes, says):
    memory = {"namespace": told, "attribute": True, **changes.pop("memory", {})}
    reply = post(http, "/v1/chat/completions", **ASK, **changes, memory=memory)
    if says is None:  # as many as there are count, not as many as may come
        assert len(ok(reply)["memory"]["influence"]) == 2
    else:
        assert reply.status_code == 400 and says in reply.text and "memory.attribute" in reply.text
