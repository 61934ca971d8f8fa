"""Wires the deployments together and starts them on a running Ray cluster.

`serve.app:build` is the application builder for `serve run` and Serve's YAML as well.
"""

from typing import Any, cast

from ray import serve as ray_serve
from ray.serve.config import RequestRouterConfig
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.handle import DeploymentHandle

from common.config import Config, ServeConfig
from serve.access import check_bind
from serve.access_log import logging_config
from serve.api import Api
from serve.embedder_replica import EmbedderReplica
from serve.engine_replica import EngineReplica

NAME = "sharpwave"
WRITES_AT_ONCE = 192  # of one engine replica
# What the decorators made of them; a type checker still sees the classes.
API, ENGINE, EMBEDDER = (cast(ray_serve.Deployment, made) for made in (Api, EngineReplica, EmbedderReplica))


def build(config: Config) -> ray_serve.Application:
    """Raises `InvalidInput` for an open bind without API keys."""
    check_bind(config.serve.host, config.serve.api_keys)
    # A rolling update lets running requests finish, and starts new replicas before old ones end.
    rolling = {
        "graceful_shutdown_timeout_s": config.serve.deadline_s,
        "max_surge_percent": config.serve.surge_percent,
        "logging_config": logging_config(config),
    }
    engine = ENGINE.options(**rolling, **engine_options(config.serve)).bind(config)
    embedder = EMBEDDER.options(**rolling).bind(config)
    return API.options(**rolling).bind(config, engine, embedder)


def engine_options(serve: ServeConfig) -> dict[str, Any]:
    """Serve options of the engine: number of replicas, and routing by consistent hashing of the session that
    `Engines` sets."""
    options: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": 0.5, "num_gpus": serve.replica_gpus},
        # All that the API lets in, and writes beside them: `Api` has the bounded queue, not the router.
        "max_ongoing_requests": serve.max_queued + WRITES_AT_ONCE,
        "num_replicas": serve.min_replicas,
    }
    if serve.max_replicas > 1:
        options["request_router_config"] = RequestRouterConfig(request_router_class=ConsistentHashRouter)
    if serve.max_replicas > serve.min_replicas:
        options["num_replicas"] = None
        options["autoscaling_config"] = {
            "min_replicas": serve.min_replicas,
            "initial_replicas": serve.min_replicas,
            "max_replicas": serve.max_replicas,
            "target_ongoing_requests": serve.target_ongoing_requests,
        }
    return options


def deploy(config: Config) -> DeploymentHandle:
    """Start Serve's proxy on the configured address and the application on it; returns when it runs."""
    ray_serve.start(
        proxy_location="HeadOnly",
        http_options={
            "host": config.serve.host,
            "port": config.serve.port,
            "request_timeout_s": 10
            * config.serve.deadline_s,  # a long answer streams for longer than a part may be silent
        },
    )
    return ray_serve.run(build(config), name=NAME, route_prefix="/")


def embedding_dim() -> int:
    """Dimension of the running application's embedder, which the shards' vectors must have."""
    return int(ray_serve.get_deployment_handle("EmbedderReplica", NAME).dim.remote().result(timeout_s=120))
