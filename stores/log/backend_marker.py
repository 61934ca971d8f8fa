"""Which backend wrote a folder's log: opened with another one it would look empty.

LMDB and JSON lines are recognised by their files. A log in Redis leaves no file here, so opening one writes
`backend.json`; on a node that never had that shard nothing can be checked.
"""

from pathlib import Path

from common.errors import Conflict
from common.files import read_json, write_json

NOTE = "backend.json"
_FILES = {"lmdb": "data.mdb", "jsonl": "log.jsonl"}


def check_log(path: Path, backend: str) -> None:
    """Raises `Conflict` if the log in `path` was written by another backend than `backend`."""
    for made in _made_with(path):
        if made != backend:
            raise _other(path, made, backend)


def note_redis(path: Path) -> None:
    if not (path / NOTE).exists():
        write_json(path / NOTE, {"backend": "redis"})


def check_shards(folder: Path, backend: str) -> None:
    """`check_log` for all shards of a store, of every generation, before anything is created there."""
    if backend == "redis" and (folder / "layout.json").exists():
        made = {made for log in _logs(folder) for made in _made_with(log)} - {"redis"}
        raise _other(folder, " or ".join(sorted(made or _FILES)), backend)
    for log in _logs(folder) if backend != "redis" else ():
        if (log / NOTE).exists():
            raise _other(folder, "redis", backend)


def _logs(folder: Path) -> list[Path]:
    return [log for pattern in ("[0-9]*", "g*/[0-9]*") for log in sorted(folder.glob(pattern))]


def _made_with(path: Path) -> list[str]:
    noted = [read_json(path / NOTE)["backend"]] if (path / NOTE).exists() else []
    return noted + [backend for backend, name in _FILES.items() if (path / name).exists()]


def _other(path: Path, made: str, wanted: str) -> Conflict:
    return Conflict(
        f"store.backend = {wanted!r}: {path} was made with {made}; keep that backend, or export each namespace "
        "with it, start a new store in another folder, and import",
        param="store.backend",
        code="other_backend",
    )
