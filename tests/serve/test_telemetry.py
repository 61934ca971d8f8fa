"""CON-9: what is counted, with its values, as the report's `telemetry` and as Prometheus reads it."""

from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from serve.http import BodyLimit, EncodedSlashes, install_error_handlers
from serve.queries import only_known
from serve.telemetry import CountRequests, Telemetry
from stores.shard.shard import Shard
from stores.writes.batch import MemoryBatch
from tests.support.stores import NOW, axis, memory, open_shard


def values(text: str) -> dict[str, float]:
    families = text_string_to_metric_families(text)
    return {
        sample.name: sample.value for family in families for sample in family.samples if not sample.labels
    }


def put(shard: Shard, op_id: str, id: str, **fields: object) -> str:
    return str(
        shard.memories.put(MemoryBatch.of([(memory(id, **fields), axis(0))]), op_id=op_id, now=NOW)[0][
            "status"
        ]
    )


def test_the_gates_decisions_duplicates_and_the_size_are_the_stores(tmp_path) -> None:
    telemetry = Telemetry()
    for _ in range(2):  # they outlive the process
        shard = open_shard(tmp_path / "shard", gate_tau=0.5)
        assert put(shard, "1", "a") == "new"
        assert put(shard, "2", "b", text="nothing new in this") == "refused"
        assert put(shard, "3", "c", text="this is a") == "duplicate"
        assert put(shard, "4", "d", text="kept all the same", pin=True) == "new"
        store = shard.counts()
        shard.close()
        told = telemetry.of(store)
        assert {
            name: told[name] for name in ("gate_attempts", "gate_accepts", "duplicates", "store_size")
        } == {
            "gate_attempts": 3,
            "gate_accepts": 2,
            "duplicates": 1,
            "store_size": 2,
        }
        found = values(telemetry.prometheus(store))
        assert found["sharpwave_gate_attempts_total"] == 3 and found["sharpwave_gate_accepts_total"] == 2
        assert found["sharpwave_duplicates_total"] == 1 and found["sharpwave_store_size"] == 2


def test_a_replica_counts_what_it_does_also_while_the_store_is_silent() -> None:
    telemetry = Telemetry()
    turn = {
        "mode": "prefix",
        "generate_s": 0.5,
        "prompt_tokens": 7,
        "completion_tokens": 5,
        "prefix_tokens": 40,
        "fallback": "blocks",
    }
    for _ in range(3):
        telemetry.retrieval_requested()
    telemetry.answered(turn)
    telemetry.answered({**turn, "fallback": None})
    telemetry.recall_failed()
    found = values(telemetry.prometheus(None))
    assert found["sharpwave_retrieval_requests_total"] == 3 and found["sharpwave_recall_failures_total"] == 1
    assert found["sharpwave_prefix_fallbacks_total"] == 1 and found["sharpwave_prefix_tokens_total"] == 80
    assert found["sharpwave_prompt_tokens_total"] == 14 and found["sharpwave_output_tokens_total"] == 10
    assert not any("gate" in name or "store" in name for name in found)


def test_the_load_is_told_and_no_series_says_when_it_was_created() -> None:
    telemetry = Telemetry()
    telemetry.began("prefix", 0.3)
    text = telemetry.prometheus(None, {"waiting": 3, "running": 8}, in_flight=11)
    found = values(text)
    assert found["sharpwave_queue_length"] == 3 and found["sharpwave_running"] == 8
    assert found["sharpwave_in_flight"] == 11 and "_created" not in text
    assert 'sharpwave_first_token_seconds_bucket{le="0.2",mode="prefix"} 0.0' in text
    assert 'sharpwave_first_token_seconds_bucket{le="0.5",mode="prefix"} 1.0' in text
    assert "queue_length" not in telemetry.prometheus(None)


def test_requests_are_counted_by_route_and_status() -> None:
    app = FastAPI(docs_url=None, dependencies=[Depends(only_known)])
    for middleware in (BodyLimit, EncodedSlashes, CountRequests):
        app.add_middleware(middleware)
    install_error_handlers(app)
    app.state.max_body_bytes = app.state.max_import_bytes = 100
    telemetry = app.state.telemetry = Telemetry()

    @app.get("/v1/things/{name:path}")
    async def thing(name: str) -> str:
        return {"good": "yes"}[name]

    @app.post("/v1/things")
    async def put(body: dict) -> None: ...

    client = TestClient(app, raise_server_exceptions=False)
    asked = [client.get(f"/v1/things/{name}") for name in ("good", "good", "bad", "a%2Fb")]
    asked += [
        client.post("/v1/things", json=["x"]),
        client.post("/v1/things", content=b"x" * 101),
        client.get("/x"),
    ]
    assert [answer.status_code for answer in asked] == [200, 200, 500, 500, 400, 413, 404]
    counted = {
        tuple(sample.labels[name] for name in ("method", "route", "status")): sample.value
        for family in text_string_to_metric_families(telemetry.prometheus(None))
        for sample in family.samples
        if sample.name == "sharpwave_requests_total"
    }
    assert counted == {
        ("GET", "/v1/things/{name}", "200"): 2,
        ("GET", "/v1/things/{name}", "500"): 2,
        ("POST", "/v1/things", "400"): 1,
        ("POST", "none", "413"): 1,
        ("GET", "none", "404"): 1,
    }
