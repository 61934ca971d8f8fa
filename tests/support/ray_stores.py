"""A local Ray, and stores on it, for the tests of the actors."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from actors.layout.layout import RAY_NAMESPACE
from common.config import Config, load


@contextmanager
def local_ray(*, num_gpus: int = 0) -> Iterator[None]:
    """Of this test file alone: two CPUs, a small object store, and so many GPUs in Ray's books (there need be none)."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # a local ray.init would set it to token for every later test
    for attempt in range(3):
        try:
            ray.init(
                address="local",  # never somebody's cluster on this machine
                num_cpus=2,
                num_gpus=num_gpus,
                include_dashboard=False,
                object_store_memory=80 << 20,
                namespace=RAY_NAMESPACE,
                log_to_driver=False,
            )
            break
        except Exception:  # Ray gives its own start 30 s, too few on a machine that is very busy
            ray.shutdown()
            if attempt == 2:
                raise
    try:
        yield
    finally:
        ray.shutdown()


def store_config(folder: Path, shards: int, **settings: Any) -> Config:
    """`settings` are of the section `store`."""
    given = {f"store.{name}": value for name, value in settings.items()}
    overrides = {"store.dir": str(folder), "store.shards": shards, "serve.deadline_s": 60, **given}
    return load(env={}, overrides=overrides)
