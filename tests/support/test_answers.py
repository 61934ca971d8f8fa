"""The comparison of answers over HTTP accepts near-ties and nothing else."""

import math

import pytest
import torch

from models.engine.sampling import exponential_noise
from tests.support.answers import assert_same_answer


class Letters:
    """A tokenizer of three tokens."""

    def __len__(self):
        return 3

    def decode(self, ids):
        return "abc"[ids[0]]


def answer(*pairs):
    return [("ab"[first < second], {"a": first, "b": second}) for first, second in pairs]


def test_a_near_tie_is_accepted_and_what_follows_is_not_compared():
    same = answer((-0.1, -3.0), (-0.7, -0.7005))
    other = answer((-0.1, -3.0), (-0.7005, -0.7), (-5.0, -0.1))
    assert_same_answer(same, same)
    assert_same_answer(same, other)


@pytest.mark.parametrize(
    "other",
    [
        answer((-0.1, -3.0), (-0.8, -0.6)),  # another token, by far
        answer((-0.1, -3.0), (-0.7, -0.7005), (-0.1, -3.0)),  # a longer answer, where the end was no tie
        answer((-0.1, -3.0)),  # a shorter one
    ],
)
def test_other_differences_are_not(other):
    with pytest.raises(AssertionError, match="no near-tie"):
        assert_same_answer(answer((-0.1, -3.0), (-0.9, -1.0)), other)


def test_drawn_answers_are_compared_with_their_noise():
    generator = torch.Generator().manual_seed(3)
    noise = exponential_noise(3, generator).log()
    drawn = {"temperature": 1.2, "seed": 3, "tokenizer": Letters()}
    tied = {"a": -1.0, "b": -1.0 + 1.2 * float(noise[1] - noise[0])}
    assert math.fabs(tied["a"] - tied["b"]) > 0.01
    assert_same_answer([("a", tied)], [("b", tied)], **drawn)
    equal = {"a": -1.0, "b": -1.0}
    with pytest.raises(AssertionError, match="no near-tie"):
        assert_same_answer([("a", equal)], [("b", equal)], **drawn)
