"""Output of the command line: data goes to stdout, messages and progress to stderr."""

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from jobs.commands.teach import Summary

LINE_EVERY_S = 5.0


def note(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def emit(value: dict[str, Any], *, as_json: bool, text: str) -> None:
    """Write one JSON document, or `text` for people."""
    print(json.dumps(value, indent=2) if as_json else text, flush=True)


def emit_rows(value: dict[str, Any], found: Iterable[Sequence[str]], *, as_json: bool) -> None:
    """As `emit`, the text being columns; without any row there is no text."""
    if text := json.dumps(value, indent=2) if as_json else rows(found):
        print(text, flush=True)


def table(rows: Iterable[tuple[str, Any]]) -> str:
    shown = [(name, str(value)) for name, value in rows]
    width = max((len(name) for name, _ in shown), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in shown)


def rows(found: Iterable[Sequence[str]]) -> str:
    """Columns; the last one is as long as it is."""
    shown = [[*map(str, row)] for row in found]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)][:-1]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in shown
    )


def taught(summary: Summary) -> str:
    """What was written is not always stored: both are said."""
    text = f"{summary.stored} stored of {summary.written} written"
    if summary.existing:
        text += f", {summary.existing} were there already"
    if summary.refused:
        text += f", {summary.refused} refused by the write gate (store.gate_tau)"
    if summary.left_out:
        text += f"; {summary.left_out} left out (`--dry-run` says what)"
    return text + (f"; {summary.bad} bad" if summary.bad else "")


def flat(value: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values under dotted names."""
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from flat(inner, f"{above}{name}.")
        elif isinstance(inner, list) and inner and isinstance(inner[0], dict):
            yield from flat({str(i): each for i, each in enumerate(inner)}, f"{above}{name}.")
        else:
            yield f"{above}{name}", ", ".join(map(str, inner)) if isinstance(inner, list) else inner


class Counter:
    """Progress of work of unknown length: a live line on a terminal, else a plain line every few seconds."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._started = self._last = time.monotonic()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int, failed: int) -> None:
        now = time.monotonic()
        rate = done / max(now - self._started, 1e-9)
        line = f"{self._what}: {done} done, {rate:.0f}/s, {failed} bad"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=line)
        elif now - self._last >= LINE_EVERY_S:
            self._last = now
            note(line)
