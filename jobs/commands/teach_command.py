"""The command `teach`."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.commands.options import (
    DEFAULT_STORE,
    FAILED,
    OK,
    PARTIAL,
    Json,
    Key,
    Namespace,
    Store,
    Url,
    config_of,
    connect,
)
from jobs.commands.output import Counter, emit, note, table, taught
from jobs.commands.preview import as_rows, preview_file, totals
from jobs.commands.teach import teach_files


def teach(
    files: Annotated[
        list[Path],
        typer.Argument(exists=True, dir_okay=False, help="exports, transcripts, notes, JSON lines"),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only say what would be written; needs no instance")
    ] = False,
    namespace: Namespace = "default",
    store: Store = DEFAULT_STORE,
    url: Url = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Write the memories in files. Writing a file twice adds nothing; what is bad is reported and skipped.

    \b
    sharpwave teach experiences.jsonl transcript.json
    sharpwave teach chatgpt-export.zip --dry-run
    sharpwave teach acme.jsonl --namespace acme --json

    What a file is shows in its content, not in its name: the exports of ChatGPT and Claude (conversations.json, or
    the .zip), of mem0 and Letta (.af), ShareGPT, LangChain's and OpenAI's messages, notes in Markdown or plain text,
    and JSON lines. A text over store.max_text_bytes becomes several memories.

    \b
    {"text": "Ada moved to Lisbon.", "cues": [{"question": "Where does Ada live?", "answer": "Lisbon"}]}
    {"kind": "relational", "subject": "Ada", "relation": "lives_in", "object": "Lisbon"}
    {"kind": "spatial", "place": "library", "relation": "left_of", "other": "cafe"}
    {"messages": [{"role": "user", "content": "I moved to Lisbon."}]}

    Exit code 1 if a line was bad, 3 if the write gate refused memories; "pin": true bypasses the gate.
    """
    limit = config_of(store).store.max_text_bytes
    if dry_run:
        previews = [preview_file(each, namespace=namespace, max_text_bytes=limit) for each in files]
        emit(totals(previews), as_json=as_json, text="\n\n".join(table(as_rows(each)) for each in previews))
        raise typer.Exit(FAILED if any(each.bad_count for each in previews) else OK)
    with connect(store, url, api_key) as client, Counter("teaching") as counter:
        summary = teach_files(
            client,
            files,
            namespace=namespace,
            max_text_bytes=limit,
            report_bad=note,
            progress=lambda so_far: counter.show(so_far.written, so_far.bad),
        )
    emit(vars(summary), as_json=as_json, text=taught(summary))
    if summary.refused:
        note(f"{summary.refused} of {summary.written} memories are not stored: the write gate refused them")
    raise typer.Exit(FAILED if summary.bad else PARTIAL if summary.refused else OK)
