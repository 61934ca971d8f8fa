"""What the embedder reads of a text, and what it counts."""

import numpy as np
import pytest

from models.text.embed import Embedder


@pytest.fixture(scope="module")
def embedder():
    return Embedder()


def test_a_long_text_is_cut_where_the_counts_say(embedder):
    short, edge, long = "Ada moved.", "tea " * 254, "tea " * 255
    counts = embedder.count_tokens([short, edge, long, long * 3])
    assert counts[1:] == [(256, 256), (256, 257), (256, 767)]
    assert counts[0][0] == counts[0][1] < 10
    assert embedder.count_tokens([]) == []
    one, other = embedder.encode([long, edge])  # what is cut changes nothing
    assert np.allclose(one, other, atol=1e-6)
    assert [embedder.count_tokens([text]) for text in (short, edge)] == [counts[:1], counts[1:2]]
