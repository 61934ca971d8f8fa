"""One shard as a Ray actor: named, detached, and back with everything after a kill."""

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from common.config import Config, StoreConfig
from common.errors import Conflict, NotReady, SharpwaveError
from common.files import read_json, write_json
from stores.index import Vectors
from stores.memory import Memory
from stores.shard import Shard

RAY_NAMESPACE = "sharpwave"
MAX_PENDING_CALLS = 1000  # of one client to one shard, before `Overloaded`
FORMER_OWNER_S = 10.0  # a killed process may hold the log for a moment longer

Json = dict[str, Any]
Page = list[Json]


@ray.remote(
    num_cpus=0.05,  # more than none, so that no autoscaler takes the node away
    max_restarts=-1,
    max_task_retries=0,  # ShardedStore repeats calls itself, within a deadline
    max_pending_calls=MAX_PENDING_CALLS,
    concurrency_groups={"write": 1, "read": 4, "control": 1},
)
class StoreShard:
    """One `Shard` in a process of its own. Arguments and answers are `Shard`'s.

    A log that cannot be opened does not kill the actor: every call says what is wrong, and tries again.
    """

    def __init__(self, path: str, number: int, dim: int, config: StoreConfig) -> None:
        self._path, self._number, self._dim, self._config = Path(path), number, dim, config
        self._opening = threading.Lock()
        self._opened: Shard | None = None
        with suppress(SharpwaveError):
            self._shard()

    def _shard(self) -> Shard:
        with self._opening:
            if self._opened is None:
                self._opened = Shard(
                    self._path,
                    number=self._number,
                    dim=self._dim,
                    config=self._config,
                    wait_s=FORMER_OWNER_S,
                )
            return self._opened

    @ray.method(concurrency_group="write")
    def put(self, memories: Sequence[Memory], vectors: Vectors, **options: Any) -> Page:
        return self._shard().put(list(zip(memories, vectors, strict=True)), **options)

    @ray.method(concurrency_group="write")
    def touch(self, *args: Any, **options: Any) -> Json:
        return self._shard().touch(*args, **options)

    @ray.method(concurrency_group="write")
    def score(self, *args: Any, **options: Any) -> Json:
        return self._shard().score(*args, **options)

    @ray.method(concurrency_group="write")
    def forget(self, *args: Any, **options: Any) -> Json:
        return self._shard().forget(*args, **options)

    @ray.method(concurrency_group="read")
    def prepare(
        self, memories: Sequence[Memory], namespaces: Sequence[str], vectors: Vectors
    ) -> tuple[list[str | None], list[float]]:
        """`check` of this shard's own memories and `nearest` of everybody's vectors."""
        return self._shard().check(memories), self._shard().nearest(namespaces, vectors)

    @ray.method(concurrency_group="read")
    def get(self, *args: Any) -> Json | None:
        return self._shard().get(*args)

    @ray.method(concurrency_group="read")
    def list(self, *args: Any, **options: Any) -> Any:
        return self._shard().list(*args, **options)

    @ray.method(concurrency_group="read")
    def candidates(self, *args: Any, **options: Any) -> Json:
        return self._shard().candidates(*args, **options)

    @ray.method(concurrency_group="read")
    def statistics(self, namespace: str) -> pa.Table:
        return self._shard().statistics(namespace)

    @ray.method(concurrency_group="control")
    def counts(self) -> Json:
        return self._shard().counts()

    @ray.method(concurrency_group="write")  # it holds writes back, and must not hold back `counts`
    def verify(self) -> int | None:
        return self._shard().verify()

    @ray.method(concurrency_group="control")
    def about(self) -> Json:
        """Who this is: `{path, dim, pid}`; answers once the log is open."""
        self._shard()
        return {"path": str(self._path), "dim": self._dim, "pid": os.getpid()}


def start_shards(config: Config, dim: int) -> None:
    """Start the shards that are not running yet; returns when every log is open.

    `dim` is the embedder's. Raises `Conflict` where the folder was made for other settings, and what the
    shard itself raises where a log cannot be opened.
    """
    folder = config.store_dir / "shards"
    _check_layout(folder, config.store.shards)
    actors = [
        StoreShard.options(  # type: ignore[attr-defined]
            name=actor_name(number),
            namespace=RAY_NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
        ).remote(str(folder / f"{number:04d}"), number, dim, config.store)
        for number in range(config.store.shards)
    ]
    try:
        answers = ray.get([actor.about.remote() for actor in actors], timeout=config.serve.deadline_s)
    except RayTaskError as error:
        raise cause_of(error) from None
    except (RayActorError, GetTimeoutError) as error:
        raise NotReady(f"the shards in {folder} did not start: {error}") from error
    for number, answer in enumerate(answers):
        wanted = {"path": str(folder / f"{number:04d}"), "dim": dim}
        found = {name: answer[name] for name in wanted}
        if found != wanted:
            raise Conflict(
                f"{actor_name(number)} is running as {found}, not as {wanted}; stop that one first"
            )


def actor_name(number: int) -> str:
    return f"shard-{number}"


def cause_of(error: RayTaskError) -> Exception:
    """What the shard raised, as it raised it."""
    return error.cause if isinstance(error.cause, SharpwaveError) else error


def _check_layout(folder: Path, shards: int) -> None:
    """The number of shards decides where an id lives, so it is fixed when the store is made."""
    layout = folder / "layout.json"
    if not layout.exists():
        write_json(layout, {"shards": shards})
    made = read_json(layout)["shards"]
    if made != shards:
        raise Conflict(
            f"store.shards = {shards}: {folder} was made with {made}; keep that number", param="shards"
        )
