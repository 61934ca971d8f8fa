"""The head of every report: command, machine, and model if there is one."""

import os
import platform
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.weights.load import LoadedModel

Json = dict[str, Any]


def command() -> str:
    return " ".join(["python", *sys.argv])


def hardware() -> Json:
    """`device`: the processor's name, or that of the GPU; `load`: of the last 1, 5, 15 minutes."""
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) or [platform.processor()]
    told = {
        "device": names[0],
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "load": os.getloadavg(),
    }
    torch = sys.modules.get("torch")  # benchmarks of the stores go without
    if torch is not None:
        told["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            told["device"] = torch.cuda.get_device_name()
    return told


def of_model(loaded: "LoadedModel", name: str) -> Json:
    return {
        "command": command(),
        "model": Path(name).name,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "hardware": hardware(),
    }
