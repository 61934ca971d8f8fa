"""How memories and facts are shown to people: when something holds, and what to say where nothing was found."""

import contextlib
import difflib
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from common.errors import NotFound, SharpwaveError
from jobs.commands.client import Client
from jobs.commands.output import note
from stores.memory.memory import parse_time

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MOST_NAMES = 12  # namespaces that a message lists


def _time(text: str) -> str:
    """The text as it was given, which the server reads. Raises `InvalidInput` where it is no time."""
    parse_time(text, "at")
    return text


At = Annotated[
    str | None,
    typer.Option(parser=_time, metavar="TIME", help="what held at this time: ISO 8601, or Unix seconds; UTC"),
]


def moment(seconds: float) -> str:
    """A time in UTC: the date, and the minute where it is not midnight."""
    when = EPOCH + timedelta(seconds=seconds)
    date = f"{when:%Y-%m-%d}".rjust(10, "0")
    return date if (when.hour, when.minute) == (0, 0) else f"{date} {when:%H:%M}"


def when(held: Mapping[str, Any]) -> str:
    """When a fact, or a memory of any kind, holds or happened: `since 2019-03-01`, `2015-01-01 to 2019-03-01`."""
    if held.get("kind", "relational") != "relational":
        return moment(held["time"])
    begin, end = held.get("valid_from"), held.get("valid_to")
    begin = held.get("time") if begin is None else begin
    if begin is None:
        return "" if end is None else f"until {moment(end)}"
    return f"since {moment(begin)}" if end is None else f"{moment(begin)} to {moment(end)}"


def shorten(text: str, before: int) -> str:
    """One line of a text, cut where a terminal's line ends that begins with `before` other columns."""
    line, room = " ".join(text.split()), max(20, shutil.get_terminal_size().columns - before)
    return line if len(line) <= room else f"{line[: room - 1]}…"


def say_empty(client: Client, namespace: str, what: str = "no memories match") -> None:
    """Say on stderr that nothing was found; where the namespace does not exist, say that instead."""
    note(unknown_namespace(client, namespace) or f"{what} in namespace {namespace!r}")


def unknown_namespace(client: Client, namespace: str) -> str | None:
    """What to say of a namespace that the API key may not see or that does not exist, with the nearest names; None
    for one that exists, and where the server does not tell."""
    try:
        names = [each["namespace"] for each in client.get("/v1/namespaces")["namespaces"]]
    except (SharpwaveError, KeyError):  # a server without the route: what was found stands for itself
        return None
    if namespace in names:
        return None
    near = " or ".join(map(repr, difflib.get_close_matches(namespace, names, n=2, cutoff=0.6)))
    told = ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")
    hint = f"; did you mean {near}?" if near else ";"
    return f"no namespace {namespace!r}{hint} namespaces: {told or 'none yet, teach something first'}"


@contextlib.contextmanager
def naming(client: Client, namespace: str) -> Iterator[None]:
    """Has a `NotFound` from within say that it is the namespace which does not exist, where it is."""
    try:
        yield
    except NotFound as error:
        if told := unknown_namespace(client, namespace):
            error.message = f"{error.message}: {told}"
        raise
