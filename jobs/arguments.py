"""Options that every job has, and its start: connect to the cluster and resolve the configuration."""

import argparse
import logging
import time
from pathlib import Path

import ray
from ray import serve as ray_serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from actors.layout.layout import RAY_NAMESPACE
from common import config
from common.config import Config
from common.errors import NotReady
from common.names import normal
from serve.app import NAME


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--namespace", default="default", type=normal)
    parser.add_argument(
        "--out", type=Path, help="folder of the report; default: a new one under the store's runs/"
    )
    parser.add_argument("--config", help="YAML file over the running instance's configuration")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="repeatable")


def join(arguments: argparse.Namespace, *, workers_speak: bool = False) -> tuple[Config, DeploymentHandle]:
    """Connect to Ray. Returns the running instance's configuration with this job's settings, and its application.

    `workers_speak`: show the workers' output in the job's log, as a training needs for its progress.

    Raises `NotReady` if no instance runs on the cluster, `InvalidInput` for a bad setting.
    """
    overrides = dict(map(config.parse_override, arguments.set))
    config.load(arguments.config, overrides=overrides)  # a typo must not wait for the cluster
    ray.init(
        namespace=RAY_NAMESPACE,
        ignore_reinit_error=True,
        log_to_driver=workers_speak,
        logging_level="warning",
    )
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        app = ray_serve.get_app_handle(NAME)
    except RayServeException as error:
        raise NotReady("no instance runs on this cluster; start one with: sharpwave up") from error
    base = app.running_config.remote().result(timeout_s=60)
    return config.load(arguments.config, overrides=overrides, base=base), app


def run_folder(settings: Config, arguments: argparse.Namespace, job: str) -> Path:
    """The folder of a run's report: `--out`, or `<store>/runs/<job>-<time>`."""
    if arguments.out is not None:
        return Path(arguments.out).resolve()
    return settings.store_dir / "runs" / f"{job}-{time.strftime('%Y%m%d-%H%M%S')}"
