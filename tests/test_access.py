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
