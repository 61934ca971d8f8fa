"""What an operator looks at: metrics of requests, the access log, `/docs`, `serve status`."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families


def metrics(http):
    """Values by name and labels."""
    families = text_string_to_metric_families(http.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples]
    return {(sample.name, *sorted(sample.labels.values())): sample.value for sample in samples}


def test_metrics_count_requests_tokens_and_waiting(http):
    before = metrics(http)
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3, "memory": {"mode": "off"}}
    used = http.post("/v1/chat/completions", json=body).json()["usage"]["completion_tokens"]
    http.get("/v1/memories/nobody")
    after = metrics(http)

    def grown(*key):
        return after[key] - before.get(key, 0.0)

    chat = ("200", "POST", "/v1/chat/completions")
    assert grown("sharpwave_requests_total", *sorted(chat)) == 1
    assert grown("sharpwave_requests_total", *sorted(("404", "GET", "/v1/memories/{memory_id}"))) == 1
    assert grown("sharpwave_requests_total", *sorted(("200", "GET", "/metrics"))) == 1
    assert grown("sharpwave_output_tokens_total") == used
    assert grown("sharpwave_first_token_seconds_count", "off") == 1
    assert after[("sharpwave_queue_length",)] == 0 == after[("sharpwave_in_flight",)]
    assert not any(name.endswith("_created") for name, *_ in after)


def test_the_access_log_is_a_file_and_not_in_the_output_of_jobs(instance, http):
    assert http.get("/v1/memories/for-the-log").status_code == 404
    logs, wanted = Path(instance.store) / "logs" / "serve", re.compile(r"GET /v1/memories.* 404 ")
    deadline = time.monotonic() + 30
    while not any(wanted.search(file.read_text()) for file in logs.glob("*.log")):
        assert time.monotonic() < deadline, [*logs.glob("*")]
        time.sleep(0.2)
    for file in (Path(instance.temp_dir) / "session_latest" / "logs").glob(
        "worker-*"
    ):  # these go to every driver
        assert not re.search(r"(GET|POST|CALL) \S+ (\d{3}|OK) [\d.]+ms", file.read_text()), file


def test_the_page_of_routes_needs_no_internet(http):
    page = http.get("/docs").text
    assert "://" not in page and http.get("/docs/swagger-ui.css").headers["content-type"].startswith(
        "text/css"
    )


def test_serve_status_finds_the_instance(instance):
    told = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "status", "--env", "--store", instance.store],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    command = f'{told}\n"{Path(sys.executable).parent}/serve" status'
    shown = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env={**os.environ}, timeout=120
    )
    assert "EngineReplica" in shown.stdout and "HEALTHY" in shown.stdout, shown.stderr
