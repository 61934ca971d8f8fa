"""The routes of the stores on a running instance, each in a namespace of its own."""

import json
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from serve.routes import transfer
from tests.support.store_api import FACTS, generation, ok, post, tell, write

# Versions


def test_a_new_version_is_found_and_the_old_one_is_history(http):
    write(http, "versions", {"id": "m", "text": "Ada lives in Lisbon.", "context": {"source": "chat"}})
    body = {"namespace": "versions", "generation": generation(http, "versions", "m")}
    new = ok(http.patch("/v1/memories/m", json={**body, "text": "Ada lives in Porto."}))
    assert (new["status"], new["supersedes"]) == ("superseded", body["generation"])
    found = ok(http.get("/v1/memories/m", params={"namespace": "versions"}))
    assert found["text"] == "Ada lives in Porto." and found["context"] == {"source": "chat"}
    versions = ok(http.get("/v1/memories/m/history", params={"namespace": "versions"}))["versions"]
    assert [v["content"]["text"] for v in versions] == ["Ada lives in Porto.", "Ada lives in Lisbon."]
    hit = ok(post(http, "/v1/memories/search", namespace="versions", query="Porto"))["results"][0]
    assert hit["memory"]["seq"] == new["seq"]


def test_a_stale_generation_changes_nothing(http):
    write(http, "stale", {"id": "m", "text": "One."})
    body = {"namespace": "stale", "generation": generation(http, "stale", "m"), "text": "Two."}
    ok(http.patch("/v1/memories/m", json=body))
    late = http.patch("/v1/memories/m", json={**body, "text": "Three."})
    assert (late.status_code, late.json()["error"]["code"]) == (409, "stale_generation")
    assert late.json()["error"]["param"] == "generation"
    assert len(ok(http.get("/v1/memories/m/history", params={"namespace": "stale"}))["versions"]) == 2


def test_a_changed_fact_says_so_in_its_text_and_in_the_graph(http):
    tell(http, "refact", FACTS[0])
    body = {"namespace": "refact", "generation": generation(http, "refact", "f1"), "object": "Faro"}
    ok(http.patch("/v1/memories/f1", json=body))
    assert ok(http.get("/v1/memories/f1", params={"namespace": "refact"}))["text"] == "Ada lives in Faro."
    facts = ok(post(http, "/v1/facts/query", namespace="refact", subject="Ada", history=True))["facts"]
    assert [fact["object"] for fact in facts] == ["Faro"]


def test_decay_lists_the_weakest_first(http):
    write(http, "weak", {"id": "a", "text": "Ada has a goat."}, {"id": "b", "text": "Bo bakes bread."})
    found = ok(http.get("/v1/memories/weakest", params={"namespace": "weak", "n": 1}))["memories"]
    assert len(found) == 1 and 0.99 < found[0]["strength"] <= 1.0


def test_a_partial_cue_is_completed(http):
    write(http, "cue", *({"id": str(i), "text": text} for i, text in enumerate(TEXTS)))
    body = {"namespace": "cue", "query": "goat called", "k": 2, "complete": True}
    results = ok(post(http, "/v1/memories/search", **body))["results"]
    assert results[0]["memory"]["id"] == "1" and len(results) == 2
    assert results[0]["scores"]["completed"] > results[0]["scores"]["dense"]
    behind = ok(post(http, "/v1/memories/search", **body, offset=1, trace=True))
    assert behind["results"][0] == results[1]
    assert [stage["stage"] for stage in behind["trace"]["stages"]] == ["embed", "complete"]


def test_search_goes_page_by_page(http):
    write(http, "pages", *({"id": f"n{i}", "text": f"Note number {i} of Ada."} for i in range(7)))
    body = {"namespace": "pages", "query": "Ada's notes", "k": 3}
    pages = [ok(post(http, "/v1/memories/search", **body, offset=o))["results"] for o in (0, 3, 6, 9)]
    ids = [hit["memory"]["id"] for page in pages for hit in page]
    assert [len(page) for page in pages] == [3, 3, 1, 0] and len({*ids}) == 7


TEXTS = [
    "Ada moved to Lisbon in spring.",
    "Cy keeps a goat called Nell.",
    "Bo works as a baker.",
    "Dee plays the harp at night.",
]

# Facts


