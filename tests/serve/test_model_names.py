"""Names of models that say the memory too."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidInput
from common.names import check_name
from common.types import MODES
from serve.model_names import ModelName, parse

SERVED = ("smollm2-135m", "Org/Model-1B", "/models/a@b:c/model.gguf", "base-model", "qwen:1.5b")
VERSIONS = st.sampled_from(["", ":latest", ":0123456789abcdef", ":reader"])
NAMESPACES = st.text(min_size=1, max_size=20).filter(lambda text: _is_name(text))


def _is_name(text: str) -> bool:
    try:
        return check_name(text, "namespace") == text
    except InvalidInput:
        return False


@given(
    st.sampled_from(SERVED), st.booleans(), VERSIONS, st.sampled_from([None, *MODES]), st.none() | NAMESPACES
)
def test_what_is_put_together_is_taken_apart(served, by_name, version, mode, namespace):
    model = (served if by_name else "base") + version
    name = model + (f":{mode}" if mode else "") + (f"@{namespace}" if namespace else "")
    assert parse(name, served) == ModelName(model, mode, namespace)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("base:off", ModelName("base", "off")),
        ("base@acme", ModelName("base", None, "acme")),
        ("base:latest:off@acme", ModelName("base:latest", "off", "acme")),
        ("base@anna@example.org", ModelName("base", None, "anna@example.org")),
        ("base@team:off", ModelName("base", None, "team:off")),  # behind the @ everything is the namespace
        ("m:text@a", ModelName("m", "text", "a")),
        ("based:off", ModelName("based:off")),  # another model, which does not exist
        ("gpt-4@acme", ModelName("gpt-4@acme")),
        ("base:Off", ModelName("base:Off")),
    ],
)
def test_the_grammar(name, told):
    assert parse(name, "m") == told


@pytest.mark.parametrize("name", ["base@", "base:off@ acme", "base@*", "base@a\n"])
def test_a_namespace_that_is_none_is_refused(name):
    with pytest.raises(InvalidInput) as caught:
        parse(name, "m")
    assert caught.value.param == "model"
