"""The benchmarks' adapters, on stories of our own in the formats of bAbI and StepGame."""

import json
from pathlib import Path

import pytest

from benchmarks import babi, stepgame

WHERE = """1 Tom got the lamp there.
2 Tom went to the attic.
3 Where is the lamp? \tattic\t1 2
4 Tom journeyed to the cellar.
5 Tom put down the lamp.
6 Tom went back to the attic.
7 Where is the lamp? \tcellar\t5 4
8 Where was the lamp before the cellar? \tattic\t2 4
1 Where is Tom? \tattic\t1
"""
PATHS = """1 The attic is north of the hall.
2 The cellar is west of the attic.
3 What is the attic north of? \thall\t1
4 What is west of the attic? \tcellar\t2
5 How do you go from the hall to the cellar? \tn,w\t1 2
6 Is the cellar to the left of the hall? \tyes\t1 2
7 Is the cellar below the hall? \tno\t1 2
"""
GIFTS = """1 Tom handed the lamp to Kim.
2 Kim passed the lamp to Lou.
3 Who received the lamp? \tLou\t2
4 What did Tom give to Kim? \tlamp\t1
5 Mice are afraid of cats.
6 Kim is a mouse.
7 What is kim afraid of?\tcat\t5 6
"""


@pytest.mark.parametrize(("task", "story", "right"), [(1, WHERE, 3), (4, PATHS, 5), (5, GIFTS, 3)])
def test_babi_is_answered_without_its_answers(tmp_path: Path, task: int, story: str, right: int) -> None:
    (tmp_path / f"qa{task}_own_test.txt").write_text(story)
    asked = [*babi.read_task(tmp_path, task)]
    assert [q.got.casefold() for q in asked[:right]] == [q.answer.casefold() for q in asked[:right]]
    assert all(q.got is None for q in asked[right:]), "a new story knows nothing of the one before"


@pytest.mark.parametrize(
    ("sentence", "a", "side", "b"),
    [
        ("K is to the left of M and below M at approximately a 45 degree angle.", "K", "below_left_of", "M"),
        ("K is there and M is at the 2 position of a clock face.", "M", "above_right_of", "K"),
        ("If K is the center of a clock face, M is located between 7 and 8.", "M", "below_left_of", "K"),
        ("K is over there with M above.", "M", "above_of", "K"),
        ("K and M are next to each other with M on the right and K on the left.", "M", "right_of", "K"),
        (
            "The objects K and M are over there. The object K is lower than the object M.",
            "K",
            "below_of",
            "M",
        ),
        ("K is at M's 9 o'clock.", "K", "left_of", "M"),
    ],
)
def test_stepgame_sentences_are_read(sentence: str, a: str, side: str, b: str) -> None:
    assert stepgame.read_sentence(sentence) == stepgame.Reading(a, side, b)


def test_stepgame_sentences_that_name_one_agent_say_nothing() -> None:
    assert stepgame.read_sentence("K is diagonally left and above K.") is None


def test_stepgame_reports_the_templates_that_disagree_with_their_labels(tmp_path: Path) -> None:
    question = "What is the relation of the agent K to the agent M?"
    rows = [("K is above M.", "above")] * 3 + [("K is under M.", "above")]
    for hops in stepgame.HOPS:
        data = {
            str(i): {"story": [s], "question": question, "label": label} for i, (s, label) in enumerate(rows)
        }
        (tmp_path / f"clean_qa{hops}_test.json").write_text(json.dumps(data))
    report = stepgame.measure(tmp_path)
    assert report["wrong_templates"] == {"#0 is under #1.": {"uses": 1, "agree": 0}}
    assert (report["3"]["all"]["accuracy"], report["3"]["sound"]["n"]) == (0.75, 3)
