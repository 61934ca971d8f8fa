"""PEFT folders damaged in every way that could be served as if it were whole."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from models.weights.adapter_files import CONFIG, WEIGHTS

ONE = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)


def change_config(folder: Path, **fields: object) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **fields}))


def _tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    return lambda folder: change_tensors(folder, change)


def _config(**fields: object) -> Callable[[Path], None]:
    return lambda folder: change_config(folder, **fields)


def _cut(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def _fill(name: str, value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors[name].view(-1)[-1:].fill_(value)


A, B = ONE.format("A"), ONE.format("B")
# What the message says -> the damage. Each leaves the folder of tests' `trained` wrong by itself, whatever the model.
DAMAGES: dict[str, Callable[[Path], None]] = {
    "stands without .*lora_A": _tensors(lambda t: t.pop(A)),
    "stands without .*lora_B": _tensors(lambda t: t.pop(B)),
    "not of rank 4": _tensors(lambda t: t.update({A: t[A][:3], B: t[B][:, :3]})),
    r"has shape \[\d+\]": _tensors(lambda t: t.update({A: t[A][0]})),
    "not of rank 8": _config(r=8),
    "is I8": _tensors(lambda t: t.update({A: t[A].to(torch.int8)})),
    "is F64": _tensors(lambda t: t.update({A: t[A].double()})),
    "extra belongs to no module": _tensors(lambda t: t.update({"extra": torch.zeros(2)})),
    "lm_head.weight belongs to no module": _tensors(
        lambda t: t.update({"base_model.model.lm_head.weight": torch.zeros(2, 2)})
    ),
    "bias belongs to no module": _tensors(lambda t: t.update({B.replace("weight", "bias"): torch.zeros(2)})),
    "belongs to no module of target_modules .*k_proj": _config(target_modules=["k_proj", "v_proj"]),
    r"no tensor for target_modules \['o_proj'\]": _config(target_modules=["q_proj", "v_proj", "o_proj"]),
    "target_modules = None": _config(target_modules=None),
    "peft_type": _config(peft_type="LOHA"),
    "r = 0": _config(r=0),
    "lora_alpha = inf": _config(lora_alpha=float("inf")),
    "init_lora_weights = 'pissa'": _config(init_lora_weights="pissa"),
    "q_proj.lora_A.weight has values that are not finite": _tensors(_fill(A, float("nan"))),
    "q_proj.lora_B.weight has values that are not finite": _tensors(_fill(B, float("-inf"))),
    "no tensor for": _tensors(dict.clear),
    "cannot be read": _cut,
    "adapter_config.json is not JSON": lambda folder: (folder / CONFIG).write_text("{"),
    "peft_type LORA": lambda folder: (folder / CONFIG).write_text("[]"),
    "lacks adapter_model.safetensors": lambda folder: (folder / WEIGHTS).unlink(),
}
