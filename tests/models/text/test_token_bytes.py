"""Bytes of tokens, of real tokenizers."""

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from models.text.token_bytes import TokenBytes


def test_joined_they_are_the_text(loaded):
    known = TokenBytes(loaded.tokenizer)

    @settings(max_examples=200, deadline=None)
    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def joined(text):
        ids = loaded.tokenizer.encode(text, add_special_tokens=False)
        found = b"".join(map(known.of, ids))
        assert found.decode(errors="replace") == loaded.tokenizer.decode(ids)

    joined()
    for text in (
        "na\u00efve caf\u00e9s",
        "\u65e5\u672c \U0001f469\u200d\U0001f680",
        "a\n\t b",
    ):  # the vocabulary has all their bytes
        ids = loaded.tokenizer.encode(text, add_special_tokens=False)
        assert b"".join(map(known.of, ids)) == text.encode()
    assert known.of(loaded.tokenizer.eos_token_id) == loaded.tokenizer.eos_token.encode()
    assert known.of(10**9) == b""


def test_sentencepiece_with_byte_fallback():
    from tokenizers import Tokenizer, decoders, models, normalizers

    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "\u2581a", "b"]
    made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", "\u2581")
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Replace("\u2581", " ")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    known = TokenBytes(tokenizer)
    ids = tokenizer.encode("b \u00e9\U0001f680b", add_special_tokens=False)
    assert b"".join(map(known.of, ids)) == "b \u00e9\U0001f680b".encode()
