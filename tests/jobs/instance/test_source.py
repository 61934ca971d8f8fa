"""What is sent along with a Ray job: a checkout, never the folder that packages are installed in."""

import os
import site
from pathlib import Path

import pytest

from jobs.instance.source import ROOT, checkout, python_path
from jobs.instance.submit import runtime_environment


def installed(folder: Path, pyproject: str | None = None) -> Path:
    (folder / "jobs" / "instance").mkdir(parents=True)
    if pyproject is not None:
        (folder / "pyproject.toml").write_text(pyproject)
    return folder


def test_a_checkout_is_sent() -> None:
    sent = runtime_environment()
    assert checkout() == ROOT and sent["working_dir"] == str(ROOT)
    excluded = sent["excludes"]
    assert isinstance(excluded, list) and "/.venv/" in excluded


@pytest.mark.parametrize("pyproject", [None, "[project]\nname = 'other'\n", "[tool.x]\n", "not = = toml"])
def test_site_packages_are_not_sent(
    tmp_path: Path, pyproject: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARPWAVE_TRAIN__LR", "7")
    root = installed(tmp_path, pyproject)
    assert checkout(root) is None
    assert runtime_environment(root) == {"env_vars": {"SHARPWAVE_TRAIN__LR": "7"}}


def test_child_processes_find_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/inherited")
    assert python_path(tmp_path) == os.pathsep.join([str(tmp_path), "/inherited"])
    assert python_path(Path(site.getsitepackages()[0]).resolve()) == "/inherited"
