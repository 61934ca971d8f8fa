"""The command `reshard`, and the short-lived Ray driver behind it, which changes the number of shards while serving.

    python -m jobs.commands.reshard CONFIG SHARDS [SPREAD]     # the last line of stdout is the report

RAY_ADDRESS names the cluster.
"""

import json
import os
import subprocess
import sys
from typing import Annotated

import typer

from common.config import load
from common.errors import InvalidInput, SharpwaveError
from jobs.commands.options import DEFAULT_STORE, Json, Store, running
from jobs.commands.output import emit, flat, note, table
from jobs.instance.source import ROOT


def reshard(
    shards: Annotated[int, typer.Option(min=1, max=1024, help="new number of shards")],
    spread: Annotated[
        int | None, typer.Option(min=1, max=1024, help="shards of one namespace; default: store.spread")
    ] = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Change the number of shards. Reads continue; writes wait during the last step only.

    \b
    sharpwave reshard --shards 5
    sharpwave reshard --shards 5 --spread 2 --json
    """
    instance = running(store)
    command = [sys.executable, "-m", "jobs.commands.reshard", str(instance.config_path), str(shards)]
    command += [] if spread is None else [str(spread)]
    environment = {**os.environ, **instance.ray_environment()}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    last = ""
    for line in process.stdout:
        if last:
            note(last)
        last = line.strip()
    if process.wait():
        note(last)
        raise SharpwaveError("the store was not resharded; the reason is above")
    report = json.loads(last)
    emit(report, as_json=as_json, text=table(flat(report)))


def main(argv: list[str]) -> None:
    import ray

    from actors.layout.layout import RAY_NAMESPACE
    from actors.reshard import reshard as divide

    if not 2 <= len(argv) <= 3:
        raise InvalidInput("give CONFIG SHARDS [SPREAD]")
    config = load(argv[0], env={})
    ray.init(os.environ["RAY_ADDRESS"], namespace=RAY_NAMESPACE, log_to_driver=False)
    spread = int(argv[2]) if len(argv) == 3 else None
    report = divide(config, int(argv[1]), spread=spread, say=lambda message: print(message, flush=True))
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except SharpwaveError as error:
        print(error.message, flush=True)
        sys.exit(1)
