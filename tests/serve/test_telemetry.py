"""CON-9: what is counted, with its values, as the report's `telemetry` and as Prometheus reads it."""

from prometheus_client.parser import text_string_to_metric_families

from serve.telemetry import Telemetry
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
    assert found["sharpwave_prompt_tokens_total"] == 14
    assert not any("gate" in name or "store" in name for name in found)
