"""Evidence of an answer, and what is left of the results without any."""

import pytest

from stores.ranking.evidence import about, evidence


def result(text, dense=0.5, covered=0.0, **memory):
    return {
        "memory": {"kind": "episodic", "text": text, **memory},
        "score": 1.0,
        "scores": {"dense": dense, "covered": covered},
    }


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([], "none"),
        ([(0.44, 1.0)], "none"),
        ([(0.67, 0.39)], "none"),
        ([(0.67, 0.4)], "weak"),
        ([(0.68, 0.0)], "weak"),
        ([(0.75, 0.0)], "strong"),
        ([(0.45, 0.8)], "strong"),
        ([(0.5, 0.0), (0.76, 0.1)], "strong"),
    ],
)
def test_evidence_by_cosine_and_words(scores, expected):
    assert evidence([result("x", dense, covered) for dense, covered in scores]) == expected


def test_what_lost_its_source_is_no_evidence():
    assert evidence([result("x", 0.9, 1.0, unsupported=True)]) == "none"


def test_without_evidence_others_of_whom_the_same_is_known_are_left_out():
    of_her = [result("Jifo Toba plays the harp."), result("Jifo Toba is learning Greek.")]
    of_him = result("Lufo Togil drives a green car.")
    asked = "What colour is Jifo Toba's car?"
    assert about([of_her[0], of_him, of_her[1]], asked) == of_her
    assert about([of_him], asked) == [of_him], "whom else it could be about is not known"
    strangers = [result("The choir meets on Mondays."), of_him]
    assert about(strangers, "Wann ist Ostern?") == strangers
    assert about([], asked) == []
