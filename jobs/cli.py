"""The `sharpwave` command. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done in part, 4 already running,
5 conflict (another write came first), 6 broken (`verify`) or not erased (`probe`)."""

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from common.config import Config, load, parse_override
from common.errors import Conflict, InvalidInput, NotFound, NotReady, SharpwaveError
from common.names import encoded
from jobs.commands.ask import ask
from jobs.commands.client import Client
from jobs.commands.jobs import consolidate, evaluate, score
from jobs.commands.keys import keys
from jobs.commands.memories import export, get, history, import_file, list_memories, search, update, weakest
from jobs.commands.operations import probe, restart_shard, seal, snapshot, verify
from jobs.commands.options import (
    BROKEN,
    CONFLICT,
    DEFAULT_STORE,
    FAILED,
    OK,
    PARTIAL,
    RUNNING,
    USAGE,
    ConfigFile,
    Json,
    Key,
    Namespace,
    Settings,
    Store,
    Url,
    connect,
    given,
    read_json_option,
    running,
)
from jobs.commands.output import emit, flat, note, table
from jobs.commands.reshard import reshard
from jobs.commands.sql import sql
from jobs.commands.stores import facts, lines, places, turns
from jobs.commands.teach_command import teach
from jobs.instance import instance as instances
from stores.memory.filters import compile_filter

LOCAL_CONFIG = Path("sharpwave.yaml")

app = typer.Typer(
    name="sharpwave",
    help=f"""A memory for language models that ends in their weights.

    \b
    sharpwave up                                  start an instance here
    sharpwave teach experiences.jsonl             write memories
    sharpwave ask "Where does Ada live?"          answer with them
    sharpwave search "Lisbon"                     look into the memory
    sharpwave score                               measure which memory matters to which response
    sharpwave consolidate                         train them into an adapter, published if the gate accepts it
    sharpwave ask "Where does Ada live?" --model base:latest --mode off
    sharpwave down

    Exit codes: {OK} done, {FAILED} failed, {USAGE} wrong usage, {PARTIAL} done in part (the write
    gate refused memories, rows of a matrix failed, or an adapter was rolled back), {RUNNING} already running,
    {CONFLICT} conflict (another version was written meanwhile), {BROKEN} a chain is broken (verify) or
    content is still there (probe).
    """,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command()
def up(
    model: Annotated[
        str | None, typer.Option(help="short name, Hugging Face id, folder, or .gguf file")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(file_okay=False, help="folder of all data of the instance")
    ] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="HTTP port; 0: a free one")] = None,
    host: Annotated[
        str | None, typer.Option(help="HTTP address; any but loopback needs serve.api_keys")
    ] = None,
    config: ConfigFile = None,
    settings: Settings = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="do not return; Ctrl-C stops the instance")
    ] = False,
    rolling: Annotated[
        bool, typer.Option("--update", help="switch the running instance to this configuration")
    ] = False,
    timeout_s: Annotated[
        float, typer.Option("--timeout-s", min=1.0, help="seconds it may take to start, or to roll over")
    ] = instances.DEADLINE_S,
    as_json: Json = False,
) -> None:
    """Start an instance on this machine; returns when it answers, and says meanwhile what it waits for.

    \b
    sharpwave up
    sharpwave up --model smollm2-135m --store ~/memory --port 8099
    sharpwave up --store other --port 0           a second one beside it
    sharpwave up --update --set serve.max_batch=16      without an interruption
    """
    flags = {"model.name": model, "serve.port": port, "serve.host": host}
    resolved = _load(config, settings, flags | {"store.dir": None if store is None else str(store)})
    with _signals():
        started = (instances.update if rolling else instances.up)(resolved, say=note, deadline_s=timeout_s)
        shown = {
            "url": started.url,
            "store": started.store,
            "model": started.model,
            "dashboard": started.dashboard,
        }
        emit(shown, as_json=as_json, text=started.url)
        option = "" if started.store == str(DEFAULT_STORE.resolve()) else f" --store {started.store}"
        if not foreground:
            note(f"next: sharpwave teach FILE{option}    stop: sharpwave down{option}")
            return
        try:
            instances.wait(started)
            raise NotReady("the instance ended by itself; logs are in " + str(Path(started.store) / "logs"))
        finally:
            note("stopping")
            instances.down(Path(started.store))


