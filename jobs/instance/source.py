"""Where the running code is: in a checkout, whose files are sent along with every Ray job, or installed."""

import os
import site
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the folder of our packages: a checkout, or site-packages


def checkout(root: Path = ROOT) -> Path | None:
    """`root` if it is a checkout of this project; None if it is a folder that packages are installed in.

    Only a checkout may be sent to Ray as a working directory: site-packages has gigabytes of other packages, and a
    stray pyproject.toml from one of them does not make it a checkout.
    """
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text()).get("project", {})
    except (OSError, ValueError):
        return None
    return root if project.get("name") == "sharpwave" else None


def python_path(root: Path = ROOT) -> str:
    """PYTHONPATH of child processes: first `root`, unless Python searches it anyway, then the inherited value.

    Site-packages must not be named here: it would come before the standard library.
    """
    searched = {Path(folder).resolve() for folder in [*site.getsitepackages(), site.getusersitepackages()]}
    own = [] if root in searched else [str(root)]
    return os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")])])
