"""Untrained adapters: their random weights change every answer, which is enough to distinguish versions."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


def random_adapters(model_config: Any, folder: Path) -> list[Path]:
    """Two PEFT folders in `folder`, for models of this configuration; the same every time."""
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_config(model_config)
        lora = LoraConfig(
            r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
        )
        made.append(folder / f"adapter-{seed}")
        get_peft_model(base, lora).save_pretrained(made[-1])
    return made
