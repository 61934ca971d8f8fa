"""Wires the deployments together and starts them on a running Ray cluster.

`serve.app:build` is the application builder for `serve run` and Serve's YAML as well.
"""

from ray import serve as ray_serve
from ray.serve.handle import DeploymentHandle

from common.config import Config
from serve.access import check_bind
from serve.api import Api
from serve.replicas import EmbedderReplica, EngineReplica

NAME = "sharpwave"


def build(config: Config) -> ray_serve.Application:
    """Raises `InvalidInput` for an open bind without API keys."""
    check_bind(config.serve.host, config.serve.api_keys)
    return Api.bind(config, EngineReplica.bind(config), EmbedderReplica.bind(config))  # type: ignore[attr-defined]


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
    """Of the running application's embedder: what the shards' vectors have to fit."""
    return int(ray_serve.get_deployment_handle("EmbedderReplica", NAME).dim.remote().result(timeout_s=120))
