"""A lock that many readers share."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PART = 500  # things, as facts or memories, that a long reader looks at in one hold
Took = Callable[[int], None]  # said by a long reader: so many things more


class ReadWriteLock:
    """Many readers or one writer. A waiting writer goes before new readers, so it never starves.
    Not reentrant."""

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
        """For a reader that takes long: it calls `took(n)` wherever it has looked at `n` things more and could
        bear that they change. After `PART` of them writers that wait go first. So who looks at fewer sees one
        moment."""
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
            if not self._readers:  # else nobody's turn has come
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
