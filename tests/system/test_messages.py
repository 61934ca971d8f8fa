"""Messages as memories, what the served model finds stated in them, and updates without a generation."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from serve.extraction import stated

TALK = [
    {"role": "system", "content": "You are a helper."},
    {"role": "user", "content": "I moved to Lisbon."},
    {"role": "assistant", "content": "Noted."},
    {"role": "user", "content": [{"type": "text", "text": "My cat is called Miau."}]},
]


def write(http, namespace, **body):
    return http.post("/v1/memories", json={"namespace": namespace, **body})


def held(http, namespace):
    return http.get("/v1/memories", params={"namespace": namespace}).json()["memories"]


def test_messages_are_stored_in_order_with_their_conversation(http):
    body = {"messages": TALK, "conversation": "c1", "context": {"source": "chat"}}
    told = write(http, "messages", **body).json()
    assert [one["status"] for one in told["memories"]] == ["skipped", "new", "new", "new"]
    assert (told["written"], told["stored"]) == (4, 3) and "role system" in told["memories"][0]["gate"][
        "reason"
    ]
    found = held(http, "messages")
    assert [one["text"] for one in found] == [
        "user: I moved to Lisbon.",
        "assistant: Noted.",
        "user: My cat is called Miau.",
    ]
    assert {one["conversation"] for one in found} == {"c1"}
    assert found[0]["context"] == {"source": "chat", "role": "user", "turn": 1}
    grown = write(
        http, "messages", **{**body, "messages": [*TALK, {"role": "user", "content": "She is grey."}]}
    )
    assert [one["status"] for one in grown.json()["memories"]] == ["skipped", *["existing"] * 3, "new"]
    assert len(held(http, "messages")) == 4


def test_a_long_message_becomes_several_memories(http):
    text = " ".join(f"Sentence number {i} is about tea." for i in range(200))
    told = write(http, "long", messages=[{"role": "user", "content": text}]).json()
    assert told["written"] == told["stored"] == len(held(http, "long")) > 1


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "memories"),
        ({"messages": TALK, "memories": [{"text": "a"}]}, "memories"),
        ({"memories": [{"text": "a"}], "infer": True}, "infer"),
        ({"messages": [TALK[1], {"role": "king", "content": "x"}]}, "messages[1]"),
        ({"messages": [TALK[1], {"role": "user", "content": ""}]}, "messages[1]"),
        ({"messages": TALK, "time": "soon"}, "time"),
        ({"messages": []}, "messages"),
    ],
)
def test_bad_calls_are_refused_whole(http, body, param):
    answer = write(http, "bad-messages", **body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param
    assert held(http, "bad-messages") == []


def test_with_partial_a_bad_message_costs_itself(http):
    messages = [{"role": "king", "content": "x"}, TALK[1]]
    told = write(http, "partial-messages", messages=messages, partial=True).json()
    assert [one["status"] for one in told["memories"]] == ["refused", "new"]


def test_the_served_model_finds_what_is_stated(http):
    told = write(http, "inferred", messages=TALK, conversation="c1", infer=True).json()
    found = held(http, "inferred")
    assert told["written"] >= 1 and len(found) == told["stored"]
    if told["inferred"]:  # a small model may find nothing; then the messages are kept
        assert (
            all(one["context"] == {"inferred": True} for one in found) and told["inferred"] == told["written"]
        )
    else:
        assert [one["status"] for one in told["memories"]] == ["skipped", "new", "new", "new"]
    assert {one["conversation"] for one in found} == {"c1"}


def test_what_an_answer_states():
    lines = ["Here is the list:", "- Ada lives in Lisbon.", "* Her cat is Miau.", "2) She is 30."]
    answer = "\n".join([*lines, "- Ada lives in Lisbon.", "- She wa"])
    assert stated(answer, cut=True) == ["Ada lives in Lisbon.", "Her cat is Miau.", "She is 30."]
    assert stated("none") == stated("") == []


def test_an_update_without_a_generation_is_of_the_latest(http):
    write(http, "updates", memories=[{"id": "m", "text": "Ada likes tea."}])
    change = {"namespace": "updates", "text": "Ada likes coffee."}
    assert http.patch("/v1/memories/m", json=change).json()["status"] == "superseded"
    stale = http.patch("/v1/memories/m", json={**change, "text": "x", "generation": 0})
    assert stale.status_code == 409 and stale.json()["error"]["code"] == "stale_generation"
    assert http.patch("/v1/memories/none", json=change).status_code == 404
    fields = [{"reward": 0.5}, {"pin": True}, {"context": {"a": 1}}, {"text": "Ada likes milk."}]
    with ThreadPoolExecutor(4) as pool:  # each changes another field, and none is lost
        sent = [
            pool.submit(http.patch, "/v1/memories/m", json={"namespace": "updates", **one}) for one in fields
        ]
        assert [one.result().status_code for one in sent] == [200] * 4
    now = http.get("/v1/memories/m", params={"namespace": "updates"}).json()
    assert {name: now[name] for one in fields for name in one} == {
        k: v for one in fields for k, v in one.items()
    }
