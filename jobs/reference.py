"""Generate docs/config.md, docs/cli.md and sharpwave.yaml from the code, so that they cannot drift from it.

python -m jobs.reference             # write
python -m jobs.reference --check     # exit 1 and name the files that are out of date
"""

import sys
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

import typer
import yaml
from pydantic.fields import FieldInfo

from common.config import ENV_PREFIX, Config, Section
from jobs.cli import app
from jobs.instance.source import ROOT, checkout

LIMITS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
HELP_WIDTH = 100


def config_page() -> str:
    lines = [
        "# Configuration",
        "",
        "Made by `python -m jobs.reference` from `common/config.py`.",
        "",
        "One YAML file; `sharpwave up` takes `sharpwave.yaml` of the current folder where `--config` names no other.",
        f"Above the file stand environment variables (`{ENV_PREFIX}TRAIN__LR=1e-4` sets `train.lr`), above those "
        "`--set train.lr=1e-4`",
        "and the options of a command. An unknown key is refused, and the message lists the valid ones.",
    ]
    for name, section in _sections():
        lines += ["", f"## {name}", ""]
        if section.__doc__:
            lines += [section.__doc__.strip(), ""]
        lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
        lines += [_row(key, field) for key, field in section.model_fields.items()]
    return "\n".join(lines) + "\n"


def default_config() -> str:
    """Every setting with its default value, as a file to copy and change."""
    lines = [
        "# Profile `local`: one machine, nothing but Python. These are the defaults; docs/config.md explains all."
    ]
    for name, section in _sections():
        lines += ["", *([f"# {section.__doc__.strip()}"] if section.__doc__ else []), f"{name}:"]
        for key, field in section.model_fields.items():
            comment = f"  # {field.description}" if field.description else ""
            lines.append(f"  {key}: {_yaml(field.get_default(call_default_factory=True))}{comment}")
    return "\n".join(lines) + "\n"


def cli_page() -> str:
    root = typer.main.get_command(app)
    context = typer.Context(
        root, info_name="sharpwave", terminal_width=HELP_WIDTH, max_content_width=HELP_WIDTH
    )
    pages = ["# Command line", "", "Made by `python -m jobs.reference` from `jobs/cli.py`.", ""]
    pages += _help("sharpwave", root, context)
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        inner = typer.Context(command, info_name=name, parent=context)
        pages += _help(f"sharpwave {name}", command, inner)
    return "\n".join(pages).rstrip() + "\n"


def _help(title: str, command: Any, context: typer.Context) -> list[str]:
    text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    return [f"## {title}", "", "```text", text, "```", ""]


def _sections() -> Iterator[tuple[str, type[Section]]]:
    for name, field in Config.model_fields.items():
        assert isinstance(field.annotation, type)
        yield name, field.annotation


def _row(key: str, field: FieldInfo) -> str:
    limits = [
        f"{sign} {getattr(rule, name)}"
        for rule in field.metadata
        for name, sign in LIMITS.items()
        if getattr(rule, name, None) is not None
    ]
    kind = ", ".join([_type(field.annotation), *limits])
    default = _yaml(field.get_default(call_default_factory=True))
    cells = [f"`{key}`", kind, f"`{default}`", field.description or ""]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(str(value) for value in inner)
    if origin in (types.UnionType, Union):
        return " or ".join(_type(each) for each in inner)
    if origin is not None:
        return f"{origin.__name__}[{', '.join(_type(each) for each in inner)}]"
    return {type(None): "null"}.get(annotation) or str(annotation.__name__)


def _yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True, width=10_000)).removesuffix("...\n").strip()


def main(argv: list[str] | None = None) -> int:
    if checkout() is None:
        print(f"{ROOT} is not a checkout of this project; its docs cannot be written there", file=sys.stderr)
        return 2
    wanted = {"docs/config.md": config_page, "docs/cli.md": cli_page, "sharpwave.yaml": default_config}
    checking = "--check" in (sys.argv[1:] if argv is None else argv)
    stale = []
    for name, make in wanted.items():
        path, text = ROOT / name, make()
        if checking:
            stale += [name] if not path.is_file() or path.read_text() != text else []
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    if stale:
        print(f"out of date: {', '.join(stale)}; run: python -m jobs.reference", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
