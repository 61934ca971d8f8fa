"""The commands on facts, places, memory lines and the short-term memory of conversations."""

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from common.errors import InvalidInput
from common.names import encoded
from jobs.commands.options import DEFAULT_STORE, Key, Namespace, Store, Url, connect, given
from jobs.commands.options import Json as AsJson
from jobs.commands.output import emit, emit_rows, flat, rows, table
from jobs.commands.shown import At, moment, naming, say_empty, when
from stores.view.conversations import Role, parse_transcript

Json = dict[str, Any]
K = Annotated[int, typer.Option("-k", "--k", min=1, max=1000, help="at most")]


def facts(
    query: Annotated[str | None, typer.Argument(help="a question, answered over several hops")] = None,
    subject: Annotated[str | None, typer.Option(help="of the pattern")] = None,
    relation: Annotated[str | None, typer.Option(help="of the pattern")] = None,
    object: Annotated[str | None, typer.Option(help="of the pattern")] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="subject relation object; repeatable")
    ] = None,
    source: Annotated[str | None, typer.Option(help="where a path begins")] = None,
    target: Annotated[str | None, typer.Option(help="where it ends")] = None,
    at: At = None,
    history: Annotated[bool, typer.Option("--history", help="include facts that no longer hold")] = False,
    k: K = 10,
    namespace: Namespace = "default",
    store: Store = DEFAULT_STORE,
    url: Url = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Find facts: by a pattern, by several patterns with shared variables, for a question, or on a path between two
    entities. Prints confidence, fact, id, and when it holds.

    \b
    sharpwave facts --subject Ada --relation lives_in --history
    sharpwave facts "Which country does Ada live in?" -k 5
    sharpwave facts --where "?x lives_in Lisbon" --where "?x works_at 'Acme Ltd'"
    sharpwave facts --source Ada --target Portugal --at 2026-03-01
    """
    body = {"namespace": namespace, "history": history, "k": k, **given(query=query, at=at)}
    body |= given(subject=subject, relation=relation, object=object, source=source, target=target)
    body |= given(patterns=[_pattern(each) for each in where] if where else None)
    with connect(store, url, api_key) as client:
        found = client.post("/v1/facts/query", body, safe=True)
        if not found.get("facts") and not found.get("solutions"):
            say_empty(client, namespace, "no facts match")
    if "solutions" in found:
        values = ("  ".join(f"{k} = {v}" for k, v in each["values"].items()) for each in found["solutions"])
        emit_rows(found, [(each,) for each in values], as_json=as_json)
        return
    shown = [
        (
            f"{fact['confidence']:.2f}",
            f"{fact['subject']} {fact['relation']} {fact['object']}",
            fact["id"],
            when(fact),
        )
        for fact in found["facts"]
    ]
    emit_rows(found, shown, as_json=as_json)


def _pattern(text: str) -> list[str]:
    """Subject, relation and object, split as by a shell."""
    try:
        parts = shlex.split(text)
    except ValueError:
        parts = []
    if len(parts) != 3:
        raise InvalidInput(
            f"--where {text[:64]!r}: must be a subject, a relation and an object; quote names of several words",
            param="where",
        )
    return parts


def places(
    op: Annotated[
        Literal["position", "nearest", "within", "relation", "path", "where", "macros"],
        typer.Argument(help="the question"),
    ],
    place: Annotated[str | None, typer.Argument(help="a place, or a thing")] = None,
    other: Annotated[str | None, typer.Argument(help="of relation and path")] = None,
    x: Annotated[float | None, typer.Option(help="coordinate, instead of a place")] = None,
    y: Annotated[float | None, typer.Option(help="coordinate, instead of a place")] = None,
    radius: Annotated[float | None, typer.Option(min=0.0, help="of within")] = None,
    k: Annotated[int | None, typer.Option("-k", "--k", min=1, max=1000, help="of nearest")] = None,
    at: At = None,
    namespace: Namespace = "default",
    store: Store = DEFAULT_STORE,
    url: Url = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Query the map: positions, nearest places, directions, paths, locations.

    \b
    sharpwave places relation library cafe
    sharpwave places within --x 0 --y 0 --radius 5
    sharpwave places path home office --json
    """
    body = {"namespace": namespace, "op": op, **given(place=place, other=other, x=x, y=y)}
    body |= given(radius=radius, k=k, at=at)
    with connect(store, url, api_key) as client:
        found = client.post("/v1/places/query", body, safe=True)
    result = found["result"]
    answers = result if isinstance(result, list) else [result] if result else []
    emit(found, as_json=as_json, text="\n\n".join(table(flat(answer)) for answer in answers) or "unknown")


