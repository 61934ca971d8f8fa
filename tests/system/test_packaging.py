"""An ordinary install: the wheel has every package and file, and the command line runs from it alone."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from jobs.instance.source import ROOT

PACKAGES = ("actors", "common", "jobs", "models", "serve", "stores", "train")
ONE_FILE = """
import sys
import jobs.cli
from jobs.instance.source import checkout
from jobs.instance.submit import runtime_environment
assert jobs.cli.__file__.startswith(sys.argv[1]), jobs.cli.__file__
assert checkout() is None and "working_dir" not in runtime_environment()
"""


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--no-deps", "--no-index", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the files under version control alone, so that no leftover of a build can help."""
    pytest.importorskip("setuptools", reason="building a wheel offline needs setuptools in this environment")
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in (*PACKAGES, "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    pip("wheel", "--no-build-isolation", "-w", built, source)
    [found] = built.glob("*.whl")
    return found


def test_the_wheel_has_every_package_and_the_page(wheel: Path) -> None:
    names = {*zipfile.ZipFile(wheel).namelist()}
    wanted = {
        path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")
    }
    assert len([name for name in wanted if name.endswith("__init__.py")]) > len(PACKAGES)
    assert wanted <= names, sorted(wanted - names)
    assert {"serve/page.html", "jobs/scoring/page.html"} <= names
    folders = {path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)  # else setuptools passes it over


def test_the_command_line_runs_from_an_install_alone(wheel: Path, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip("install", "--target", target, wheel)
    environment = {**os.environ, "PYTHONPATH": str(target)}
    for command in (["-m", "jobs.cli", "--help"], ["-c", ONE_FILE, str(target)]):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert "consolidate" in subprocess.run(
        [target / "bin" / "sharpwave", "--help"],
        cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
