"""What the parts of a shard share: log, view, lock, group commit, snapshots.

Every write has five steps: look up its `op_id`, plan, stage, commit (one fsync), apply to the view. Threads that write
at the same time share one batch (`stores.writes.group_commit`). Readers never wait for the disk: they share the
view's lock, which a writer holds only for the last step, so they see an operation whole or not at all.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from common.config import StoreConfig
from stores.locks import ReadWriteLock
from stores.log.base import Operation
from stores.log.encrypted import SHARD
from stores.log.open import open_log
from stores.log.record import Op, Record
from stores.snapshots.files import Capture, capture
from stores.snapshots.manager import Snapshots
from stores.view.view import Space, View
from stores.writes.group_commit import GroupCommit, Key, Pending, Planned, Sought, Ticket, space_key
from stores.writes.kept_results import KeptResults


class ShardCore:
    """`view` is read under `view_lock`; `log` is written through `write` only, or under `commits.lock`.

    Opening replays the log and raises `StoreCorrupt` if a record is damaged: nothing is served from a log that
    fails its checks.
    """

    def __init__(
        self, path: Path, *, number: int, dim: int, config: StoreConfig, wait_s: float = 0.0
    ) -> None:
        """See `Shard`."""
        self.number, self.dim, self.config = number, dim, config
        self.view_lock = ReadWriteLock()
        self.log = open_log(path, config=config, identity={"shard": number, "dim": dim}, wait_s=wait_s)
        self.snapshots = Snapshots(
            path / "snapshots",
            every=config.snapshot_every,
            keep=config.snapshots_kept,
            encryptor=self.log.keyring,
            config=config,
        )
        self.kept_results = KeptResults(self.log)
        try:
            self.view = self._replay()
        except BaseException:
            self.log.close()
            raise
        self.view.start()
        self._destroy_unused_keys()
        self.state = self.log.state()  # as of what readers see
        self.commits = GroupCommit(self.log, self._show, at_most=config.batch_operations, around=self._around)
        self.snapshots.make_if_due(self.log.seq, self.capture)

    def write(
        self,
        op_id: str,
        request: str,
        plan: Callable[[Pending], Planned],
        *,
        now: float,
        spaces: Iterable[str] = (),
        owns: Iterable[str] = (),
        keys: Iterable[Key] = (),
        shared: Iterable[Key] = (),
        seeks: Sought | None = None,
    ) -> Any:
        """Perform one write. `plan` returns its records and result; `request` is a digest of the request.

        `spaces` are the namespaces it changes, `owns` those where it removes memories or changes their content; for
        `keys`, `shared` and `seeks` see `group_commit`. Returns the result once it is on disk and visible. A second
        call with the same `op_id` returns the result of the first.
        """
        ticket = Ticket(
            op_id,
            request,
            plan,
            now=now,
            keys=[*map(space_key, owns), *keys],
            shared=[*map(space_key, spaces), *shared],
            seeks=seeks,
        )
        return self.commits.do(ticket)

    def space(self, namespace: str) -> Space | None:
        """The namespace in the view, or None; read it under `view_lock`."""
        return self.view.spaces.get(namespace)

    @property
    def failure(self) -> str | None:
        """Why writes are refused, or None."""
        return self.commits.failure or self.log.failure

    def capture(self) -> Capture:
        """The view as a snapshot needs it. Writers wait while references and vectors are copied."""
        with self.view_lock.read():
            return capture(self.view, self.state, self.number)

    def close(self) -> None:
        with self.commits.lock:
            if not self.failure:
                self.snapshots.close(self.log.seq, self.capture)
            self.log.close()

    def _replay(self) -> View:
        """The newest snapshot that passes its checks, and the log behind it."""
        view, seq = self.snapshots.open(self.log, self.dim)
        erasures = [0]

        def tail() -> Iterator[Record]:
            for record in self.log.records(after=seq):
                if record.op is Op.FORGET or _forgets_turns(record):
                    erasures.append(record.seq)
                yield record

        view.replay(tail())
        self.snapshots.purge(before=erasures[-1])  # an erasure that a crash cut off
        return view

    @contextmanager
    def _around(self, operations: Sequence[Operation]) -> Iterator[None]:
        """Context of a commit: content that it erases is removed from the snapshots before any caller is answered."""
        erases = any(operation.erase for operation in operations)
        with self.snapshots.purging(self.capture) if erases else nullcontext():
            yield
        self.snapshots.make_if_due(self.log.seq, self.capture)

    def _show(self, records: Sequence[Record]) -> None:
        """Make a committed batch visible, all of it at once."""
        with self.view_lock.write():
            self.view.replay(records)
            self.state = self.log.state()

    def _destroy_unused_keys(self) -> None:
        """Destroy keys of namespaces that hold nothing: a crash may have separated an erasure from its keys."""
        if keyring := self.log.keyring:
            for namespace in {*keyring.namespaces} - {*self.view.spaces} - {SHARD}:
                keyring.destroy(namespace)


def _forgets_turns(record: Record) -> bool:
    return record.op is Op.TURNS and not record.erased and "keep" in record.content()