@app.command()
def down(store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """Stop the instance of a store, and nothing else. Its data stays on disk.

    \b
    sharpwave down
    sharpwave down --store ~/memory
    """
    stopped = instances.down(store)
    emit({"stopped": stopped}, as_json=as_json, text="stopped" if stopped else "nothing is running")


app.command()(teach)


COMMANDS: dict[str, Callable[..., None]] = {
    "ask": ask,
    "score": score,
    "consolidate": consolidate,
    "evaluate": evaluate,
    "search": search,
    "list": list_memories,
    "get": get,
    "history": history,
    "update": update,
    "weakest": weakest,
    "export": export,
    "import": import_file,
    "facts": facts,
    "places": places,
    "turns": turns,
    "lines": lines,
    "seal": seal,
    "verify": verify,
    "snapshot": snapshot,
    "probe": probe,
    "restart-shard": restart_shard,
    "sql": sql,
    "keys": keys,
    "reshard": reshard,
}
for name, command in COMMANDS.items():
    app.command(name)(command)


@app.command()
def forget(
    ids: Annotated[list[str] | None, typer.Option("--id", help="id of a memory; repeatable")] = None,
    where: Annotated[
        str | None, typer.Option("--filter", metavar="JSON", help="memories that match this filter")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="the whole namespace")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only print which memories")] = False,
    force: Annotated[bool, typer.Option("--force", help="do not ask")] = False,
    namespace: Namespace = "default",
    store: Store = DEFAULT_STORE,
    url: Url = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Erase memories for good, and print the receipt of what was removed where.

    \b
    sharpwave forget --id 0190a7f2-... --force
    sharpwave forget --namespace acme --all --dry-run
    sharpwave forget --filter '{"field": "context.source", "op": "eq", "value": "test"}'
    """
    chosen: dict[str, Any] = given(
        ids=ids or None, filter=read_json_option(where, "filter"), all=everything or None
    )
    if len(chosen) != 1:
        raise InvalidInput("give exactly one of --id, --filter, --all", param="id")
    with connect(store, url, api_key) as client:
        if dry_run or not force:
            found = list(_selected(client, namespace, chosen))
        if dry_run:
            emit({"would_forget": found}, as_json=as_json, text="\n".join(found))
            note(f"{len(found)} memories; nothing was erased")
            return
        if not force:
            if not sys.stdin.isatty():
                raise InvalidInput("erasing without a terminal to ask on needs --force", param="force")
            typer.confirm(
                f"Erase {len(found)} memories of namespace {namespace!r} for good?", abort=True, err=True
            )
        receipt = client.post("/v1/memories/forget", {"namespace": namespace, **chosen}, safe=True)
    text = table((name, len(value) if isinstance(value, list) else value) for name, value in receipt.items())
    emit(receipt, as_json=as_json, text=text)


def _selected(client: Client, namespace: str, chosen: dict[str, Any]) -> Iterator[str]:
    """Ids of the memories that `chosen` selects."""
    if "ids" in chosen:
        for each in chosen["ids"]:
            with contextlib.suppress(NotFound):
                yield client.get(f"/v1/memories/{encoded(each)}", namespace=namespace)["id"]
        return
    fits, cursor = compile_filter(chosen.get("filter")), None
    while True:
        page = client.get("/v1/memories", namespace=namespace, limit=1000, cursor=cursor)
        yield from (memory["id"] for memory in page["memories"] if fits(memory))
        if (cursor := page["next"]) is None:
            return


@app.command()
def status(
    env: Annotated[
        bool,
        typer.Option(
            "--env",
            help='print what `ray job submit` and `serve status` need: eval "$(sharpwave status --env)"',
        ),
    ] = False,
    store: Store = DEFAULT_STORE,
    url: Url = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Show what runs, with which model, and what is stored. Exit code 1 if it is not ready.

    \b
    sharpwave status
    sharpwave status --json | jq .ready.store
    """
    if env:
        variables = running(store).ray_environment()
        lines = "\n".join(f"export {name}={json.dumps(value)}" for name, value in variables.items())
        emit(variables, as_json=as_json, text=lines)
        return
    with connect(store, url, api_key, patience_s=0.0) as client:
        ready = client.get("/ready")
        models = [model["id"] for model in client.get("/v1/models")["data"]]
    found = {"url": client.url, "models": models, "ready": ready}
    if not url:
        here = running(store)
        found |= {"store": here.store, "dashboard": here.dashboard, "config_hash": here.config_hash}
    emit(found, as_json=as_json, text=table(flat(found)))


def _load(config: Path | None, settings: list[str] | None, flags: dict[str, Any]) -> Config:
    if config is None and LOCAL_CONFIG.is_file():
        config = LOCAL_CONFIG
        note(f"settings from {config}")
    overrides = dict(parse_override(setting) for setting in settings or [])
    return load(
        config, overrides=overrides | {name: value for name, value in flags.items() if value is not None}
    )


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, so that everything that was started is stopped."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> None:
    try:
        app()
    except SharpwaveError as error:
        if "--json" in sys.argv:
            print(json.dumps(error.to_dict(), indent=2), flush=True)
        note(f"sharpwave: {error.message}")
        sys.exit(_exit_code(error))
    except yaml.YAMLError as error:
        note(f"sharpwave: the configuration is not YAML: {error}")
        sys.exit(USAGE)


def _exit_code(error: SharpwaveError) -> int:
    if isinstance(error, Conflict):
        return RUNNING if error.code == "already_running" else CONFLICT
    return USAGE if isinstance(error, InvalidInput) else FAILED


if __name__ == "__main__":
    main()
