"""Every path, module and name of code that the pages for readers mention exists, and the tree names every room."""

import ast
import re
from pathlib import Path

import pytest

from common.config import Config

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{name}.md" for name in ("architecture", "glossary", "status", "api", "backends", "erasure")),
]
FOLDERS = ("actors", "common", "jobs", "models", "serve", "stores", "train")
FILE = re.compile(r"(?<![\w/.<>-])((?:\w+/)+\w+\.(?:py|md|yaml|toml|html))\b")
MODULE = re.compile(rf"(?<![\w/.])((?:{'|'.join(FOLDERS)})(?:\.\w+)+)\b(?!/)")
LINK = re.compile(r"\]\(([^)#:]+)\)")


def paths_in(text: str) -> set[str]:
    return {path for path in FILE.findall(text) if not path.startswith("runs/") and "NAME" not in path}


def path_exists(name: str) -> bool:
    """From the root, or from a folder of it: status.md names tests so, the tree of the README first files."""
    return (ROOT / name).exists() or any((ROOT / folder / name).exists() for folder in (*FOLDERS, "tests"))


def names_in(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    defined = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name: node for node in body if isinstance(node, defined)}


def is_setting(name: str) -> bool:
    section, _, setting = name.partition(".")
    part = Config.model_fields.get(section)
    return part is not None and setting in getattr(part.annotation, "model_fields", {})


def name_exists(name: str) -> bool:
    """A module, a class or function of one, a method of a class, or a setting (`serve.max_queued`)."""
    parts = name.split(".")
    length = next((n for n in range(len(parts), 1, -1) if module_file(parts[:n])), 0)
    if not length:
        return is_setting(name) or name.endswith(".py")
    file = module_file(parts[:length])
    body = ast.parse(file.read_text()).body if file else []
    for part in parts[length:]:
        node = names_in(body).get(part)
        if node is None:
            return False
        body = node.body if isinstance(node, ast.ClassDef) else []
    return True


def module_file(parts: list[str]) -> Path | None:
    path = ROOT.joinpath(*parts)
    files = (path.with_name(path.name + ".py"), path / "__init__.py")
    return next((file for file in files if file.is_file()), None)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    missing = [path for path in paths_in(text) if not path_exists(path)]
    missing += [name for name in set(MODULE.findall(text)) if not name_exists(name)]
    missing += [link for link in LINK.findall(text) if not ((ROOT / page).parent / link).exists()]
    assert not missing, f"{page} names what is not there: {sorted(missing)}"


def test_a_test_that_status_names_exists() -> None:
    text = (ROOT / "docs/status.md").read_text()
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", text)
    assert len(named) > 30
    missing = [f"{file}::{test}" for file, test in named if f"def {test}(" not in text_of_test(file)]
    assert not missing


def text_of_test(file: str) -> str:
    path = ROOT / "tests" / file
    return path.read_text() if path.exists() else ""


def test_the_tree_of_the_readme_names_every_room_and_its_first_file() -> None:
    tree = (ROOT / "README.md").read_text().split("## Where things are")[1].split("```")[1]
    rooms, folder = set(), Path()
    for line in tree.strip("\n").splitlines():
        folder = folder.parent if line.startswith("  ") and len(folder.parts) > 1 else folder
        name = Path(line.split()[0])
        folder = (folder / name) if line.startswith("  ") else name
        assert (ROOT / folder).is_dir(), line
        rooms.add(str(folder))
        for first in re.findall(r"[\w/]+\.py", line):
            assert (ROOT / folder / first).is_file(), line
    packages = [
        path.parent.relative_to(ROOT) for name in FOLDERS for path in (ROOT / name).rglob("__init__.py")
    ]
    assert {str(package) for package in packages} <= rooms


@pytest.mark.parametrize(
    ("name", "exists"),
    [
        ("stores.log.base", True),
        ("stores.log.base.Log", True),
        ("stores.log.base.Log.commit", True),
        ("serve.max_queued", True),
        ("stores.log.nothing", False),
        ("stores.nothing", False),
        ("stores.log.base.Nothing", False),
        ("serve.nothing", False),
    ],
)
def test_names_are_told_apart(name: str, exists: bool) -> None:
    assert name_exists(name) == exists
