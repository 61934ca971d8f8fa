"""Memories, vectors and shards for the tests of the stores."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config import StoreConfig
from stores.index.vectors import Vectors
from stores.memory.memory import Memory, parse_memory
from stores.shard.shard import Shard

DIM = 8
NOW = 1_700_000_000.0


def memory(id: str | None = None, *, namespace: str = "acme", **fields: Any) -> Memory:
    """An episodic memory unless `fields` say otherwise."""
    given = {} if id is None else {"id": id, "text": f"this is {id}"}
    return parse_memory({**given, **fields}, namespace=namespace, now=NOW, max_text_bytes=10_000)


def unit(seed: int, dim: int = DIM) -> Vectors:
    vector = np.random.default_rng(seed).normal(size=dim).astype(np.float32)
    return vector / np.linalg.norm(vector)


def axis(number: int) -> Vectors:
    """A basis vector: cosine 1 to itself, 0 to every other."""
    return np.eye(DIM, dtype=np.float32)[number]


def open_shard(path: Path, **config: Any) -> Shard:
    return Shard(path, number=0, dim=DIM, config=StoreConfig.model_validate(config))


FSYNC_SHIM = """
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
static int broken(void) { return access(getenv("FSYNC_FAILS_WHILE"), F_OK) == 0; }
int fdatasync(int fd) {
    if (broken()) { errno = EIO; return -1; }
    return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd);
}
int fsync(int fd) {
    if (broken()) { errno = EIO; return -1; }
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}
"""


def failing_fsync(folder: Path) -> dict[str, str]:
    """The environment of a process whose fsync fails with EIO while the file `folder/flag` is there."""
    if not (compiler := shutil.which("cc")):
        pytest.skip("needs a C compiler to make fsync fail")
    source, shim = folder / "shim.c", folder / "shim.so"
    source.write_text(FSYNC_SHIM)
    command = [compiler, "-D_GNU_SOURCE", "-shared", "-fPIC", "-o", str(shim), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return {"LD_PRELOAD": str(shim), "FSYNC_FAILS_WHILE": str(folder / "flag")}


def ids(found):
    """Of memories or of hits."""
    return [item.get("memory", item)["id"] for item in found]
