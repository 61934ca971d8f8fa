"""schemathesis against `/openapi.json` of a running instance: whatever it sends, nothing fails inside, and every
answer is one that the page describes."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
CAPS = {
    "max_tokens": 2,
    "max_completion_tokens": 2,
    "n": 2,
}  # what is generated is not what takes the time here


MANY = pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])


@pytest.mark.parametrize("examples", [1, MANY])
def test_every_route_keeps_to_its_page(instance, examples):
    schema = schemathesis.openapi.from_url(f"{instance.url}/openapi.json")
    asked = []
    for operation in (found.ok() for found in schema.get_all_operations()):
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            try:
                check(operation.as_strategy(generation_mode=mode), examples)
            except Unsatisfiable:
                assert mode is GenerationMode.NEGATIVE  # of a route that takes anything, or nothing
        asked.append(operation.label)
    assert {"POST /v1/chat/completions", "POST /v1/embeddings", "GET /v1/adapters"} <= {*asked}


def check(cases, examples):
    @settings(
        max_examples=examples,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[*HealthCheck],
    )
    @given(cases)
    def run(case):
        if isinstance(case.body, dict) and ({"messages", "prompt"} & case.body.keys()):
            caps = {name: cap for name, cap in CAPS.items() if isinstance(case.body.get(name), int | float)}
            case.body.update({name: min(cap, case.body[name]) for name, cap in caps.items()})
            case.body.setdefault("max_tokens", CAPS["max_tokens"])
        case.validate_response(case.call(timeout=180), checks=CHECKS)

    run()
