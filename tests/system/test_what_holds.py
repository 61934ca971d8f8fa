"""What is recalled is what holds at the time asked about: over HTTP, in search, chat, lists and filters alike."""

import pytest

LIVES = {"kind": "relational", "subject": "Ivo Brandt", "relation": "lives_in"}
CITIES = [("oslo", "Oslo", "2015-05-01"), ("turin", "Turin", "2019-03-01"), ("graz", "Graz", "2023-01-01")]
ASKED = "Where does Ivo Brandt live?"


@pytest.fixture(scope="module")
def space(instance):
    import httpx

    memories = [{**LIVES, "id": id, "object": city, "valid_from": since} for id, city, since in CITIES]
    memories += [{"id": f"e{i}", "text": f"Ivo Brandt bought lamp number {i}."} for i in range(12)]
    with httpx.Client(base_url=instance.url, timeout=180) as client:
        for memory in memories:
            client.post("/v1/memories", json={"namespace": "holds", "memories": [memory]}).raise_for_status()
    return "holds"


def search(http, space, query=ASKED, **options):
    reply = http.post("/v1/memories/search", json={"namespace": space, "query": query, **options})
    assert reply.status_code == 200, reply.text
    return reply.json()["results"]


def facts(results):
    return [r["memory"]["id"] for r in results if r["memory"]["kind"] == "relational"]


def chat(http, space, question=ASKED, **memory):
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": 4}
    reply = http.post("/v1/chat/completions", json={**body, "memory": {"namespace": space, "k": 4, **memory}})
    assert reply.status_code == 200, reply.text
    return [id for id in reply.json()["memory"]["injected"] if not id.startswith("e")]


def test_search_finds_what_holds_now_or_when_asked(http, space):
    assert facts(search(http, space)) == ["graz"]
    assert facts(search(http, space, at="2020-06-01")) == ["turin"]
    assert facts(search(http, space, at=1_500_000_000)) == ["oslo"]
    assert facts(search(http, space, "Where did Ivo Brandt live in 2020?")) == ["turin"]
    assert facts(search(http, space, "Where did Ivo Brandt live before 2018?")) == ["oslo"]
    results = search(http, space, history=True, k=20)
    assert facts(results)[0] == "graz" and {*facts(results)} == {"oslo", "turin", "graz"}
    places = [i for i, r in enumerate(results) if r["memory"]["id"] in ("oslo", "turin")]
    assert places == [len(results) - 2, len(results) - 1], "ended facts come last"
    ended = {r["memory"]["id"]: r["memory"].get("valid_to") for r in results}
    assert ended["oslo"] == 1_551_398_400.0 and ended["turin"] == 1_672_531_200.0 and ended["graz"] is None
    assert facts(search(http, space, complete=True)) == ["graz"]
    reply = http.post(
        "/v1/memories/search", json={"namespace": space, "query": "x", "at": 3, "history": True}
    )
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "at"


@pytest.mark.parametrize("mode", ["text", "prefix", "hybrid", "full"])
def test_chat_gets_what_holds(http, space, mode):
    assert chat(http, space, mode=mode) == ["graz"]
    assert chat(http, space, mode=mode, at="2020-01-01") == ["turin"]
    assert chat(http, space, "Where did Ivo Brandt live in 2016?", mode=mode) == ["oslo"]


def test_filters_see_the_computed_end(http, space):
    ended = {"field": "valid_to", "op": "lt", "value": "2020-01-01"}
    assert facts(search(http, space, filter=ended)) == ["oslo"]
    holding = {"not": {"field": "valid_to", "op": "lt", "value": "2026-01-01"}}
    assert facts(search(http, space, filter=holding)) == ["graz"]
    listed = http.get("/v1/memories", params={"namespace": space, "kind": "relational"}).json()["memories"]
    told = http.post("/v1/facts/query", json={"namespace": space, "history": True}).json()["facts"]
    ends = {memory["id"]: memory.get("valid_to") for memory in listed}
    assert ends == {fact["id"]: fact["valid_to"] for fact in told}


def test_what_a_fact_ended_holds_again_without_it(http):
    for id, city, since in CITIES[1:]:
        memory = {**LIVES, "id": id, "object": city, "valid_from": since}
        http.post("/v1/memories", json={"namespace": "again", "memories": [memory]}).raise_for_status()
    assert facts(search(http, "again")) == ["graz"]
    http.delete("/v1/memories/graz", params={"namespace": "again"}).raise_for_status()
    assert facts(search(http, "again")) == ["turin"]
    forgotten = {"namespace": "again", "filter": {"field": "valid_to", "op": "gt", "value": 0}}
    assert http.post("/v1/memories/forget", json=forgotten).json()["forgotten"] == []