def test_facts_aggregate_contradict_and_are_routed(http):
    first, again, other, routed = tell(
        http,
        "schema",
        FACTS[0],
        {
            "id": "t2",
            "subject": "ada",
            "relation": "lives in",
            "object": "lisbon",
            "valid_from": "2020-06-01",
        },
        {"id": "f9", "subject": "Ada", "relation": "lives_in", "object": "Porto", "valid_from": "2024-01-01"},
        {"id": "r1", "subject": "She", "relation": "likes", "object": "tea"},
    )
    assert first["status"] == "new"
    assert (again["status"], again["id"]) == ("aggregated", "f1") and again["confidence"] > 0.9
    assert (other["status"], other["closes"]) == ("new", ["f1"])
    assert (routed["status"], routed["kind"]) == ("routed", "episodic") and "pronoun" in routed["gate"][
        "reason"
    ]
    [now] = ok(post(http, "/v1/facts/query", namespace="schema", subject="Ada"))["facts"]
    assert now["object"] == "Porto"
    [then] = ok(post(http, "/v1/facts/query", namespace="schema", subject="Ada", at="2021-01-01"))["facts"]
    assert then["object"] == "Lisbon" and [told["id"] for told in then["provenance"]] == ["f1", "t2"]
    query = {"namespace": "schema", "subject": "Ada", "relation": "lives_in", "history": True}
    assert len(ok(post(http, "/v1/facts/query", **query))["facts"]) == 2
    first = ok(post(http, "/v1/facts/query", **query, limit=1))
    assert len(first["facts"]) == 1 and first["more"]
    ok(http.delete("/v1/memories/f9", params={"namespace": "schema"}))
    [left] = ok(post(http, "/v1/facts/query", namespace="schema", subject="Ada"))["facts"]
    assert left["object"] == "Lisbon" and left["valid_to"] is None
    assert "valid_to" not in ok(http.get("/v1/memories/f1", params={"namespace": "schema"}))


def test_facts_are_followed_over_hops(http):
    tell(http, "hops", *FACTS)
    near = ok(post(http, "/v1/facts/query", namespace="hops", query="Which country is Ada in?", k=3))["facts"]
    assert {fact["id"] for fact in near} == {"f1", "f2", "f3"} and near[0]["score"] >= near[-1]["score"]
    path = ok(post(http, "/v1/facts/query", namespace="hops", source="Ada", target="Portugal"))
    assert path["found"] and [fact["id"] for fact in path["facts"]] == ["f1", "f2"]
    nowhere = ok(post(http, "/v1/facts/query", namespace="hops", source="Ada", target="Mars"))
    assert nowhere == {"facts": [], "found": False}
    assert ok(post(http, "/v1/facts/query", namespace="hops-elsewhere", subject="Ada"))["facts"] == []
    patterns = [["?who", "lives_in", "?city"], ["?city", "located_in", "?land"]]
    joined = ok(post(http, "/v1/facts/query", namespace="hops", patterns=patterns))
    assert not joined["more"]
    [found] = joined["solutions"]
    assert found["values"] == {"?who": "Ada", "?city": "Lisbon", "?land": "Portugal"}
    assert [fact["id"] for fact in found["facts"]] == ["f1", "f2"]
    every = ok(post(http, "/v1/facts/query", namespace="hops", patterns=[["?a", "?b", "?c"]], limit=2))
    assert len(every["solutions"]) == 2 and every["more"]


# Places


def test_places_are_integrated(http):
    write(
        http,
        "map",
        {"kind": "spatial", "id": "s1", "place": "library", "relation": "left_of", "other": "cafe"},
        {"kind": "spatial", "id": "s2", "place": "cafe", "relation": "south_of", "other": "park"},
        {"kind": "spatial", "id": "s3", "place": "museum", "x": 3.0, "y": 4.0},
    )

    def ask(op, **more):
        return ok(post(http, "/v1/places/query", namespace="map", op=op, **more))["result"]

    bearing = ask("relation", place="library", other="park")
    assert bearing["relation"] == "south_west_of" and bearing["memories"] == ["s1", "s2"]
    assert (ask("position", place="Museum")["x"], ask("position", place="nowhere")) == (3.0, None)
    assert [found["place"] for found in ask("nearest", x=0, y=0, k=1)] == ["museum"]
    assert ask("within", x=0, y=0, radius=4.9) == [] and len(ask("within", x=0, y=0, radius=5)) == 1
    assert ask("path", place="library", other="park")["places"] == ["library", "cafe", "park"]
    assert ask("where", place="Ada") == {"place": None, "chain": [], "memories": []}
    assert ask("macros") == []


# Lines


