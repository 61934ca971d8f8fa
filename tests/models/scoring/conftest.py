"""A model for what holds of any weights."""

import pytest

from models.weights.load import load_model
from tests.support.models import write_tiny_llama


@pytest.fixture(scope="package")
def tiny(tmp_path_factory):
    """Random weights, large enough that every omission shows: the equality holds for any weights."""
    folder = tmp_path_factory.mktemp("tiny")
    shape = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    return load_model(write_tiny_llama(folder, **shape), "float32")
