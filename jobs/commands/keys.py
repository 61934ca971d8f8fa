"""`sharpwave keys`: a new master key, a namespace's data key, another master key for a stopped store."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from common.errors import Conflict, InvalidInput
from jobs.commands.options import DEFAULT_STORE, Json, Key, Namespace, Store, Url, config_of, connect
from jobs.commands.output import emit, note
from jobs.instance import instance as instances


def keys(
    action: Annotated[Literal["new", "rotate", "master"], typer.Argument(help="what to do")],
    files: Annotated[
        list[Path] | None, typer.Argument(help="new: the file to create; master: the old and the new file")
    ] = None,
    namespace: Namespace = "default",
    store: Store = DEFAULT_STORE,
    url: Url = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """The keys of an encrypted store (store.master_key).

    \b
    sharpwave keys new master.key                 a fresh master key, readable by its owner alone
    sharpwave keys rotate --namespace acme        a fresh data key for a namespace of a running instance
    sharpwave keys new next.key
    sharpwave keys master master.key next.key --store ~/memory
                                                  another master key for a stopped store

    A store whose master key is lost cannot be opened. Keep a copy of it apart from the store's backups.
    """
    wanted = {"new": 1, "rotate": 0, "master": 2}[action]
    if len(files or ()) != wanted:
        raise InvalidInput(f"keys {action} takes {wanted} files, got {len(files or ())}", param="files")
    if action == "rotate":
        with connect(store, url, api_key) as client:
            done = client.post("/v1/keys/rotate", {"namespace": namespace}, safe=True)
        emit(done, as_json=as_json, text="rotated" if done["rotated"] else "no room to rewrite a log")
        if not done["rotated"]:
            raise typer.Exit(1)
    elif action == "new":
        made = _make(*files or ())
        emit({"file": str(made), "setting": f"file:{made}"}, as_json=as_json, text=f"file:{made}")
        note(f"next: sharpwave up --store NEW_FOLDER --set store.master_key=file:{made}")
    else:
        wrapped = _rewrap(*files or (), store=store.expanduser().resolve())
        emit(
            {"wrapped": wrapped},
            as_json=as_json,
            text=f"{wrapped} data keys are wrapped by the new master key",
        )
        note("start the store with store.master_key naming the new file, then destroy the old one")


def _make(file: Path) -> Path:
    from stores.crypto.master_key import new_master, write_master

    path = file.expanduser().resolve()
    write_master(path, new_master())
    return path


def _rewrap(old: Path, new: Path, *, store: Path) -> int:
    """Wrap the data keys in all keyrings of a stopped store; returns their number. Call again after an interruption."""
    from stores.crypto.keyrings import keyring_folders
    from stores.crypto.master_key import read_master, rotate_master

    before, after = (read_master(f"file:{file}") for file in (old, new))
    running = instances.read(store)
    if running is not None and running.alive():
        raise Conflict(
            f"an instance runs on store {str(store)!r}; stop it: sharpwave down --store {store}",
            code="running",
        )
    settings = config_of(store).store.model_copy(update={"dir": str(store)})
    folders = keyring_folders(settings)
    if not folders:
        raise InvalidInput(f"store {str(store)!r} holds no keys; give another --store", param="store")
    return sum(rotate_master(folder, before, after) for folder in folders)