def test_lines_are_put_found_and_weighed(http):
    first = ok(post(http, "/v1/lines", namespace="lines", key="drink", value="Ada drinks tea."))
    ok(
        post(
            http, "/v1/lines", namespace="lines", key="pet", value="Ada has a goat.", context={"source": "x"}
        )
    )
    found = ok(post(http, "/v1/lines/query", namespace="lines", query="What does Ada drink?", k=2))["lines"]
    assert found[0]["key"] == "drink" and found[0]["weight"] > 0
    by_vector = ok(post(http, "/v1/lines/bias", namespace="lines", query="Ada drinks tea.", k=1))
    again = ok(post(http, "/v1/lines/query", namespace="lines", vector=by_vector["vector"], k=1))["lines"]
    assert again[0]["key"] == "drink" and again[0]["similarity"] == pytest.approx(1.0, abs=1e-3)
    nothing = ok(post(http, "/v1/lines/bias", namespace="lines-none", query="tea"))
    assert nothing["vector"] == [0.0] * by_vector["dim"]
    held = ok(http.get("/v1/lines", params={"namespace": "lines", "key": "drink"}))
    assert (held["value"], held["anchor"]) == ("Ada drinks tea.", first["anchor"])


def test_a_line_is_compared_and_set_by_its_anchor(http):
    first = ok(post(http, "/v1/lines", namespace="cas", key="k", value="One.", prev_anchor="0" * 16))
    second = post(http, "/v1/lines", namespace="cas", key="k", value="Two.", prev_anchor=first["anchor"])
    assert ok(second)["supersedes"] == first["generation"]
    late = post(http, "/v1/lines", namespace="cas", key="k", value="Three.", prev_anchor=first["anchor"])
    assert (late.status_code, late.json()["error"]["code"]) == (409, "stale_anchor")


def test_a_race_has_one_winner_and_weaker_losers(http):
    candidates = [{"value": "Ada drinks coffee."}, {"value": "Ada drinks water."}]
    body = {"namespace": "race", "key": "drink", "candidates": candidates, "cue": "water"}
    won = ok(post(http, "/v1/lines/race", **body, generation=0))
    assert (
        ok(http.get("/v1/lines", params={"namespace": "race", "key": "drink"}))["value"]
        == "Ada drinks water."
    )
    assert won["winner"] not in won["rivals"] and [*won["rivals"].values()] == [0.5]
    late = post(http, "/v1/lines/race", **body, generation=0)
    assert (late.status_code, late.json()["error"]["param"]) == (409, "generation")


def test_of_two_users_who_race_exactly_one_wins_each_generation(http):
    rounds, wins, gate = 6, [], threading.Barrier(2)

    def user(name):
        for number in range(rounds):
            held = http.get("/v1/lines", params={"namespace": "two", "key": "k"})
            known = held.json()["generation"] if held.status_code == 200 else 0
            gate.wait(60)  # both have read the same generation
            body = {"namespace": "two", "key": "k", "generation": known}
            answer = post(http, "/v1/lines/race", **body, candidates=[{"value": f"{name} {number}."}])
            assert answer.status_code in (200, 409), answer.text
            wins.append((known, answer.status_code == 200))
            gate.wait(60)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(user, name) for name in ("Ada", "Bo")]:
            done.result()
    generations = {known for known, _ in wins}
    assert len(generations) == rounds
    assert all([won for known, won in wins if known == each].count(True) == 1 for each in generations)


# Conversations


def test_short_term_memory_goes_back(http):
    path, space = "/v1/conversations/team%2Fc1", {"namespace": "talk"}
    turns = [{"role": "user", "text": f"Turn {i}."} for i in range(5)]
    assert ok(post(http, f"{path}/push", **space, turns=turns)) == {"pushed": 5, "length": 5, "dropped": 0}
    assert [t["text"] for t in ok(post(http, f"{path}/peek", **space, n=2))["turns"]] == [
        "Turn 3.",
        "Turn 4.",
    ]
    assert ok(post(http, f"{path}/pop", **space))["turn"]["text"] == "Turn 4."
    assert ok(post(http, f"{path}/rewind", **space, n=3)) == {"removed": 3, "length": 1}
    assert ok(post(http, f"{path}/peek", namespace="talk-elsewhere", n=9))["turns"] == []
    receipt = ok(http.delete(path, params=space))
    assert receipt["turns"] == 1 and receipt["scrubbed"]
    assert ok(post(http, f"{path}/peek", **space, n=9))["turns"] == []
    assert ok(post(http, f"{path}/pop", **space)) == {"turn": None, "length": 0}


# Export and import


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_an_export_comes_back_whole_and_once(http, form):
    source, target = f"out-{form}", f"in-{form}"
    write(http, source, {"id": "m", "text": "Ada moved."}, {"kind": "spatial", "place": "p", "x": 1, "y": 2})
    tell(http, source, FACTS[0], {**FACTS[0], "id": "told-again"})
    body = {"namespace": source, "generation": generation(http, source, "m"), "text": "Ada moved again."}
    ok(http.patch("/v1/memories/m", json=body))
    exported = post(http, "/v1/memories/export", namespace=source, format=form)
    assert exported.status_code == 200

    def send(**query):
        return http.post(
            "/v1/memories/import", params={"namespace": target, **query}, content=exported.content
        )

    assert ok(send()) == {"namespace": target, "read": 3, "new": 3, "existing": 0}
    assert ok(send())["existing"] == 3
    versions = ok(http.get("/v1/memories/m/history", params={"namespace": target}))["versions"]
    assert [v["content"]["text"] for v in versions] == ["Ada moved again.", "Ada moved."]
    [fact] = ok(post(http, "/v1/facts/query", namespace=target, subject="Ada"))["facts"]
    assert len(fact["provenance"]) == 2


