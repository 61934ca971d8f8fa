"""The load generator against a running instance, in both loops."""

import argparse
import asyncio
import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "load.py"


@pytest.fixture(scope="module")
def load():
    spec = importlib.util.spec_from_file_location("load_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.0, 3.0])
def test_every_request_is_accounted_for(load, instance, rate):
    options = argparse.Namespace(
        url=instance.url, clients=3, rate=rate, seconds=4.0, window=2.0, mix=load._mix("chat=4,write=1,delete=1"),
        leave=0.3, namespaces=2, memories=4, model="base", mode="prefix", max_tokens=4, seed=7, key=None,
    )  # fmt: skip
    said = []
    report = asyncio.run(load.measure(options, said.append))
    assert report["loop"] == ("open" if rate else "closed") and said
    assert all(not kind["errors"] for kind in report["all"].values()), report["all"]
    for name, kind in report["all"].items():
        assert kind["answered"] + kind["left"] == kind["requests"]
        assert kind["requests"] == sum(
            w["of"].get(name, {"requests": 0})["requests"] for w in report["windows"]
        )
    chat = report["all"]["chat"]
    assert chat["left"] > 0 and chat["first_token_seconds"]["p50"] <= chat["seconds"]["p95"]
    assert report["engine"]["after"]["running"] <= chat["left"]


def test_errors_are_counted_by_kind_and_do_not_count_as_answered(load):
    samples = [
        load.Sample("chat", 0.0, 1.0, first_s=0.5, tokens=10),
        load.Sample("chat", 0.0, 9.0, error="429 overloaded_error"),
        load.Sample("chat", 0.0, 2.0, first_s=1.0, left=True),
    ]
    told = load.summary(samples, 2.0)["chat"]
    assert (told["requests"], told["answered"], told["left"]) == (3, 1, 1)
    assert told["errors"] == {"429 overloaded_error": 1} and told["tokens_per_second"] == 5.0
    assert told["seconds"] == {"p50": 1.0, "p95": 1.0, "p99": 1.0}
