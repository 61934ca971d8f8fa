"""Scorers and GPUs: settings that are refused, and what the user is told."""

import pytest

from common.config import load
from common.errors import InvalidInput
from jobs.scoring.compute import idle_gpus_notice, missing_gpu_notice


def test_gpus_that_stay_unused_are_reported():
    assert "--set score.gpus_per_actor=1" in idle_gpus_notice(0, 2)
    assert idle_gpus_notice(0, 0) is None and idle_gpus_notice(0.5, 2) is None


def test_a_held_gpu_that_torch_does_not_find_is_reported():
    assert "torch finds no GPU" in missing_gpu_notice(1, "cpu")
    assert missing_gpu_notice(1, "cuda") is None and missing_gpu_notice(0, "cpu") is None


@pytest.mark.parametrize("gpus", [-1, 1.5])
def test_impossible_numbers_of_gpus_are_refused(gpus):
    with pytest.raises(InvalidInput, match="gpus_per_actor"):
        load(env={}, overrides={"score.gpus_per_actor": gpus})


def test_a_fraction_or_whole_gpus_are_accepted():
    assert load(env={}).score.gpus_per_actor == 0
    for gpus in (0.25, 1, 2):
        assert load(env={}, overrides={"score.gpus_per_actor": gpus}).score.gpus_per_actor == gpus
