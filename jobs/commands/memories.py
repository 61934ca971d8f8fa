"""The commands on memories one by one or as a file: search, list, get, history, update, weakest, export, import."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from common.errors import InvalidInput
from common.names import encoded
from jobs.commands.options import DEFAULT_STORE, Key, Namespace, Store, Url, connect, given, read_json_option
from jobs.commands.options import Json as AsJson
from jobs.commands.output import emit, emit_rows, note, rows, table
from jobs.commands.shown import At, naming, say_empty, when

Json = dict[str, Any]
Kind = Literal["episodic", "relational", "spatial"]
Kinds = Annotated[
    list[str] | None, typer.Option("--kind", help="episodic, relational or spatial; repeatable")
]
Filter = Annotated[
    str | None, typer.Option("--filter", metavar="JSON", help="memories that match this filter")
]
Id = Annotated[str, typer.Argument(help="id of the memory")]


def search(
    query: Annotated[str, typer.Argument(help="text to search for")],
    k: Annotated[int, typer.Option("-k", "--k", min=1, max=1000, help="results")] = 10,
    kinds: Kinds = None,
    where: Filter = None,
    flat: Annotated[bool, typer.Option("--flat", help="rank by cosine only (the baseline)")] = False,
    complete: Annotated[bool, typer.Option("--complete", help="recall from a partial cue")] = False,
    trace: Annotated[bool, typer.Option("--trace", help="print each stage on stderr")] = False,
    at: At = None,
    history: Annotated[bool, typer.Option("--history", help="include facts that no longer hold")] = False,
    namespace: Namespace = "default",
    store: Store = DEFAULT_STORE,
    url: Url = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """The memories that matter most to a text, best first: score, id, when it holds or happened, text.

    \b
    sharpwave search "Where does Ada live?"
    sharpwave search "bread" -k 3 --kind episodic --trace
    sharpwave search "Where does Ada live?" --at 2016-06-01
    sharpwave search "moved" --filter '{"field": "time", "op": "gte", "value": "2026-01-01"}' --json
    """
    body = {"namespace": namespace, "query": query, "k": k, "trace": trace, "complete": complete}
    body |= given(kinds=kinds or None, filter=read_json_option(where, "filter"))
    body |= given(at=at, history=history or None) | ({"retrieval": "flat"} if flat else {})
    with connect(store, url, api_key) as client:
        found = client.post("/v1/memories/search", body, safe=True)
        hits = [(f"{hit['score']:.3f}", hit["memory"]) for hit in found["results"]]
        emit_rows(found, [(score, m["id"], when(m), m["text"]) for score, m in hits], as_json=as_json)
        if not hits:
            say_empty(client, namespace)
    for stage in found.get("trace", {}).get("stages", []):
        note(f"{stage['stage']}: {stage['ms']:.1f} ms, {stage.get('candidates', '-')} candidates")


def list_memories(
    kind: Annotated[Kind | None, typer.Option(help="only this kind")] = None,
    conversation: Annotated[str | None, typer.Option(help="only this conversation")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="memories on the page")] = 50,
    cursor: Annotated[str | None, typer.Option(help="`next` of the page before")] = None,
    namespace: Namespace = "default",
    store: Store = DEFAULT_STORE,
    url: Url = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Memories in order of time, a page of them: id, kind, when it holds or happened, text.

    \b
    sharpwave list
    sharpwave list --kind relational --limit 1000 --json
    """
    query = {"namespace": namespace, "kind": kind, "conversation": conversation}
    with connect(store, url, api_key) as client:
        page = client.get("/v1/memories", **query, limit=limit, cursor=cursor)
        shown = [(m["id"], m["kind"], when(m), m["text"]) for m in page["memories"]]
        emit_rows(page, shown, as_json=as_json)
        if not shown:
            say_empty(client, namespace)
    if page["next"]:
        note(f"next: sharpwave list --cursor {page['next']}")


