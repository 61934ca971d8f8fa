"""The short-lived Ray driver behind `sharpwave up`: starts the application, then the shards, which need the
dimension of its embedder. `/ready` waits for both.

    python -m jobs.instance.deploy CONFIG RESULT      # writes the dashboard's address to RESULT
    python -m jobs.instance.deploy --remove CONFIG    # ends both; the data stays on disk

RAY_ADDRESS names the cluster.
"""

import contextlib
import os
import sys
import threading
from pathlib import Path

import ray
from ray import serve as ray_serve

from common.config import Config, load
from common.files import write_json
from jobs.instance.waiting import WAITING

RAY_NAMESPACE = "sharpwave"
PARTS = {"EngineReplica": "the model", "EmbedderReplica": "the embedder", "Api": "the HTTP application"}


def deploy(config: Config) -> None:
    from actors.start import start_shards
    from serve import app

    _tell("the HTTP proxy")
    started = threading.Event()
    threading.Thread(target=_tell_parts, args=(app.NAME, started), daemon=True).start()
    try:
        app.deploy(config)
    finally:
        started.set()
    _tell("the shards, which open their logs")
    start_shards(config, app.embedding_dim())


def _tell_parts(application: str, started: threading.Event) -> None:
    """Print the deployments that are not healthy yet, until all are."""
    while not started.wait(1.0):
        with contextlib.suppress(Exception):  # Serve's controller may not run yet
            found = ray_serve.status().applications[application].deployments
            waiting = [PARTS.get(name, name) for name, one in found.items() if one.status != "HEALTHY"]
            if waiting and not started.is_set():
                _tell(", ".join(sorted(waiting, reverse=True)))


def _tell(what: str) -> None:
    print(f"{WAITING}{what}", flush=True)


def remove() -> None:
    from actors.start import stop_shards
    from serve import app

    ray_serve.delete(app.NAME)
    if not ray_serve.status().applications:  # no other application either
        ray_serve.shutdown()
    stop_shards()


def main(argv: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if argv is None else argv
    removing = arguments[0] == "--remove"
    config = load(arguments[1] if removing else arguments[0], env={})
    context = ray.init(os.environ["RAY_ADDRESS"], namespace=RAY_NAMESPACE, log_to_driver=False)
    if removing:
        remove()
        return
    deploy(config)
    dashboard = context.dashboard_url
    write_json(Path(arguments[1]), {"dashboard": f"http://{dashboard}" if dashboard else ""})


if __name__ == "__main__":
    main()
