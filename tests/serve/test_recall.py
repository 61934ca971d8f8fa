"""What the model is asked, given what was recalled."""

import pytest

from models.text.messages import TokenText
from serve.recall import NOTHING_KNOWN, Recalled

FOUND = [{"id": "a", "score": 0.4}]
SYSTEM, QUESTION = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where does Bo live?"},
)
CALL = {"role": "assistant", "content": "", "tool_calls": []}
RESULT = {"role": "tool", "content": "{}", "tool_call_id": "c"}


@pytest.mark.parametrize("messages", [[QUESTION], [SYSTEM, QUESTION], [QUESTION, SYSTEM]])
def test_without_evidence_a_line_behind_the_question_says_so(messages):
    told = Recalled(retrieved=FOUND, says_unknown=True).prompt(messages, tools=False)
    noted = {"role": "user", "content": f"Where does Bo live?\n{NOTHING_KNOWN}"}
    assert told == [noted if message is QUESTION else message for message in messages]


@pytest.mark.parametrize(
    "recalled, asked",
    [
        (Recalled(retrieved=FOUND), [QUESTION]),
        (Recalled(says_unknown=True), [QUESTION]),  # a namespace without memories
        (Recalled(retrieved=FOUND, says_unknown=True), "Bo lives in"),
        (Recalled(retrieved=FOUND, says_unknown=True), TokenText((1, 2), "Bo")),
        (Recalled(retrieved=FOUND, says_unknown=True), [SYSTEM]),
        (Recalled(retrieved=FOUND, says_unknown=True), [CALL]),
        # What is asked may have been said before, or be in a result.
        (Recalled(retrieved=FOUND, says_unknown=True), [QUESTION, CALL, QUESTION]),
        (Recalled(retrieved=FOUND, says_unknown=True), [SYSTEM, QUESTION, CALL, RESULT]),
    ],
)
def test_else_nothing_is_added(recalled, asked):
    assert recalled.prompt(asked, tools=False) == asked


def test_where_a_tool_may_know_nothing_is_added():
    assert Recalled(retrieved=FOUND, says_unknown=True).prompt([QUESTION], tools=True) == [QUESTION]