def get(
    id: Id,
    namespace: Namespace = "default",
    store: Store = DEFAULT_STORE,
    url: Url = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """One memory with its statistics and anchor.

    \b
    sharpwave get 0190a7f2-...
    sharpwave get 0190a7f2-... --json | jq .statistics.generation
    """
    with connect(store, url, api_key) as client, naming(client, namespace):
        memory = client.get(f"/v1/memories/{encoded(id)}", namespace=namespace)
    emit(
        memory,
        as_json=as_json,
        text=table((n, _short(v)) for n, v in memory.items() if v not in (None, [], {})),
    )


def history(
    id: Id,
    namespace: Namespace = "default",
    store: Store = DEFAULT_STORE,
    url: Url = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Every version of a memory, newest first.

    \b
    sharpwave history 0190a7f2-...
    """
    with connect(store, url, api_key) as client, naming(client, namespace):
        found = client.get(f"/v1/memories/{encoded(id)}/history", namespace=namespace)
    shown = [
        (str(v["seq"]), v["anchor"], when(v["content"]), v["content"]["text"]) for v in found["versions"]
    ]
    emit(found, as_json=as_json, text=rows(shown))


def update(
    id: Id,
    generation: Annotated[
        int | None, typer.Option(min=0, help="version that is updated [default: the latest]")
    ] = None,
    text: Annotated[str | None, typer.Option(help="the new text")] = None,
    fields: Annotated[str | None, typer.Option("--fields", metavar="JSON", help="other fields")] = None,
    namespace: Namespace = "default",
    store: Store = DEFAULT_STORE,
    url: Url = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Write a new version of a memory. Exit code 5 if another version was written meanwhile.

    \b
    sharpwave update 0190a7f2-... --text "Ada moved to Porto."
    sharpwave update 0190a7f2-... --fields '{"object": "Porto"}' --generation 17
    """
    changed = read_json_option(fields, "fields") or {}
    if not isinstance(changed, dict):
        raise InvalidInput("--fields must be a JSON object", param="fields")
    with connect(store, url, api_key) as client, naming(client, namespace):
        if generation is None:
            generation = client.get(f"/v1/memories/{encoded(id)}", namespace=namespace)["statistics"][
                "generation"
            ]
        body = {"namespace": namespace, "generation": generation, **changed, **given(text=text)}
        written = client.patch(f"/v1/memories/{encoded(id)}", body)
    emit(written, as_json=as_json, text=f"{written['id']}  generation {written['generation']}")


def weakest(
    n: Annotated[int, typer.Option("--number", min=1, max=1000, help="how many")] = 10,
    namespace: Namespace = "default",
    store: Store = DEFAULT_STORE,
    url: Url = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """List the episodic memories that have decayed most, weakest first. None is erased automatically.

    \b
    sharpwave weakest --number 20
    """
    with connect(store, url, api_key) as client:
        found = client.get("/v1/memories/weakest", namespace=namespace, n=n)
        each = [(f"{row['strength']:.3f}", row["memory"]) for row in found["memories"]]
        emit_rows(found, [(kept, m["id"], when(m), m["text"]) for kept, m in each], as_json=as_json)
        if not each:
            say_empty(client, namespace, "no episodic memories")


def export(
    file: Annotated[Path, typer.Argument(dir_okay=False, help="ends in .jsonl or .parquet")],
    vectors: Annotated[bool, typer.Option("--vectors/--no-vectors", help="with their embeddings")] = True,
    conversation: Annotated[str | None, typer.Option(help="only this conversation")] = None,
    namespace: Namespace = "default",
    store: Store = DEFAULT_STORE,
    url: Url = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Write a namespace's memories, or those of one conversation, with statistics and versions into a file.

    \b
    sharpwave export acme.jsonl --namespace acme
    sharpwave export acme.parquet --namespace acme --no-vectors
    sharpwave export c1.jsonl --namespace acme --conversation c1
    """
    form = file.suffix.removeprefix(".")
    if form not in ("jsonl", "parquet"):
        raise InvalidInput(f"file {file.name!r} must end in .jsonl or .parquet", param="file")
    body = {"namespace": namespace, "format": form, "vectors": vectors, **given(conversation=conversation)}
    with connect(store, url, api_key) as client:
        size = client.download("/v1/memories/export", body, file)
    emit({"file": str(file), "bytes": size}, as_json=as_json, text=str(file))


def import_file(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="file that export wrote")],
    namespace: Namespace = "default",
    store: Store = DEFAULT_STORE,
    url: Url = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Import the memories of a file that export wrote. Importing it twice adds nothing.

    \b
    sharpwave import acme.parquet --namespace acme
    """
    with connect(store, url, api_key) as client:
        taken = client.upload("/v1/memories/import", file, namespace=namespace)
    text = f"{taken['new']} new of {taken['read']}, {taken['existing']} were there already"
    emit(taken, as_json=as_json, text=text)


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
