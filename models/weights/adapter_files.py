"""Whether the files of an adapter are whole by themselves, whatever the model. Does not import torch, so that the API
process can use it; `load_report.py` compares them with a model."""

import json
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize

WEIGHTS, CONFIG = FILES = ("adapter_model.safetensors", "adapter_config.json")
KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
# Data type -> its integers, and the bits of the exponent: all set in infinities and NaN.
_EXPONENTS = {"F32": (np.uint32, 0x7F800000), "F16": (np.uint16, 0x7C00), "BF16": (np.uint16, 0x7F80)}
_PLAIN = (
    None,
    True,
    False,
    "gaussian",
    "orthogonal",
)  # the other ways to begin change the base's weights, too


def fault_of(folder: Path) -> str | None:
    """What is wrong with a PEFT folder: files that are missing, cut or no LoRA, a tensor without its partner, of
    another shape than the configuration says, of another data type, or not finite. None: nothing."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        return f"lacks {', '.join(missing)}"
    try:
        config = json.loads((folder / CONFIG).read_text())
    except ValueError as error:
        return f"{CONFIG} is not JSON: {error}"
    try:
        tensors = dict(deserialize((folder / WEIGHTS).read_bytes()))
    except SafetensorError as error:
        return f"{WEIGHTS} cannot be read: {error}"
    return _config_fault(config) or _tensor_fault(tensors, config)


def targeted(name: str, targets: Collection[str] | str) -> bool:
    """Whether a configuration's `target_modules` mean the module `name`: last parts of a name, or a pattern."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == each or name.endswith(f".{each}") for each in targets)


def _config_fault(config: Any) -> str | None:
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        return f"{CONFIG} is not of a LoRA adapter (peft_type LORA)"
    rank, alpha, targets = config.get("r"), config.get("lora_alpha"), config.get("target_modules")
    if type(rank) is not int or rank < 1:
        return f"{CONFIG}: r = {rank!r} must be a whole number from 1"
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        return f"{CONFIG}: lora_alpha = {alpha!r} must be a finite number"
    listed = isinstance(targets, list) and all(isinstance(each, str) and each for each in targets)
    if not targets or not (listed or _is_pattern(targets)):
        return f"{CONFIG}: target_modules = {targets!r} must name modules"
    if config.get("init_lora_weights") not in _PLAIN:
        return (
            f"{CONFIG}: init_lora_weights = {config['init_lora_weights']!r} would change the base's weights"
        )
    return None


def _is_pattern(text: Any) -> bool:
    try:
        return isinstance(text, str) and re.compile(text) is not None
    except re.error:
        return False


def _tensor_fault(tensors: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> str | None:
    targets, modules = config["target_modules"], set()
    for name, tensor in sorted(tensors.items()):
        match = KEY.fullmatch(name)
        if match is None or not targeted(match["module"], targets):
            return f"{WEIGHTS}: {name} belongs to no module of target_modules {targets}"
        if fault := _values_fault(tensor, match["side"], config["r"]):
            return f"{WEIGHTS}: {name} {fault}"
        other = name.removesuffix("A.weight") + "B.weight"
        other = name.removesuffix("B.weight") + "A.weight" if match["side"] == "B" else other
        if other not in tensors:
            return f"{WEIGHTS}: {name} stands without {other}"
        modules.add(match["module"])
    unused = [] if isinstance(targets, str) else [each for each in targets if not _any(modules, each)]
    if unused or not modules:
        return f"{WEIGHTS} has no tensor for target_modules {unused or targets}"
    return None


def _any(modules: Collection[str], target: str) -> bool:
    return any(targeted(module, [target]) for module in modules)


def _values_fault(tensor: Mapping[str, Any], side: str, rank: int) -> str | None:
    shape, kind = tensor["shape"], tensor["dtype"]
    if len(shape) != 2 or shape[0 if side == "A" else 1] != rank:
        return f"has shape {shape}, which is not of rank {rank}"
    if kind not in _EXPONENTS:
        return f"is {kind}; it must be one of {', '.join(_EXPONENTS)}"
    integers, exponent = _EXPONENTS[kind]
    if np.any((np.frombuffer(tensor["data"], integers) & exponent) == exponent):
        return "has values that are not finite"
    return None
