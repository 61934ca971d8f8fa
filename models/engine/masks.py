"""Constrained decoding: compiled grammars (`Grammars`), where an answer stands in one (`Constraint`), and the masks of
the tokens that may come next (`Masks`).

llguidance compiles a grammar in milliseconds (large ones within half a second) and computes a mask in well under one;
both without Python's global lock. `EngineReplica` compiles in a thread of its own before a request joins the batch, and
the masks of all rows are computed beside the forward pass whose logits they are for.
"""

import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from llguidance import LLExecutor, LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from torch import Tensor

from common.errors import InvalidInput
from models.text.grammar import Grammar
from models.text.tools import CLOSER, OPENER
from models.weights.load import LoadedModel

KEPT = 64  # compiled grammars
THREADS = min(8, os.cpu_count() or 1)
LONGEST_NUMBER = 40  # characters: no number type holds more, and small models write one digit for ever
# What the compiler says before and behind the reason: the place in a grammar that the client has not written.
PLACE = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?|\n +\d+ \| .*", re.DOTALL)


class Grammars:
    """Compiled grammars for one model, those that were used last. Thread-safe; compiling holds no lock."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._lock = threading.Lock()
        self._making = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._bytes: frozenset[int] = frozenset()  # those that some token has
        self.digits = np.zeros(0, bool)  # [vocabulary]: the tokens that begin with a digit
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()

    def matcher(self, grammar: Grammar) -> LLMatcher:
        """At the beginning of an answer. Raises `InvalidInput` for a grammar that cannot be kept to, with the
        feature of its schema that is not supported."""
        with self._lock:
            found = self._compiled.get(grammar)
            if found is not None:
                self._compiled.move_to_end(grammar)
                return found.deep_copy()
        made = self._compile(grammar)
        with self._lock:
            self._compiled[grammar] = made
            while len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        return made.deep_copy()

    @property
    def tokenizer(self) -> LLTokenizer:
        """The model's tokenizer as the compiler needs it; the first call takes seconds."""
        with self._making:
            if self._tokenizer is None:
                made = self._make_tokenizer()
                tokens = [made.decode_bytes([token]) for token in range(made.vocab_size)]
                self._bytes = frozenset().union(*tokens)
                self.digits = np.array([token[:1].isdigit() for token in tokens])
                self._tokenizer = made
            return self._tokenizer

    def _make_tokenizer(self) -> LLTokenizer:
        loaded = self._loaded
        try:
            return from_tokenizer(
                loaded.tokenizer,
                n_vocab=loaded.model.config.vocab_size,
                eos_token=sorted(loaded.end_ids),
                slices=LLTokenizer.json_slices(),
            )
        except ValueError as error:
            raise InvalidInput(
                f"the tokenizer of {loaded.name} cannot be constrained: {error}", param="response_format"
            ) from error

    def _compile(self, grammar: Grammar) -> LLMatcher:
        tokenizer = self.tokenizer
        self._check_writable(grammar)
        lark = grammar.lark(*(self._special(tokenizer, text) for text in (OPENER, CLOSER)))
        matcher = LLMatcher(tokenizer, lark, log_level=0)
        first = matcher.deep_copy()
        if not first.is_error():
            first.compute_bitmask()  # finds what has no first token
        if first.is_error():
            raise self._refusal(grammar, first.get_error())
        return matcher

    def _check_writable(self, grammar: Grammar) -> None:
        """A key that no tokens spell would otherwise be forced all the same, as other characters."""
        for schema in [*([grammar.schema] if grammar.schema else []), *(each for _, each in grammar.tools)]:
            for character in json.dumps(json.loads(schema), ensure_ascii=False):
                if character > "\x7f" and not self._bytes.issuperset(character.encode()):
                    param = "response_format" if schema == grammar.schema else "tools"
                    raise InvalidInput(
                        f"{param}: no tokens of {self._loaded.name} spell U+{ord(character):X}; leave it out",
                        param=param,
                    )

    def _refusal(self, grammar: Grammar, reason: str) -> InvalidInput:
        """Names the schema that cannot be followed, where one by itself cannot."""
        named = [(f"tools: parameters of {name!r}", schema) for name, schema in grammar.tools]
        if grammar.schema is not None:
            named.append(("response_format: the schema", grammar.schema))
        where = "tools: all of them together" if grammar.tools else "response_format: the schema"
        for name, schema in named:
            if alone := LLMatcher.validate_grammar(f"start: %json {schema}", self.tokenizer):
                where, reason = name, alone
                break
        reason = PLACE.sub("", reason).splitlines()[0]
        return InvalidInput(f"{where} cannot be followed: {reason}", param=where.partition(":")[0])

    def _special(self, tokenizer: LLTokenizer, text: str) -> int | None:
        """The token of a text, where it has one of its own that stands for nothing else."""
        ids = self._loaded.tokenizer.encode(text, add_special_tokens=False)
        return ids[0] if len(ids) == 1 and tokenizer.is_special_token(ids[0]) else None


