"""Who may ask for what."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from common import config
from common.errors import Forbidden, InvalidInput, Unauthorized
from serve.access import MODE_HEADER, NAMESPACE_HEADER, Access, check_bind


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


KEYS = {
    "one": ["acme"],
    "several": ["a", "b"],
    "chosen": {"namespaces": ["a", "b"], "namespace": "b", "memory": "off"},
    "all": ["*"],
}


def told(key, default="default", **headers):
    """What a request of this key gets that names no namespace."""
    sent = Headers({name.replace("_", "-"): value for name, value in headers.items()})
    return Access(KEYS, default).principal(f"Bearer {key}").told(sent)


def test_a_request_that_names_none_gets_the_namespace_of_its_key():
    assert told("one").space(None) == "acme" and told("one").mode is None
    assert told("chosen").space(None) == "b" and told("chosen").mode == "off"
    assert told("all").space(None) == "default" and told("all", "shared").space(None) == "shared"
    assert Access({}, "shared").principal(None).space(None) == "shared"
    for nobody in (told("several"), told("all", None), Access({}, None).principal(None)):
        with pytest.raises(InvalidInput, match="is needed") as caught:
            nobody.space(None)
        assert caught.value.code == "namespace_needed"
    assert told("several").space("a") == "a"


def test_a_header_goes_before_the_key_and_never_beyond_it():
    assert told("chosen", X_Sharpwave_Namespace="a").space(None) == "a"
    assert told("chosen", X_Sharpwave_Namespace="a").space("b") == "b"  # the request itself goes before
    assert told("chosen", X_Sharpwave_Memory="text").mode == "text"
    assert told("all", X_Sharpwave_Namespace="%E6%97%A5%20b%2Fc").space(None) == "日 b/c"
    with pytest.raises(Forbidden):
        told("one", X_Sharpwave_Namespace="a").space(None)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        (MODE_HEADER, "Off"),
        (MODE_HEADER, ""),
        (NAMESPACE_HEADER, ""),
        (NAMESPACE_HEADER, "*"),
        (NAMESPACE_HEADER, "%ff"),
    ],
)
def test_a_header_that_says_nothing_valid_is_refused(header, value):
    with pytest.raises(InvalidInput) as caught:
        told("all", **{header: value})
    assert caught.value.param == header


def test_two_headers_that_differ_are_refused():
    twice = [(NAMESPACE_HEADER.lower().encode(), value) for value in (b"a", b"b")]
    with pytest.raises(InvalidInput, match="2 times"):
        Access(KEYS).principal("Bearer all").told(Headers(raw=twice))


@given(st.sampled_from([*KEYS]), *[st.none() | st.sampled_from(["a", "b", "acme", "c"])] * 2)
def test_no_key_gets_beyond_its_namespaces(key, given, header):
    headers = {} if header is None else {NAMESPACE_HEADER: header}
    opened = {"one": {"acme"}, "several": {"a", "b"}, "chosen": {"a", "b"}}.get(key)
    try:
        space = told(key, **headers).space(given)
    except (Forbidden, InvalidInput):
        return
    assert opened is None or space in opened
    assert space == (given or header or {"one": "acme", "chosen": "b", "all": "default"}[key])


def test_keys_in_the_configuration():
    keys = {"k": {"namespaces": ["a"], "memory": False}}  # YAML reads a bare off as false
    loaded = config.load(env={}, overrides={"serve.api_keys": keys, "recall.mode": False})
    assert loaded.serve.api_keys["k"].memory == "off" == loaded.recall.mode
    assert config.load(base=loaded, env={}) == loaded
    for bad in (
        {"namespaces": ["a"], "namespace": "b"},
        {"namespaces": []},
        {"namespace": ["a"]},
        {"mode": "off"},
    ):
        with pytest.raises(InvalidInput) as caught:
            config.load(env={}, overrides={"serve.api_keys": {"s3cret": bad}})
        assert "s3cret" not in caught.value.message and "api_keys" in caught.value.message
