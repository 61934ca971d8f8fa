"""A lock that many readers share."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PART = 500  # items, such as facts or memories, that a long reader visits in one hold
Took = Callable[[int], None]  # progress callback: so many more items visited; may yield the lock


class ReadWriteLock:
    """Many readers or one writer; not reentrant. A waiting writer goes before new readers, so it never starves."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = 0
        self._writers_waiting = 0
        self._writing = False

    @contextmanager
    def read(self) -> Iterator[None]:
        self._enter()
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def read_in_parts(self) -> Iterator[Took]:
        """A read lock for a long reader. Yields `took`, a progress callback that may yield the lock.

        The reader calls `took(n)` after each further `n` items, at a point where they may change. After `PART`
        items it releases the lock to waiting writers and takes it again; a reader of fewer items sees one
        consistent state."""
        looked = 0

        def took(things: int) -> None:
            nonlocal looked
            looked += things
            if looked >= PART:
                looked = 0
                self._leave()
                self._enter()

        self._enter()
        try:
            yield took
        finally:
            self._leave()

    def _enter(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._writing and not self._writers_waiting)
            self._readers += 1

    def _leave(self) -> None:
        with self._changed:
            self._readers -= 1
            if not self._readers:  # otherwise no writer can enter yet
                self._changed.notify_all()

    @contextmanager
    def write(self) -> Iterator[None]:
        with self._changed:
            self._writers_waiting += 1
            self._changed.wait_for(lambda: not self._writing and not self._readers)
            self._writers_waiting -= 1
            self._writing = True
        try:
            yield
        finally:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
