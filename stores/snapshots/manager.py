"""The snapshots of one shard: which are kept, when one is made, and which one opening uses.

    path/snapshots/<seq>/   see `files.py`

An erasure removes the snapshots that may hold erased content: `purging` keeps any from appearing while an erasure is
written and removes all of them after it. If that is interrupted, the next open completes it: a marker file shows it,
and on another machine the erasure among the records after the snapshot.
"""

import logging
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.config import StoreConfig
from common.errors import NotFound, NotReady, SharpwaveError, StoreCorrupt
from common.files import sync_folder, write_bytes
from stores.log.base import Log
from stores.snapshots import files
from stores.snapshots.files import TEMPORARY, Capture, Encryptor
from stores.snapshots.manifest import read_manifest, refused
from stores.view.view import View

logger = logging.getLogger(__name__)

PURGE_DUE = "purge-due"
QUIET_S = 5.0  # without a further erasure before a new snapshot is made


class Snapshots:
    """Safe for many threads; one snapshot is written at a time. A failed one is logged and counted,
    and loses nothing: the log has everything."""

    def __init__(
        self,
        folder: Path,
        *,
        every: int,
        keep: int,
        encryptor: Encryptor | None = None,
        config: StoreConfig | None = None,
    ) -> None:
        """`every`: records between two snapshots; 0: only explicit ones. `keep`: how many are kept.
        `config` is for the views."""
        self.folder = folder
        self.seq = 0
        self.passed_over: Counter[str] = Counter()
        self._bad: set[Path] = set()  # passed over; removed when there is a better one
        self._every = every
        self._keep = keep
        self._sealer = encryptor
        self._config = config
        self._next = every
        self._erasures = 0
        self._erased_at = float("-inf")
        self._writing = threading.RLock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        for left in folder.glob(f"{TEMPORARY}*"):  # left by a crash
            shutil.rmtree(left, ignore_errors=True)
        self.finish_purge()

    def finish_purge(self) -> None:
        """Complete a purge that was interrupted or failed on the disk."""
        with self._writing:
            if (self.folder / PURGE_DUE).exists():
                self.purge()
                (self.folder / PURGE_DUE).unlink()

    def folders(self) -> list[Path]:
        """Newest first."""
        return sorted((path for path in self.folder.glob("[0-9]*") if path.is_dir()), reverse=True)

    def status(self) -> dict[str, Any]:
        """`{seq, passed_over: {reason: times}}`: the record that the newest one covers, 0 if there is none."""
        return {"seq": self.seq, "passed_over": dict(self.passed_over)}

    def open(self, log: Log, dim: int) -> tuple[View, int]:
        """A view and the number of its last record: from the newest snapshot that passes its checks, or empty and 0.
        Those passed over are logged and counted by reason."""
        for folder in self.folders():
            try:
                files.check_log(folder, read_manifest(folder), log)
                manifest, spaces = files.load(folder, encryptor=self._sealer)
                if len(spaces) < manifest["counts"]["namespaces"]:  # only the log shows whether it is erased
                    raise refused(folder, "key", "a key that it was sealed under has been destroyed")
                view = View(dim, self._config)
                for space in spaces:
                    view.restore(space.namespace, space.entries(), space.vectors, space.parts)
            except StoreCorrupt as error:
                if error.fault is not None:  # the log itself is damaged
                    raise
                self._pass_over(folder, error.code, error.message)
            except (NotFound, NotReady, KeyError, ValueError, TypeError, RuntimeError) as error:
                self._pass_over(
                    folder, "unreadable", f"snapshot {folder.name} is passed over: {_kind(error)}"
                )
            else:
                self._reached(manifest["seq"])
                return view, self.seq
        return View(dim, self._config), 0

    def make(self, take: Callable[[], Capture]) -> Path | None:
        """Write a snapshot of the state captured by `take`. None if the newest covers it already, the log is empty, or
        an erasure came meanwhile."""
        with self._writing:
            erasures = self._erasures
            captured = take()
            if captured.seq == self.seq:
                return None

            def go_on() -> None:
                if self._erasures != erasures:
                    raise _Overtaken

            try:
                made = files.write(
                    self.folder, captured, now=time.time(), encryptor=self._sealer, go_on=go_on
                )
            except _Overtaken:
                return None
            self._reached(captured.seq)
            self._bad.discard(made)
            good = [path for path in self.folders() if path not in self._bad]
            for old in [*good[self._keep :], *self._bad]:
                shutil.rmtree(old, ignore_errors=True)
            self._bad.clear()
            return made

    def make_if_due(self, seq: int, take: Callable[[], Capture]) -> None:
        """Start one in the background if record `seq` is far enough from the last."""
        if self._every and seq >= self._next and not self._closing.is_set():
            self._next = seq + self._every  # a failed one is retried only after as many records
            self._start(take)

    def close(self, seq: int, take: Callable[[], Capture]) -> None:
        """Wait for the one being written; make a last one if opening would replay a long tail."""
        self._closing.set()
        self.join()
        if self._every and seq - self.seq >= max(1, self._every // 10):
            self._try(take)

    @contextmanager
    def purging(self, take: Callable[[], Capture]) -> Iterator[None]:
        """Context of the commit of an erasure. Stops a snapshot that is being written, removes all when the
        erasure is done, and makes a new one when no further erasures come."""
        self._erasures += 1
        with self._writing:
            had = bool(self.folders())
            if had:  # if this is interrupted, the next open completes it
                write_bytes(self.folder / PURGE_DUE, b"")
            yield
            self.purge()
            (self.folder / PURGE_DUE).unlink(missing_ok=True)
        self._erased_at = time.monotonic()
        if had and self._every:
            self._start(take)

    def purge(self, before: int | None = None) -> int:
        """Remove the snapshots, or those that cover less than record `before`. Returns how many."""
        with self._writing:
            gone = [path for path in self.folders() if before is None or int(path.name) < before]
            for path in gone:
                shutil.rmtree(path)
            if gone:
                sync_folder(self.folder)
                self.seq = max((int(path.name) for path in self.folders()), default=0)
            return len(gone)

    def _pass_over(self, folder: Path, reason: str, what: str) -> None:
        self._bad.add(folder)
        self.passed_over[reason] += 1
        logger.warning("%s", what)

    def join(self) -> None:
        """Wait for the snapshot that is being written in the background, if one is."""
        if self._thread is not None:
            self._thread.join()

    def _reached(self, seq: int) -> None:
        self.seq, self._next = seq, seq + self._every

    def _start(self, take: Callable[[], Capture]) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, args=(take,), name="snapshot", daemon=True)
            self._thread.start()

    def _run(self, take: Callable[[], Capture]) -> None:
        while (wait_s := self._erased_at + QUIET_S - time.monotonic()) > 0:
            if self._closing.wait(wait_s):
                return
        self._try(take)

    def _try(self, take: Callable[[], Capture]) -> None:
        try:
            self.make(take)
        except Exception as error:  # whatever the error, the shard goes on without it
            self.passed_over["failed"] += 1
            logger.warning("a snapshot in %s failed: %s", self.folder, _kind(error))


def _kind(error: Exception) -> str:
    """The error's type, for the process log: Arrow's messages contain values of memories."""
    known = (SharpwaveError, OSError)
    return f"{type(error).__name__}: {error}" if isinstance(error, known) else type(error).__name__


class _Overtaken(Exception):
    """Raised if an erasure came while the snapshot was written."""
