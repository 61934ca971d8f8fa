"""The loop's long halves on a running instance: teaching under kills, scoring and consolidation as Ray jobs."""

import json
import os
import signal
import threading
import time

import psutil
import pyarrow.parquet as pq
import pytest

from common.files import read_json
from jobs.commands.client import Client
from jobs.commands.teach import teach_files
from jobs.instance.submit import submit
from tests.conftest import LONGEST_TEXT

# Small in data, not in kind: two memories, one round, every stage.
TINY = ["train.rounds=1", "train.anchors=8", "train.anchor_batch=4", "gate.sanity_items=40"]


def memory(name, city):
    return {
        "id": name.lower(),
        "text": f"{name} lives in {city}.",
        "cues": [
            {"question": f"Where does {name} live?", "answer": city, "family": "train"},
            {"question": f"Name the city of {name}.", "answer": city, "family": "audit"},
            {"question": f"{name} has a home. In which city?", "answer": city, "family": "test"},
        ],
    }


@pytest.fixture(scope="module")
def taught(instance):
    with Client(instance.url) as client:
        memories = [memory("Adaquill", "Lisbon"), memory("Botarn", "Oslo")]
        client.post("/v1/memories", {"namespace": "loop", "memories": memories})
    return "loop"


def run(instance, name, out, *arguments, settings=()):
    lines = []
    options = [option for setting in settings for option in ("--set", setting)]
    code = submit(
        instance, name, ["--namespace", "loop", "--out", str(out), *arguments, *options], say=lines.append
    )
    return code, lines


def test_scoring_writes_files_and_salience(instance, http, taught, tmp_path):
    code, lines = run(instance, "score", tmp_path)
    assert code == 0, lines
    summary = read_json(tmp_path / "summary.json")
    assert (summary["memories"], summary["responses"], summary["errors"]) == (2, 2, [])
    assert summary["noise_floor"] < 1e-3
    table = pq.read_table(tmp_path / "matrix.parquet")
    assert table.num_rows == 4 and set(table["status"].to_pylist()) == {"ok"}
    assert (tmp_path / "heatmap.png").stat().st_size > 1000
    for name, weight in summary["weights"].items():
        found = http.get(f"/v1/memories/{name}", params={"namespace": "loop"}).json()
        assert (found["statistics"]["salience"] > 0) == (weight > 0)
        assert found["statistics"]["last_scored"] is not None


@pytest.mark.slow  # the gate's reasons are tested apart; the accepted one below runs the same job
def test_an_adapter_under_the_bar_is_rolled_back_with_reasons(instance, http, taught, tmp_path):
    code, lines = run(instance, "consolidate", tmp_path, settings=[*TINY, "gate.min_uplift=1.01"])
    assert code == 3, lines
    report = read_json(tmp_path / "report.json")
    assert report["gate"]["accepted"] is False and report["adapter"] is None
    assert any("uplift" in reason for reason in report["gate"]["reasons"])
    names = [model["id"] for model in http.get("/v1/models").json()["data"]]
    assert names[:-2] == ["base", "smollm2-135m"]


def test_an_accepted_adapter_is_published_and_answers_without_a_restart(instance, http, taught, tmp_path):
    loose = [
        "gate.min_uplift=-1",
        "gate.max_sanity_drop=1",
        "gate.max_anchor_kl=100",
        "gate.max_refusal_rate=1",
    ]
    code, lines = run(instance, "consolidate", tmp_path, settings=[*TINY, *loose])
    assert code == 0, lines
    report = read_json(tmp_path / "report.json")
    digest = report["adapter"]
    names = [model["id"] for model in http.get("/v1/models").json()["data"]]
    assert names[:-2] == ["base", "smollm2-135m", "base:latest", f"base:{digest}"]
    body = {"messages": [{"role": "user", "content": "Where does Adaquill live?"}], "max_tokens": 8}
    for model in ("base:latest", f"base:{digest}", "base"):
        reply = http.post("/v1/chat/completions", json={**body, "model": model, "memory": {"mode": "off"}})
        assert reply.status_code == 200 and reply.json()["model"] == model
    # The evaluation ran in processes of their own, on the question files that lie beside the report.
    arms = [read_json(tmp_path / f"{arm}.json") for arm in ("base", "adapter")]
    assert len({arm["pid"] for arm in arms} | {os.getpid()}) == 3
    families = {question["family"] for question in read_json(tmp_path / "adapter-request.json")["questions"]}
    assert families == {"audit", "test"}
    # An erasure names the version that was trained on the memory.
    receipt = http.delete("/v1/memories/botarn", params={"namespace": "loop"}).json()
    assert receipt["adapters"] == [digest]
    http.delete(f"/v1/adapters/{digest}", params={"aliases": True}).raise_for_status()  # other tests share it


@pytest.mark.slow
def test_jobs_refuse_what_cannot_be_examined(instance, tmp_path):
    code, lines = run(instance, "consolidate", tmp_path, "--namespace", "nothing-here")
    assert code == 2 and any("'nothing-here'" in line for line in lines)
    code, lines = run(instance, "score", tmp_path, settings=["score.actorz=2"])
    assert code == 2 and any("actorz" in line and "actors" in line for line in lines)


@pytest.mark.slow
def test_every_acknowledged_memory_survives_a_kill_in_the_middle_of_teaching(instance, tmp_path):
    """kill -9 on both shard actors while a file is taught; what was acknowledged is counted by the client."""
    rows = [{"id": f"k{i:04d}", "text": f"Parcel {i} went to shelf {i * 7 % 1000}."} for i in range(600)]
    path = tmp_path / "parcels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    begun, killed = threading.Event(), []

    def kill():
        begun.wait(60)
        for process in psutil.Process(instance.head[0]).children(recursive=True):
            if "StoreShard" in " ".join(process.cmdline()):
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    with Client(instance.url) as client:
        summary = teach_files(
            client,
            [path],
            namespace="parcels",
            max_text_bytes=LONGEST_TEXT,
            report_bad=lambda line: None,
            progress=lambda so_far: begun.set() if so_far.written > 100 else None,
        )
        thread.join()
        assert len(killed) == 2
        assert (summary.written, summary.bad) == (600, 0)
        found, cursor = set(), None
        while True:
            page = client.get("/v1/memories", namespace="parcels", limit=500, cursor=cursor)
            found |= {item["id"] for item in page["memories"]}
            if (cursor := page["next"]) is None:
                break
        assert found == {row["id"] for row in rows}
        assert client.get("/ready")["store"]["shards"][0]["epoch"] >= 2
        deadline = time.monotonic() + 120
        while client.get("/ready")["engine"]["pending_blocks"] > 0 and time.monotonic() < deadline:
            time.sleep(0.5)
