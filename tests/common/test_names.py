import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidInput
from common.names import MAX_NAME, RESERVED_IDS, check_name, decoded, encoded, normal

NAMES = [
    "anna@example.org",
    "team/nord",
    "Zoë Müller",
    "日本語",
    "a b",
    "50%",
    "a?b#c",
    "..a",
    "😀",
    "~",
    "%2F",
    "a\\b",
    "'; --",
]
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=MAX_NAME)


@pytest.mark.parametrize("name", [*NAMES, "a" * MAX_NAME, "é" * MAX_NAME])
def test_what_other_systems_call_things_is_a_name(name):
    assert check_name(name, "id") == check_name(name, "namespace") == name


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        " a",
        "a ",
        "a\n",
        "a\x00b",
        "\x7f",
        "a\u2028b",
        "\ud800",
        "\ufdd0",
        "a" * 129,
        "\u00a0a",
        None,
        5,
    ],
)
@pytest.mark.parametrize("kind", ["id", "namespace"])
def test_what_no_url_or_log_can_hold_is_refused(value, kind):
    with pytest.raises(InvalidInput) as caught:
        check_name(value, kind)
    assert caught.value.param == kind and "128" in caught.value.message and len(caught.value.message) < 300


def test_reserved_names():
    for id in RESERVED_IDS:
        assert check_name(id, "namespace") == id
        with pytest.raises(InvalidInput, match="reserved"):
            check_name(id, "id")
    assert check_name("*", "id") == "*"
    with pytest.raises(InvalidInput, match="all of them"):
        check_name("*", "namespace")


@given(texts)
def test_a_name_in_any_unicode_form_is_the_same_name(text):
    for form in ("NFC", "NFD"):
        other = unicodedata.normalize(form, text)
        assert normal(other) == normal(text)
        try:
            checked = check_name(other, "namespace")
        except InvalidInput:
            continue
        assert checked == normal(text) == check_name(checked, "namespace")
    assert check_name("é" * MAX_NAME, "id") == check_name(unicodedata.normalize("NFD", "é" * MAX_NAME), "id")


@given(texts | st.sampled_from([*NAMES, ".", "..", "..."]))
def test_an_encoded_name_is_decoded_and_is_one_part_of_a_path(name):
    text = encoded(name)
    assert decoded(text) == name
    assert text.isascii() and "/" not in text and "\\" not in text and text not in (".", "..")


@given(st.lists(texts, min_size=2, max_size=5, unique=True))
def test_no_two_names_are_encoded_alike(names):
    assert len({encoded(name) for name in names}) == len(names)
