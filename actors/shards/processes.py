"""The actor processes of shards: starting, finding and ending them."""

import re
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.layout.layout import RAY_NAMESPACE, ShardLayout
from actors.layout.records import beside_record, keys_record, layout_record, shards_folder
from actors.shards.actor import StoreShard
from actors.shards.calls import cause_of
from common.config import Config
from common.errors import Conflict, NotReady
from common.types import Json

_RESOURCE_SHARE = 0.001  # of `store.actor_resource`, so that any number of shards fits on a node that has it
_ACTOR = re.compile(r"shard-\d+(-g\d+)?")


def start_generation(config: Config, layout: ShardLayout, dim: int) -> list[Any]:
    """Handles of the layout's shards, all of them open. Raises as `start_shards`."""
    options = _options(config)
    actors = [
        StoreShard.options(  # type: ignore[attr-defined]
            name=layout.actor_name(number),
            namespace=RAY_NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            **options,
        ).remote(config, layout.generation, layout.folder(number), number, dim)
        for number in layout.placement.numbers
    ]
    folder = shards_folder(config)
    try:
        answers = ray.get([actor.about.remote() for actor in actors], timeout=config.serve.deadline_s)
    except RayTaskError as error:
        raise cause_of(error) from None
    except (RayActorError, GetTimeoutError) as error:
        raise NotReady(f"the shards in {folder} did not start: {error}") from error
    for number, answer in enumerate(answers):
        wanted = {"path": str(folder / layout.folder(number)), "dim": dim}
        found = {name: answer[name] for name in wanted}
        if found != wanted:
            raise Conflict(
                f"{layout.actor_name(number)} is running as {found}, not as {wanted}; stop that one first"
            )
    return actors


def clean(config: Config, layout: ShardLayout) -> None:
    """Remove shards of other generations than the layout's. Only under `LayoutRecord.exclusive`."""
    named = {layout.actor_name(number) for number in layout.placement.numbers}
    for name in running():
        if name not in named:
            kill(name)
    for record in (layout_record(config), beside_record(config), keys_record(config)):
        if record is not None:
            record.drop_others(layout)


def handle(name: str) -> Any:
    """The handle of a shard's actor. Raises `ValueError` if there is none."""
    return ray.get_actor(name, namespace=RAY_NAMESPACE)


def kill(name: str) -> None:
    with suppress(ValueError):
        ray.kill(handle(name), no_restart=True)


def running() -> list[str]:
    found = ray.util.list_named_actors(all_namespaces=True)
    return [
        actor["name"]
        for actor in found
        if actor["namespace"] == RAY_NAMESPACE and _ACTOR.fullmatch(actor["name"])
    ]


def _options(config: Config) -> Json:
    """Scheduling options of shards. A local log needs the node with its disk. The strategy is always set, since a
    detached actor would otherwise join the placement group of its creator."""
    store = config.store
    options: Json = {"num_cpus": store.actor_cpus}
    if store.actor_resource is not None:
        options["resources"] = {store.actor_resource: _RESOURCE_SHARE}
    if store.node_labels:
        return options | {"label_selector": dict(store.node_labels), "scheduling_strategy": "DEFAULT"}
    if store.backend == "redis":  # any node will do
        return options | {"scheduling_strategy": "SPREAD"}
    here = ray.get_runtime_context().get_node_id()
    return options | {"scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}
