"""Encryption in front of any backend: content is encrypted before it is stored, and decrypted when read.

A backend gets records whose body is one encrypted piece (body and vector together) under the key of their
namespace, bound to op and seq, and results encrypted under the shard's own key. It never holds a plaintext
byte of either. Still visible in its files: op, seq, epoch, time, op_id, sizes, digests, anchors, counters,
and by random key id which records belong to the same namespace.

Digests are over the ciphertext, without the piece's header. So the chain verifies without any key, content
changed by someone without a key is detected, a guess of the content cannot be tested against a digest, and a
record wrapped by a fresh data key keeps its place in the chain. Content whose key was destroyed reads as
erased.
"""

import base64
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stores.crypto.keyring import Keyring
from stores.log import record as records
from stores.log.base import Backend, Draft, Operation, answer, encode_json, result_of, unpack_result
from stores.log.record import Op, Record

SHARD = ""  # the namespace of what belongs to no namespace: results
IDENTITY = {"encryption": "aes-256-gcm"}  # a log is encrypted from its first record on, or never
_REQUEST = "sealed"  # passed to a backend, since a guess could be tested against a digest of the request
_LENGTH = struct.Struct(">I")


class EncryptedLog:
    """A `Log` whose callers see plaintext records and whose `inner` log sees encrypted ones."""

    def __init__(self, inner: Backend, keyring: Keyring) -> None:
        self.inner = inner
        self._keyring = keyring
        self._staged: dict[int, Record] = {}  # encrypted, by seq, until they are committed

    @property
    def path(self) -> Path:
        return self.inner.path

    @property
    def keyring(self) -> Keyring:
        return self._keyring

    @property
    def seq(self) -> int:
        return self.inner.seq

    @property
    def epoch(self) -> int:
        return self.inner.epoch

    @property
    def anchor(self) -> bytes:
        return self.inner.anchor

    @property
    def failure(self) -> str | None:
        return self.inner.failure

    @property
    def scrub_due(self) -> bool:
        return self.inner.scrub_due

    def state(self) -> dict[str, Any]:
        return self.inner.state()

    def seen(self, op_id: str, request: str | None) -> Any:
        kept = self.inner.seen(op_id, None)
        if kept is None:
            return None
        if kept["result"] is None:
            return answer(kept, op_id, request)
        return unpack_result(self._opened_result(op_id, kept["result"]), op_id, request)

    def results(self) -> Iterator[tuple[str, Any]]:
        for op_id, kept in self.inner.results():
            yield op_id, None if kept is None else result_of(self._opened_result(op_id, kept))

    def _opened_result(self, op_id: str, kept: str) -> bytes:
        return self.keyring.decrypt(SHARD, base64.b64decode(kept), op_id.encode())

    def stage(
        self, op_id: str, drafts: Sequence[Draft], *, now: float, after: Record | None = None
    ) -> list[Record]:
        first = (self.seq if after is None else after.seq) + 1
        sealed = [
            (op, self._seal(seq, op, body, vector), b"")
            for seq, (op, body, vector) in enumerate(drafts, start=first)
        ]
        staged = self.inner.stage(op_id, sealed, now=now, after=after)
        self._staged.update((record.seq, record) for record in staged)
        return [
            replace(record, body=encode_json(body), vector=vector, parsed=body)
            for record, (_, body, vector) in zip(staged, drafts, strict=True)
        ]

    def commit(self, operations: Sequence[Operation]) -> None:
        self.inner.commit([self._sealed(operation) for operation in operations])
        self._staged.clear()

    def records(self, after: int = 0) -> Iterator[Record]:
        return (self._opened(record) for record in self.inner.records(after))

    def verify(self) -> int | None:
        return self.inner.verify()

    def examine(self) -> dict[str, Any] | None:
        return self.inner.examine()

    def scrub(self) -> bool:
        return self.inner.scrub()

    def close(self) -> None:
        self.inner.close()

    def rotate_key(self, namespace: str) -> bool:
        """Records keep their content bytes; their piece keys are wrapped by the fresh data key. A namespace without
        a key has nothing to rotate."""
        if namespace not in self.keyring.namespaces:
            return True
        self.keyring.rotate(namespace)
        self.inner.rewrite = self._renewed
        try:
            rewritten = self.inner.scrub()
        finally:
            self.inner.rewrite = None
        if rewritten:
            self.keyring.drop_old(namespace)
        return rewritten

    def _seal(self, seq: int, op: Op, body: Any, vector: bytes) -> bytes:
        plain = encode_json(body)
        return self.keyring.encrypt(
            _namespace(body), _LENGTH.pack(len(plain)) + plain + vector, _context(seq, op)
        )

    def _opened(self, record: Record) -> Record:
        if record.erased:
            return record
        if self.keyring.is_destroyed(record.body):
            return records.erase(record)
        plain = self.keyring.decrypt_any(record.body, _context(record.seq, record.op))
        (length,) = _LENGTH.unpack_from(plain)
        end = _LENGTH.size + length
        return replace(record, body=plain[_LENGTH.size : end], vector=plain[end:])

    def _sealed(self, operation: Operation) -> Operation:
        kept = {"request": operation.request, "result": operation.result}
        sealed = self.keyring.encrypt(SHARD, encode_json(kept), operation.op_id.encode())
        return replace(
            operation,
            request=_REQUEST,
            result=base64.b64encode(sealed).decode(),
            records=[self._staged[record.seq] for record in operation.records],
        )

    def _renewed(self, record: Record) -> Record:
        """The record wrapped by its namespace's present key, for a rewritten file."""
        if record.erased:
            return record
        if self.keyring.is_destroyed(record.body):
            return records.erase(record)
        renewed = self.keyring.renew(record.body)
        return record if renewed is record.body else replace(record, body=renewed)


def _namespace(body: Any) -> str:
    """The namespace that a record's body belongs to."""
    return str(body["memory"]["namespace"] if "memory" in body else body.get("namespace", SHARD))


def _context(seq: int, op: Op) -> bytes:
    return struct.pack(">QB", seq, op)
