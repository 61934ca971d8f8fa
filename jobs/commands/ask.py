"""The command that asks the model, and shows on stderr which memories the answer stood on."""

from typing import Annotated, Any

import typer

from common.errors import SharpwaveError
from common.names import encoded
from jobs.commands.client import Client
from jobs.commands.options import DEFAULT_STORE, Json, Key, Mode, Namespace, Store, Url, connect, given
from jobs.commands.output import emit, note
from jobs.commands.shown import At, shorten, unknown_namespace

MOST_SHOWN = 20  # memories; the mode `full` may bring thousands


def ask(
    question: Annotated[str, typer.Argument(help="the user's message")],
    namespace: Namespace = "default",
    mode: Annotated[Mode | None, typer.Option(help="how memories reach the model")] = None,
    k: Annotated[
        int | None, typer.Option("-k", "--k", min=1, help="memories to inject [default: the relevant ones]")
    ] = None,
    at: At = None,
    model: Annotated[str, typer.Option(help="base, base:latest, or base:DIGEST")] = "base",
    system: Annotated[str | None, typer.Option(help="system message")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="longest answer")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="print the answer as it comes")] = False,
    store: Store = DEFAULT_STORE,
    url: Url = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Answer a question with the memories that matter to it; says on stderr which ones were used.

    \b
    sharpwave ask "Where does Ada live?"
    sharpwave ask "Where does Ada live?" --mode text -k 5 --json
    sharpwave ask "Where does Ada live?" --at 2016-06-01
    sharpwave ask "Where does Ada live?" --model base:latest --mode off
    """
    messages = [{"role": "system", "content": system}] if system else []
    body: dict[str, Any] = {
        "model": model,
        "messages": [*messages, {"role": "user", "content": question}],
        "memory": {"namespace": namespace} | given(mode=mode, k=k, at=at),
        **given(max_tokens=max_tokens),
    }
    with connect(store, url, api_key) as client:
        if stream and not as_json:
            memory = _print_stream(client, body)
        else:
            answer = client.post("/v1/chat/completions", body)
            emit(answer, as_json=as_json, text=answer["choices"][0]["message"]["content"])
            memory = answer["memory"]
        note(_stood_on(client, namespace, memory))
        if not memory.get("retrieved") and memory.get("mode") != "off":
            note(unknown_namespace(client, namespace) or f"no memories match in namespace {namespace!r}")


def _print_stream(client: Client, body: dict[str, Any]) -> dict[str, Any]:
    memory: dict[str, Any] = {}
    for event in client.stream("/v1/chat/completions", body):
        memory = event.get("memory") or memory
        for choice in event["choices"]:
            print(choice["delta"].get("content") or "", end="", flush=True)
    print()
    return memory


def _stood_on(client: Client, namespace: str, memory: dict[str, Any]) -> str:
    """How it was answered, and the memories that reached the model: score, id, text."""
    scores = {found["id"]: found["score"] for found in memory.get("retrieved", [])}
    ids = memory.get("injected", [])
    head = f"mode {memory.get('mode')}: {len(ids)} memories, {memory.get('prefix_tokens', 0)} prefix tokens"
    if memory.get("fallback"):
        head += f" (fallback: {memory['fallback']})"
    lines = [head]
    for each in ids[:MOST_SHOWN]:
        told = f"  {scores[each]:.3f}  {each}  " if each in scores else f"  {each}  "
        lines.append((told + shorten(_text(client, namespace, each), len(told))).rstrip())
    if len(ids) > MOST_SHOWN:
        lines.append(f"  and {len(ids) - MOST_SHOWN} more")
    return "\n".join(lines)


def _text(client: Client, namespace: str, memory_id: str) -> str:
    """Of a memory; empty where it cannot be had any more: the answer is there already."""
    try:
        return str(client.get(f"/v1/memories/{encoded(memory_id)}", namespace=namespace)["text"])
    except (SharpwaveError, KeyError):
        return ""
