"""Long texts: what the embedder reads of them, and the vectors of their passages."""

import numpy as np
import pytest

from common.errors import InvalidInput, NotFound
from models.text.embed import Embedder


@pytest.fixture(scope="module")
def embedder():
    return Embedder("minilm")


def test_passages_cover_what_the_first_vector_does_not(embedder):
    limit = embedder._model.max_seq_length
    words = [f"word{i}" for i in range(900)]
    for count in (1, 60, 64, 70, 300, 900):
        text = " ".join(words[:count])
        passages = embedder._passages(text)
        assert all(text.find(passage) >= 0 for passage in passages)
        assert all(read == whole for read, whole in embedder.count_tokens(passages))
        if passages:
            spans = [(text.find(passage), text.find(passage) + len(passage)) for passage in passages]
            assert embedder.count_tokens([text[: spans[0][0]]])[0][0] < limit and spans[-1][1] == len(text)
            assert all(start < end for (start, _), (_, end) in zip(spans[1:], spans, strict=False)), "no gaps"
        [(read, whole)] = embedder.count_tokens([text])
        assert bool(passages) == (read < whole)


def test_vectors_are_those_of_the_texts_and_their_passages(embedder):
    long = " ".join(f"The {i}th crate holds copper wire." for i in range(120))
    texts = ["short", long, ""]
    vectors, further = embedder.encode_long(texts)
    assert vectors.shape == (3, embedder.dim) and [*further] == [1] and len(further[1]) > 3
    alone = embedder.encode(embedder._passages(long))
    assert np.allclose(further[1], alone, atol=1e-4) and np.allclose(
        vectors, embedder.encode(texts), atol=1e-4
    )
    assert np.allclose(np.linalg.norm(further[1], axis=1), 1.0, atol=1e-4)


def test_a_long_text_is_cut_where_the_counts_say(embedder):
    short, edge, long = "Ada moved.", "tea " * 254, "tea " * 255
    counts = embedder.count_tokens([short, edge, long, long * 3])
    assert counts[1:] == [(256, 256), (256, 257), (256, 767)]
    assert counts[0][0] == counts[0][1] < 10
    assert embedder.count_tokens([]) == []
    one, other = embedder.encode([long, edge])  # what is cut changes nothing
    assert np.allclose(one, other, atol=1e-6)
    assert [embedder.count_tokens([text]) for text in (short, edge)] == [counts[:1], counts[1:2]]


def test_token_ids_of_a_known_tokenizer_are_its_texts(embedder, tmp_path):
    tokenizer = embedder._model.tokenizer
    tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = "a goat in lisbon"
    ids = tokenizer.encode(text, add_special_tokens=False)
    for given in ("own", str(tmp_path / "tokenizer.json")):
        reader = Embedder("minilm", token_ids=given)
        assert reader.token_text(ids) == text
        with pytest.raises(InvalidInput, match="no id 999999"):
            reader.token_text([*ids, 999_999])
    with pytest.raises(NotFound, match=r"embed.token_ids = 'nowhere.json'"):
        Embedder("minilm", token_ids="nowhere.json")