def test_an_export_leaves_nothing_in_the_temporary_folder(tmp_path, monkeypatch):
    """Not even where the client leaves before it has read it all."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with transfer.saved("jsonl", iter(()), True) as file:
        assert [*tmp_path.iterdir()] == [] and b"sharpwave-export" in file.read()


def test_one_conversation_is_exported_alone(http):
    write(
        http, "talks", *({"id": f"m{n}", "text": f"Said {n}.", "conversation": f"c{n % 2}"} for n in range(4))
    )
    exported = post(http, "/v1/memories/export", namespace="talks", conversation="c1", vectors=False)
    taken = http.post("/v1/memories/import", params={"namespace": "talks-in"}, content=exported.content)
    assert ok(taken)["new"] == 2
    found = ok(http.get("/v1/memories", params={"namespace": "talks-in"}))["memories"]
    assert {memory["id"] for memory in found} == {"m1", "m3"}


def test_an_export_without_vectors_is_embedded_anew(http):
    write(http, "bare", {"id": "m", "text": "Ada keeps a goat."})
    exported = post(http, "/v1/memories/export", namespace="bare", vectors=False)
    taken = http.post("/v1/memories/import", params={"namespace": "bare-in"}, content=exported.content)
    assert ok(taken)["new"] == 1
    hit = ok(
        post(http, "/v1/memories/search", namespace="bare-in", query="Ada keeps a goat.", retrieval="flat")
    )
    assert hit["results"][0]["score"] > 0.99


def test_what_is_no_export_of_ours_is_refused(http):
    empty = post(http, "/v1/memories/export", namespace="nobody-here").content
    taken = http.post("/v1/memories/import", params={"namespace": "junk"}, content=empty)
    assert ok(taken)["read"] == 0
    for content in (b"", b"{}", b"PAR1 not really", json.dumps({"format": "x"}).encode(), empty[:100]):
        answer = http.post("/v1/memories/import", params={"namespace": "junk"}, content=content)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] in ("file", "body")


# Operation


def test_the_chain_is_sealed_and_verified(http):
    write(http, "sealed", {"text": "Ada moved."})
    sealed = ok(post(http, "/v1/seal"))
    assert [shard["shard"] for shard in sealed["shards"]] == [0, 1] and len(sealed["checksum"]) == 16
    found = ok(http.post("/v1/verify"))
    shards = [{"shard": n, "broken": None} for n in (0, 1)]
    assert found == {"intact": True, "sealed": sealed["sealed"], "notice": None, "shards": shards}


def test_a_snapshot_covers_what_was_written(http):
    write(http, "snap", *({"text": f"Note {i}."} for i in range(8)))
    assert all(shard["folder"] for shard in ok(post(http, "/v1/snapshot"))["shards"])
    assert not any(shard["folder"] for shard in ok(post(http, "/v1/snapshot"))["shards"])


def test_what_was_forgotten_is_nowhere(http):
    secret = "The passphrase of Ada Quill is heliotrope."
    write(http, "probe", {"id": "m", "text": secret}, {"id": "n", "text": "Ada likes tea."})
    ok(post(http, "/v1/conversations/c/push", namespace="probe", turns=[{"role": "user", "text": secret}]))
    assert not ok(post(http, "/v1/probe", texts=[secret]))["clean"]
    ok(http.delete("/v1/memories/m", params={"namespace": "probe"}))
    after = ok(post(http, "/v1/probe", texts=[secret], vectors=True))
    assert after["clean"], [place for place in after["places"] if place["found"] or place["unchecked"]]


def test_what_a_fact_was_told_with_goes_with_it(http):
    fact = {"id": "kept", "subject": "Ada", "relation": "owns", "object": "a heliograph"}
    telling = {**fact, "id": "again", "text": "It was Zebulon who said that Ada owns a heliograph."}
    assert [row["id"] for row in tell(http, "tellings", fact, telling)] == ["kept", "kept"]
    deadline = time.monotonic() + 120
    while http.get("/ready").json()["engine"]["pending_blocks"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    ok(http.delete("/v1/memories/kept", params={"namespace": "tellings"}))
    after = ok(post(http, "/v1/probe", texts=["Zebulon"]))
    assert after["clean"], [place for place in after["places"] if place["found"] or place["unchecked"]]
