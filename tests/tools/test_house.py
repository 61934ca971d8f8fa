"""`tools.house` on small trees written for the purpose, and on this repository."""

import subprocess
import sys
from pathlib import Path

import pytest

from tools.house import circles, grouped, import_graph, measure, read_tree

ROOT = Path(__file__).parents[2]


def write_tree(root: Path, files: dict[str, str]) -> Path:
    """A tree of the given files, with an `__init__.py` in each of their folders."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for folder in path.relative_to(root).parents[:-1]:
            (root / folder / "__init__.py").touch()
    return root


def numbers(root: Path) -> dict[str, str]:
    lines = [line for line in measure(root).lines if not line.startswith(" ")]
    return {line[:58].rstrip(): line[59:] for line in lines}


@pytest.mark.parametrize(
    "back",
    [
        "import a.one.x",
        "from a.one import x",
        "from a.one.x import something",
        "from ..one import x",
        "def later() -> None:\n    from a.one.x import something",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import a.one.x as name",
    ],
)
def test_a_circle_is_seen_however_it_is_imported(tmp_path: Path, back: str) -> None:
    write_tree(tmp_path, {"a/one/x.py": "from a.two import y\nimport os", "a/two/y.py": back})
    graph = import_graph(read_tree(tmp_path))
    assert circles(graph) == [["a.one.x", "a.two.y"]]
    assert circles(grouped(graph, 2)) == [["a.one", "a.two"]]
    assert circles(grouped(graph, 1)) == []
    assert measure(tmp_path).circles == 2


def test_rooms_can_form_a_circle_where_modules_do_not(tmp_path: Path) -> None:
    files = {
        "a/one/x.py": "import a.two.y",
        "a/two/y.py": "",
        "a/two/z.py": "import a.one.x",
        "a/top.py": "import a.one.x",
    }
    graph = import_graph(read_tree(write_tree(tmp_path, files)))
    assert circles(graph) == []
    assert circles(grouped(graph, 2)) == [["a.one", "a.two"]]


def test_privates_count_where_the_package_does_not_define_them(tmp_path: Path) -> None:
    files = {
        "a/one/x.py": "class X:\n    def __init__(self):\n        self._inside = 1\ndef same(x):\n    return x._inside",
        "a/one/y.py": "def read(x):\n    return x._inside",
        "a/two/z.py": "import os\ndef read(self, x):\n    return x._inside, self._inside, x._replace(), os._exit(1)",
        "tests/test_x.py": "def test(x):\n    assert x._inside",
    }
    found = numbers(write_tree(tmp_path, files))
    assert found["uses of privates across packages"] == "1"
    assert found["uses of privates across modules"] == "2"
    assert found["uses of privates in tests"] == "1"


def test_mixins_hasattr_and_missing_tests_are_counted(tmp_path: Path) -> None:
    files = {
        "a/x.py": "class One: ...\nclass Two: ...\nclass Both(One, Two): ...\nclass Own(One, Exception): ...",
        "a/b/y.py": "def dispatch(x):\n    return hasattr(x, 'y')",
        "tests/a/b/test_y.py": "",
    }
    found = numbers(write_tree(tmp_path, files))
    assert found["classes with several bases of ours (mixins)"] == "1"
    assert found["calls of hasattr"] == "1"
    assert found["modules with a test of their name"] == "1 of 2"
    assert found["most modules in a folder"] == "1 (a/b)"
    assert found["lines of the longest function"].startswith("2 (a/b/y.py:1 dispatch)")


def test_the_exit_status_follows_the_circles(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a/x.py": "import a.y", "a/y.py": "def one():\n    pass"})
    command = [sys.executable, "-m", "tools.house", "--summary", str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    (tmp_path / "a/y.py").write_text("import a.x\ndef one():\n    pass")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "import circles between modules" in done.stdout


def test_this_repository_has_no_circles() -> None:
    report = measure(ROOT)
    assert report.circles == 0, "\n".join(report.lines)
