"""Shared by the commands: exit codes, options, and the choice of the instance to talk to."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from common.config import Config, StoreConfig, load
from common.errors import InvalidInput, NotReady
from common.names import check_name
from common.types import Mode as Mode
from jobs.commands.client import Client
from jobs.instance import instance as instances
from jobs.instance.instance import Instance

OK, FAILED, USAGE, PARTIAL, RUNNING, CONFLICT, BROKEN = range(7)

Store = Annotated[
    Path,
    typer.Option("--store", envvar="SHARPWAVE_STORE__DIR", file_okay=False, help="the instance's folder"),
]
Url = Annotated[
    str | None, typer.Option(envvar="SHARPWAVE_URL", help="address of a server, instead of --store's")
]
Key = Annotated[
    str | None, typer.Option(envvar="SHARPWAVE_API_KEY", help="API key, if the server requires one")
]
Json = Annotated[bool, typer.Option("--json", help="one JSON document on stdout, errors included")]
Namespace = Annotated[
    str,
    typer.Option("--namespace", "-n", callback=lambda given: named(given), help="namespace of the memories"),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", exists=True, dir_okay=False, help="YAML file; see docs/config.md")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="one setting, as in train.lr=1e-4; repeatable"),
]
Out = Annotated[
    Path | None, typer.Option("--out", file_okay=False, help="folder of the report [default: runs/...]")
]
DEFAULT_STORE = Path(StoreConfig().dir)


def named(namespace: str) -> str:
    """The namespace in the form in which stores keep it. Raises `InvalidInput`."""
    return check_name(namespace, "namespace")


def running(store: Path) -> Instance:
    found = instances.read(store.expanduser().resolve())
    if found is None or not found.alive():
        raise NotReady(f"no instance runs on store {str(store)!r}; start one: sharpwave up --store {store}")
    return found


def connect(store: Path, url: str | None, api_key: str | None, *, patience_s: float = 60.0) -> Client:
    return Client(url or running(store).url, api_key=api_key, patience_s=patience_s)


def config_of(store: Path) -> Config:
    """The configuration that the store's instance runs or last ran with; the defaults if there never was one."""
    path = store.expanduser() / "config.yaml"
    return load(path, env={}) if path.is_file() else Config()


def given(**values: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def read_json_option(text: str | None, name: str) -> Any:
    """The value of an option that holds JSON; None where it is absent."""
    try:
        return None if text is None else json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"--{name} is not JSON: {error}", param=name) from error
