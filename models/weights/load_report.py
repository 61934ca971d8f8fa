"""Check the keys and shapes of trained tensors against a model before they are loaded: PEFT ignores unknown keys."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

from common.errors import Conflict
from common.files import read_json
from models.weights.adapter_files import CONFIG, KEY, WEIGHTS, fault_of, targeted
from models.weights.adapters import adapter_digest

_TOLD = ("model_digest", "data_digest", "purpose", "steps", "created")  # of a manifest


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """Result of matching a file of trained tensors to a model: names of tensors that are `loaded`, that the model lacks
    (`skipped`), that the file lacks (`missing`), and of another shape (`shape_errors`: name -> theirs, ours).
    `provenance`: metadata written by the training. `digest`: content digest, 16 hex digits."""

    digest: str
    loaded: list[str]
    skipped: list[str]
    missing: list[str]
    shape_errors: dict[str, tuple[list[int], list[int]]]
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return not self.missing and not self.shape_errors

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "complete": self.complete}


def check_adapter(report: LoadReport) -> None:
    """Raise `Conflict` if any tensor of an adapter would not be loaded: a partly loaded adapter answers wrongly."""
    bad = [*report.shape_errors, *report.skipped, *report.missing]
    if bad or not report.loaded:
        raise Conflict(
            f"adapter {report.digest} does not fit the model: {len(report.shape_errors)} tensors of another shape, "
            f"{len(report.skipped)} without a module, {len(report.missing)} missing, first: "
            f"{bad[0] if bad else 'it is empty'}; train it for this model",
            param="model",
            code="adapter_does_not_fit",
        )


def check_folder(model: Any, folder: Path) -> None:
    """Raise `Conflict` unless the PEFT folder is whole and all of it would be loaded onto the model."""
    if fault := fault_of(folder):
        raise Conflict(f"adapter folder {folder} is damaged: {fault}", param="model", code="adapter_damaged")
    check_adapter(load_report(model, folder))


def load_report(model: Any, folder: Path) -> LoadReport:
    """Compare the tensors of `folder` with the modules of `model`, which may hold other adapters already."""
    config = read_json(folder / CONFIG)
    modules = {name.removeprefix("base_model.model."): module for name, module in model.named_modules()}
    wanted = _wanted(modules, config)
    loaded, skipped = [], []
    errors: dict[str, tuple[list[int], list[int]]] = {}
    with safe_open(folder / WEIGHTS, "pt") as file:
        names = sorted(file.keys())
        for name in names:
            match = KEY.fullmatch(name)
            module: Any = modules.get(match["module"]) if match else None
            if match is None or not hasattr(module, "in_features"):
                skipped.append(name)
                continue
            rank = config["r"]
            ours = [rank, module.in_features] if match["side"] == "A" else [module.out_features, rank]
            theirs = list(file.get_slice(name).get_shape())
            if theirs == ours:
                loaded.append(name)
            else:
                errors[name] = (theirs, ours)
    return LoadReport(
        digest=adapter_digest(folder),
        loaded=loaded,
        skipped=skipped,
        missing=sorted(wanted - {*names}),
        shape_errors=errors,
        provenance=_provenance(folder, config),
    )


def _wanted(modules: dict[str, Any], config: dict[str, Any]) -> set[str]:
    """The tensors that PEFT will look for: both of every module that the configuration means."""
    meant = [name for name in modules if targeted(name, config["target_modules"])]
    return {f"base_model.model.{name}.lora_{side}.weight" for name in meant for side in "AB"}


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
