import re

from hypothesis import given
from hypothesis import strategies as st

from stores.imports.split import split_text


def squeezed(text):
    return re.sub(r"\s+", "", text)


@given(text=st.text(alphabet=" \nab.é漢😀\t", max_size=400) | st.text(max_size=200), limit=st.integers(4, 60))
def test_parts_fit_and_together_are_the_text(text, limit):
    text = text.encode(errors="ignore").decode()
    parts = split_text(text, limit)
    assert all(0 < len(part.encode()) <= limit and part.strip() for part in parts)
    assert squeezed("".join(parts)) == squeezed(text)


def test_a_cut_is_where_it_hurts_least():
    paragraphs = "One two three. Four five six.\n\nSeven eight nine. Ten eleven."
    assert split_text(paragraphs, 40) == [
        "One two three. Four five six.\n\n",
        "Seven eight nine. Ten eleven.",
    ]
    assert split_text("One two three. Four five six.", 20) == ["One two three. ", "Four five six."]
    assert split_text("one two three four", 10) == ["one two ", "three four"]
    assert split_text("abcdefghij", 4) == ["abcd", "efgh", "ij"]
    assert split_text("漢字。漢字。", 9) == ["漢字。", "漢字。"]
