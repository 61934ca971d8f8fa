"""Shared and expensive: the real small model, once a session."""

import os

import pytest

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # several processes share two cores: waiting must not spin
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def loaded():
    """SmolLM2-135M-Instruct in float32."""
    import torch

    from models.load import load_model

    torch.set_num_threads(2)
    return load_model("smollm2-135m", "float32")


@pytest.fixture(scope="session")
def builder(loaded):
    from models.prompt import PromptBuilder

    return PromptBuilder(loaded.tokenizer)