def turns(
    action: Annotated[Literal["push", "pop", "peek", "rewind", "forget"], typer.Argument(help="what to do")],
    conversation: Annotated[str, typer.Argument(help="its name")],
    text: Annotated[str | None, typer.Argument(help="of the turn to push")] = None,
    role: Annotated[Role, typer.Option(help="speaker of the turn")] = "user",
    file: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="transcript to push, instead of a text"),
    ] = None,
    n: Annotated[int, typer.Option("--number", min=0, help="turns to peek at or rewind")] = 1,
    namespace: Namespace = "default",
    store: Store = DEFAULT_STORE,
    url: Url = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """The short-term memory of a conversation.

    \b
    sharpwave turns push c1 "I moved to Lisbon." --role user
    sharpwave turns push c1 --file transcript.txt
    sharpwave turns peek c1 --number 10
    sharpwave turns rewind c1 --number 3

    In a transcript a turn begins with its role and a colon ("user: I moved to Lisbon."); lines that follow belong to
    it. A backslash before a line that looks like the beginning of a turn keeps it in the turn.
    """
    path = f"/v1/conversations/{encoded(conversation)}"
    body: dict[str, Any] = {"namespace": namespace}
    if (text is not None) + (file is not None) != (action == "push"):
        raise InvalidInput("push, and only push, needs the text of a turn, or --file", param="text")
    if action == "push":
        said = [{"role": role, "text": text}] if file is None else _transcript(file)
        body |= {"turns": said}
    elif action in ("peek", "rewind"):
        body |= {"n": n}
    with connect(store, url, api_key) as client:
        if action == "forget":
            answer = client.delete(path, namespace=namespace)
        else:
            answer = client.post(f"{path}/{action}", body, safe=action == "peek")
        if action == "peek" and not answer["turns"]:
            say_empty(client, namespace, f"no turns of conversation {conversation!r}")
    shown_turns = (
        answer.get("turns") if action == "peek" else [answer["turn"]] if answer.get("turn") else None
    )
    shown = (
        table(flat(answer))
        if shown_turns is None
        else rows((moment(turn["time"]), turn["role"], turn["text"]) for turn in shown_turns)
    )
    emit(answer, as_json=as_json, text=shown)


def _transcript(file: Path) -> list[Json]:
    try:
        found = parse_transcript(file.read_text())
    except UnicodeDecodeError as error:
        raise InvalidInput(f"--file {file.name!r} is not UTF-8 text: {error.reason}", param="file") from None
    if not found:
        raise InvalidInput(f"--file {file.name!r} holds no turns", param="file")
    return found


def lines(
    action: Annotated[Literal["put", "get", "query", "race", "bias"], typer.Argument(help="what to do")],
    key: Annotated[str, typer.Argument(help="key of the line; query and bias: the text to compare with")],
    values: Annotated[list[str] | None, typer.Argument(help="value to put, or candidates of a race")] = None,
    generation: Annotated[
        int | None, typer.Option(min=0, help="race: version that is replaced [default: the latest]")
    ] = None,
    prev_anchor: Annotated[
        str | None, typer.Option(help="put: write only if this is the latest anchor")
    ] = None,
    k: K = 10,
    namespace: Namespace = "default",
    store: Store = DEFAULT_STORE,
    url: Url = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Memory lines: the newest value of each key, ranked by concert weight. Exit code 5: another write came first.

    \b
    sharpwave lines put drink "Ada drinks tea."
    sharpwave lines query "What does Ada drink?" -k 3
    sharpwave lines race drink "Ada drinks coffee." "Ada drinks water."
    """
    wanted = {"put": 1, "race": None}.get(action, 0)
    if (wanted is None and not values) or (wanted is not None and len(values or ()) != wanted):
        raise InvalidInput("put needs one value, race one or more, the others none", param="values")
    body: Json = {"namespace": namespace}
    with connect(store, url, api_key) as client:
        if action == "get":
            with naming(client, namespace):
                answer = client.get("/v1/lines", namespace=namespace, key=key)
        elif action == "put":
            body |= {"key": key, "value": (values or [""])[0], **given(prev_anchor=prev_anchor)}
            answer = client.post("/v1/lines", body)
        elif action == "race":
            known = generation if generation is not None else _generation(client, namespace, key)
            body |= {"key": key, "generation": known, "candidates": [{"value": v} for v in values or ()]}
            answer = client.post("/v1/lines/race", body)
        else:
            answer = client.post(f"/v1/lines/{action}", {**body, "query": key, "k": k}, safe=True)
        if action == "query" and not answer["lines"]:
            say_empty(client, namespace, "no lines match")
    if action == "query":
        text = rows((f"{line['weight']:.3f}", line["key"], line["value"]) for line in answer["lines"])
    else:
        text = " ".join(map(str, answer["vector"])) if action == "bias" else table(flat(answer))
    emit(answer, as_json=as_json, text=text)


def _generation(client: Any, namespace: str, key: str) -> int:
    """The generation of the key's line; 0 if there is none."""
    found = client.find("/v1/lines", namespace=namespace, key=key)
    return int(found["generation"]) if found else 0
