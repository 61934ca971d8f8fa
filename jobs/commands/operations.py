"""The commands of an operator: seal, verify, snapshot, probe, restart-shard."""

from typing import Annotated

import typer

from jobs.commands.options import BROKEN, DEFAULT_STORE, FAILED, OK, Json, Key, Store, Url, connect
from jobs.commands.output import emit, flat, note, rows, table


def seal(store: Store = DEFAULT_STORE, url: Url = None, api_key: Key = None, as_json: Json = False) -> None:
    """Write seal.json beside the shards: the current end of each shard's chain. Keep a copy elsewhere.

    \b
    sharpwave seal
    sharpwave seal --json > seal-2026-03.json
    """
    with connect(store, url, api_key) as client:
        sealed = client.post("/v1/seal", {}, safe=True)
    shown = [(str(shard["shard"]), str(shard["seq"]), shard["anchor"]) for shard in sealed["shards"]]
    emit(sealed, as_json=as_json, text=rows(shown))


def verify(store: Store = DEFAULT_STORE, url: Url = None, api_key: Key = None, as_json: Json = False) -> None:
    """Read every log from the disk and check its chain and the last seal. Exit code 6 if a link is broken.

    \b
    sharpwave verify
    sharpwave verify --json | jq '.shards[].broken'
    """
    with connect(store, url, api_key) as client:
        found = client.post("/v1/verify", {}, safe=True)
    broken = [(str(shard["shard"]), str(shard["broken"])) for shard in found["shards"] if shard["broken"]]
    emit(found, as_json=as_json, text=rows(broken) if broken else "every chain is intact")
    if found["notice"]:
        note(found["notice"])
    raise typer.Exit(0 if found["intact"] else BROKEN)


def snapshot(
    store: Store = DEFAULT_STORE, url: Url = None, api_key: Key = None, as_json: Json = False
) -> None:
    """Write a snapshot of every shard now, for a quick start and for `sharpwave sql`.

    \b
    sharpwave snapshot
    """
    with connect(store, url, api_key) as client:
        made = client.post("/v1/snapshot", {}, safe=True)
    emit(made, as_json=as_json, text=table(flat(made)))


def restart_shard(
    shard: Annotated[int, typer.Argument(min=0, help="number of the shard")],
    store: Store = DEFAULT_STORE,
    url: Url = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Start one shard anew: after a full disk or a failed write its log refuses writes until it is opened again.
    Everything that was acknowledged is there; calls under way are sent again. Exit code 1 where writes are still
    refused.

    \b
    sharpwave status --json | jq '.ready.store.shards[].failure'
    sharpwave restart-shard 2
    """
    with connect(store, url, api_key) as client:
        found = client.post(f"/v1/shards/{shard}/restart", {}, safe=True)
    emit(found, as_json=as_json, text=table(flat(found)))
    raise typer.Exit(FAILED if found["failure"] else OK)


def probe(
    texts: Annotated[list[str], typer.Argument(help="content that should have been erased")],
    vectors: Annotated[bool, typer.Option("--vectors", help="look for their embeddings as well")] = False,
    fragment: Annotated[
        int | None, typer.Option(min=8, help="look for pieces of this many bytes as well")
    ] = None,
    store: Store = DEFAULT_STORE,
    url: Url = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Look for content in every file of the store and in every shard. Exit code 6 where it is found.

    \b
    sharpwave probe "Ada has a secret."
    sharpwave probe "Ada has a secret." --vectors --fragment 16 --json
    """
    body = {"texts": texts, "vectors": vectors, "fragment": fragment}
    with connect(store, url, api_key) as client:
        found = client.post("/v1/probe", body, safe=True)
    left = [
        (_place(place), each["where"], each["form"]) for place in found["places"] for each in place["found"]
    ]
    unread = [(_place(place), str(each)) for place in found["places"] for each in place["unchecked"]]
    emit(found, as_json=as_json, text=rows(left) if left else "not found anywhere")
    for line in unread:
        note("not checked: " + "  ".join(line))
    raise typer.Exit(0 if found["clean"] else BROKEN)


def _place(place: dict) -> str:
    return place["place"] if place["shard"] is None else f"{place['place']} of shard {place['shard']}"
