"""The layout record of shards whose logs are on a local disk: `layout.json` beside them."""

import fcntl
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actors.layout.layout import ShardLayout, from_json
from common.errors import Conflict
from common.files import read_json, write_json

_FOLDER = re.compile(r"\d{4}|g\d+")


class LayoutFile:
    """The layout record as a file; see `LayoutRecord`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / "layout.json"

    def read(self) -> ShardLayout | None:
        return from_json(read_json(self._path)) if self._path.exists() else None

    def swap(self, expected: ShardLayout | None, new: ShardLayout) -> bool:
        with self._locked("layout.lock", fcntl.LOCK_EX):
            if self.read() != expected:
                return False
            write_json(self._path, new.to_json())
            return True

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        try:
            with self._locked("reshard.lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
                yield
        except BlockingIOError:
            raise Conflict(f"{self._path.parent} is being resharded; wait for that to end") from None

    def drop(self, folder: str) -> None:
        shutil.rmtree(self._folder / folder, ignore_errors=True)

    def drop_others(self, layout: ShardLayout) -> None:
        kept = {layout.folder(number).partition("/")[0] for number in layout.placement.numbers}
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            if path.is_dir() and _FOLDER.fullmatch(path.name) and path.name not in kept:
                shutil.rmtree(path)

    @contextmanager
    def _locked(self, name: str, how: int) -> Iterator[None]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with (self._path.parent / name).open("a") as file:
            fcntl.flock(file, how)
            yield