class Number:
    """The JSON number that an answer is in the middle of, whose length a grammar leaves open. `called`: text comes
    before the JSON, up to the opener of a call."""

    def __init__(self, *, called: bool = False) -> None:
        self._before = b"" if called else None
        self._quoted = self._escaped = False
        self.length = 0  # 0: the answer is not in a number

    def push(self, data: bytes) -> None:
        """The bytes of the next token."""
        if self._before is not None:
            self._before, found, data = (self._before + data).rpartition(OPENER.encode())
            if not found:
                self._before = data[-len(OPENER) :]
                return
            self._before = None
        for byte in data:
            if self._escaped or (self._quoted and byte == 0x5C):
                self._escaped = not self._escaped
            elif byte == 0x22:
                self._quoted, self.length = not self._quoted, 0
            elif not self._quoted:
                self.length = self.length + 1 if byte in b"0123456789+-.eE" else 0


class Constraint:
    """Where an answer stands in its grammar."""

    def __init__(self, grammar: Grammar, matcher: LLMatcher) -> None:
        self.matcher = matcher
        free = bool(grammar.tools) and grammar.schema is None and not grammar.must_call
        self.number = Number(called=free)

    def take(self, token: int, data: bytes) -> None:
        """The next token and its bytes. Raises `InvalidInput` if the grammar's limits were met on the way (its own
        errors are found before)."""
        if not self.matcher.consume_token(token):
            raise InvalidInput(
                f"the schema became too complex to follow: {self.matcher.get_error().splitlines()[0]}; simplify it",
                param="response_format",
            )
        self.number.push(data)

    @property
    def ended(self) -> bool:
        """Whether nothing may follow."""
        return bool(self.matcher.is_stopped())


class Masks:
    """Masks of the rows of a batch, computed in a thread of its own, several at a time."""

    def __init__(self, grammars: Grammars, vocabulary: int, device: torch.device) -> None:
        self._grammars, self._vocabulary, self._device = grammars, vocabulary, device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._executor: LLExecutor | None = None

    def begin(self, rows: Sequence[Constraint]) -> "Future[Tensor] | None":
        """Begin to compute bool `[rows, vocabulary]` on the model's device: which tokens may come next. In a number of
        `LONGEST_NUMBER` characters that is no digit, unless nothing else may come."""
        return self._thread.submit(self._compute, rows) if rows else None

    def _compute(self, given: Sequence[Constraint]) -> Tensor:
        self._executor = self._executor or LLExecutor(THREADS)
        words = -(-self._vocabulary // 32)
        bits = np.zeros((len(given), words), np.int32)
        rows = [(constraint.matcher, row) for row, constraint in enumerate(given)]
        self._executor.unsafe_compute_mask_ptr(rows, bits.ctypes.data, 4 * words, len(given))
        unpacked = np.unpackbits(bits.view(np.uint8), axis=1, count=self._vocabulary, bitorder="little")
        for row, constraint in enumerate(given):
            if constraint.number.length >= LONGEST_NUMBER:
                others = unpacked[row] & ~self._grammars.digits
                unpacked[row] = others if others.any() else unpacked[row]
        return torch.from_numpy(unpacked).view(torch.bool).to(self._device, non_blocking=True)


def best_allowed(logits: Tensor, rows: Sequence[int], masks: Tensor | None) -> list[int]:
    """The best token of each row of `[rows, vocabulary]`; of `rows` among those that `masks` allow."""
    best = logits.argmax(-1)
    if masks is not None:
        index = torch.tensor(rows, device=logits.device)
        best[index] = logits[index].masked_fill_(~masks, -torch.inf).argmax(-1)
    return best.tolist()
