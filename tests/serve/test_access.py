"""Who may ask for what."""

import pytest

from common import config
from common.errors import Forbidden, InvalidInput, Unauthorized
from serve.access import Access, check_bind


def test_without_keys_everything_is_open_on_loopback_only():
    Access({}).principal(None).check("any")
    for host in ("127.0.0.1", "localhost", "::1"):
        check_bind(host, {})
    with pytest.raises(InvalidInput, match="api_keys is empty"):
        check_bind("0.0.0.0", {})
    check_bind("0.0.0.0", {"key": ["*"]})


def test_a_key_opens_its_namespaces_only():
    access = Access({"k1": ["a", "b"], "k2": ["*"]})
    access.principal("Bearer k1").check("b")
    access.principal("bearer k2").check("anything")
    with pytest.raises(Forbidden, match="'c'"):
        access.principal("Bearer k1").check("c")
    for header in (None, "", "Bearer", "Bearer nope", "Basic k1", "k1"):
        with pytest.raises(Unauthorized):
            access.principal(header)


def test_an_open_bind_is_refused_before_anything_starts():
    from serve.app import build

    with pytest.raises(InvalidInput, match="open to other machines"):
        build(config.load(overrides={"serve.host": "0.0.0.0"}))


@pytest.mark.parametrize(("least", "most"), [(1, 1), (2, 2), (1, 3)])
def test_replicas_are_as_configured(least, most):
    from serve.app import build, engine_options

    given = {"serve.min_replicas": least, "serve.max_replicas": most, "serve.target_ongoing_requests": 3}
    settings = config.load(overrides=given)
    build(settings)  # Serve refuses what it does not understand
    options = engine_options(settings.serve)
    if least == most:
        assert options["num_replicas"] == least and "autoscaling_config" not in options
    else:
        scaling = options["autoscaling_config"]
        assert (scaling["min_replicas"], scaling["max_replicas"], scaling["target_ongoing_requests"]) == (
            1,
            3,
            3,
        )
    assert ("request_router_config" in options) == (most > 1)
    with pytest.raises(InvalidInput, match=r"serve.max_replicas = 0"):
        config.load(overrides={"serve.max_replicas": 0})
    with pytest.raises(InvalidInput, match=r"at least serve.min_replicas, which is 4"):
        config.load(overrides={"serve.min_replicas": 4, "serve.max_replicas": most})
