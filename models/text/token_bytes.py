"""The bytes that a token stands for, of which a character may need several tokens."""

import re
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

_BYTE = re.compile("<0x([0-9A-F]{2})>")
_SPACE = "\u2581"  # how SentencePiece writes a space


class TokenBytes:
    """Of one tokenizer: byte-level BPE (GPT-2, Qwen, SmolLM), or SentencePiece with byte fallback."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added = tokenizer.added_tokens_decoder
        byte_level = "ByteLevel" in str(tokenizer.backend_tokenizer.decoder)
        self._bytes = {shown: byte for byte, shown in bytes_to_unicode().items()} if byte_level else {}

    def of(self, token: int) -> bytes:
        """The bytes of a token id; none for an id that the vocabulary lacks."""
        if token in self._added:
            return str(self._added[token]).encode()
        shown = self._tokenizer.convert_ids_to_tokens(token)
        if shown is None:
            return b""
        if self._bytes:
            return bytes(self._bytes[letter] for letter in shown)
        if found := _BYTE.fullmatch(shown):
            return bytes.fromhex(found[1])
        return str(shown.replace(_SPACE, " ")).encode()
