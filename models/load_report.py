"""Whether a PEFT LoRA folder fits a model, told before it is loaded. PEFT itself passes over what it does not know."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from common.errors import Conflict
from common.files import read_json

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")

_TOLD = ("digest", "model_digest", "data_digest", "purpose", "steps", "created")  # of a manifest


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """Tensor names by what becomes of them, and where the adapter comes from.

    `loaded`: they fit a module of the model. `skipped`: no such module, or no LoRA matrix. `missing`: modules that the
    configuration names and the file does not hold. `shape_errors`: name -> [shape, expected shape].
    """

    loaded: list[str]
    skipped: list[str]
    missing: list[str]
    shape_errors: dict[str, list[list[int]]]
    provenance: dict[str, Any]

    @property
    def complete(self) -> bool:
        return bool(self.loaded) and not (self.skipped or self.missing or self.shape_errors)

    def check(self) -> None:
        """Raises `Conflict` where anything would be left out: half an adapter answers, and wrongly."""
        if not self.complete:
            bad = [*self.shape_errors, *self.skipped, *self.missing] or ["it holds no tensor"]
            raise Conflict(
                f"adapter does not fit the model: {len(self.shape_errors)} tensors of another shape, "
                f"{len(self.skipped)} without a module, {len(self.missing)} modules without a tensor, first: "
                f"{bad[0]}; train it for this model",
                param="model",
                code="adapter_does_not_fit",
            )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def load_report(model: Any, folder: Path) -> LoadReport:
    """Compare the tensors of `folder` with the modules of `model`, which may hold other adapters already."""
    config = read_json(folder / "adapter_config.json")
    modules = {name.removeprefix("base_model.model."): module for name, module in model.named_modules()}
    loaded, skipped, errors, held = [], [], {}, set()
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        for name in sorted(file.keys()):
            match = _KEY.fullmatch(name)
            module: Any = modules.get(match["module"]) if match else None
            if match is None or not hasattr(module, "in_features"):
                skipped.append(name)
                continue
            held.add(match["module"])
            rank = config["r"]
            wanted = [rank, module.in_features] if match["side"] == "A" else [module.out_features, rank]
            shape = list(file.get_slice(name).get_shape())
            if shape == wanted:
                loaded.append(name)
            else:
                errors[name] = [shape, wanted]
    return LoadReport(
        loaded=loaded,
        skipped=skipped,
        missing=sorted(_targets(modules, config["target_modules"]) - held),
        shape_errors=errors,
        provenance=_provenance(folder, config),
    )


def _targets(modules: dict[str, Any], targets: list[str] | str) -> set[str]:
    """Names of the modules that a configuration's `target_modules` means: last parts of a name, or a pattern."""
    if isinstance(targets, str):
        return {name for name in modules if re.fullmatch(targets, name)}
    return {name for name in modules if any(name == each or name.endswith(f".{each}") for each in targets)}


def _provenance(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says, where the folder is a published version's; else only what PEFT wrote."""
    manifest = folder / "manifest.json"
    known = read_json(manifest) if manifest.is_file() else {}
    return {
        "base_model": config.get("base_model_name_or_path"),
        "peft_version": config.get("peft_version"),
        "rank": config["r"],
        **{key: known[key] for key in _TOLD if key in known},
    }