def test_a_fact_told_twice_stays_with_its_other_source(http):
    for id, conversation in (("a", "x1"), ("b", "x2")):
        memory = {**LIVES, "id": id, "object": "Graz", "conversation": conversation}
        http.post("/v1/memories", json={"namespace": "twice", "memories": [memory]}).raise_for_status()
    where = {"field": "conversation", "op": "eq", "value": "x1"}
    receipt = http.post("/v1/memories/forget", json={"namespace": "twice", "filter": where}).json()
    assert receipt["forgotten"] == ["a"] and receipt["kept"] == {"a": "b"}
    (fact,) = http.post("/v1/facts/query", json={"namespace": "twice", "subject": "Ivo Brandt"}).json()[
        "facts"
    ]
    assert [source["conversation"] for source in fact["provenance"]] == ["x2"]


def test_what_lost_its_source_is_unsupported_and_not_injected(http):
    memories = [
        {"id": "graz", **LIVES, "object": "Graz"},
        {"id": "tax", "text": "Ivo Brandt pays taxes in Austria.", "context": {"derived_from": ["graz"]}},
        {
            "id": "form",
            "text": "Ivo Brandt needs the Austrian tax form.",
            "context": {"derived_from": ["tax"]},
        },
        {"id": "free", "text": "Ivo Brandt likes plum cake."},
    ]
    http.post("/v1/memories", json={"namespace": "derived", "memories": memories}).raise_for_status()
    question = "In which country does Ivo Brandt pay taxes?"

    def unsupported():
        found = {r["memory"]["id"]: r["memory"].get("unsupported") for r in search(http, "derived", question)}
        listed = http.get("/v1/memories", params={"namespace": "derived"}).json()["memories"]
        assert {m["id"]: m.get("unsupported") for m in listed} == {**found}
        return {id: missing for id, missing in found.items() if missing}

    assert unsupported() == {} and {"tax", "form"} <= {*chat(http, "derived", question, k=4)}
    moved = {**LIVES, "id": "oslo", "object": "Oslo"}
    http.post("/v1/memories", json={"namespace": "derived", "memories": [moved]}).raise_for_status()
    assert "tax" not in chat(http, "derived", question, k=8), "its source has ended"
    http.delete("/v1/memories/oslo", params={"namespace": "derived"}).raise_for_status()
    assert unsupported() == {}
    http.delete("/v1/memories/graz", params={"namespace": "derived"}).raise_for_status()
    assert unsupported() == {"tax": ["graz"], "form": ["tax"]}
    assert chat(http, "derived", question, k=8) == ["free"]
    assert search(http, "derived", question)[0]["memory"]["id"] == "free", "unsupported ones come last"
    bad = {"text": "x", "context": {"derived_from": "graz"}}
    reply = http.post("/v1/memories", json={"namespace": "derived", "memories": [bad]})
    assert reply.status_code == 400 and "derived_from" in reply.json()["error"]["message"]


def test_an_answer_says_what_it_rests_on(http, space):
    def evidence(question, **memory):
        body = {"messages": [{"role": "user", "content": question}], "max_tokens": 4}
        reply = http.post("/v1/chat/completions", json={**body, "memory": {"namespace": space, **memory}})
        return reply.json()["memory"]["evidence"], reply.json()["usage"]["prompt_tokens"]

    assert evidence("Where does Ivo Brandt live?")[0] == "strong"
    assert evidence("How deep is the Marmolada glacier?")[0] == "none"
    assert evidence("How deep is the glacier?", mode="off")[0] is None
    assert evidence("Where does Ivo Brandt live?", namespace="empty-one")[0] == "none"
    told, plain = (
        evidence("How deep is the glacier?", mode="text", k=1)[1],
        evidence("Where does Ivo live?", mode="text", k=1)[1],
    )
    assert told > plain + 10, "without evidence the question says so"


def test_the_end_of_a_long_text_is_found(http):
    """The embedder reads 256 tokens; what follows has vectors of its own."""
    filler = " ".join(
        f"On day {i} the minutes record weather, attendance and the price of rope." for i in range(48)
    )
    long = {
        "id": "minutes",
        "text": f"{filler} Then the council turned to the harbour. Odalys Ferreira was "
        "chosen as the new harbour master. The harbour master keeps the keys of the lock and the pilot boat.",
    }
    others = [
        {"id": f"o{i}", "text": f"The council of town number {i} met and chose a treasurer."}
        for i in range(20)
    ]
    http.post("/v1/memories", json={"namespace": "long", "memories": [long, *others]}).raise_for_status()
    for retrieval in ("flat", "full"):
        found = search(http, "long", "Who was chosen as the harbour master?", retrieval=retrieval, k=3)
        assert found[0]["memory"]["id"] == "minutes" and found[0]["scores"]["dense"] > 0.5
    http.delete("/v1/memories/minutes", params={"namespace": "long"}).raise_for_status()
    assert "minutes" not in [r["memory"]["id"] for r in search(http, "long", "harbour master", k=30)]
