"""What the model is asked, given what was recalled."""

import pytest

from models.text.messages import TokenText
from serve.recall import BUT_SAID, NOTHING_KNOWN, Recalled

FOUND = [{"id": "a", "score": 0.4}]
SYSTEM, QUESTION = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where does Bo live?"},
)
CALL = {"role": "assistant", "content": "", "tool_calls": []}
RESULT = {"role": "tool", "content": "{}", "tool_call_id": "c"}


@pytest.mark.parametrize(
    "messages", [[QUESTION], [SYSTEM, QUESTION], [QUESTION, CALL, RESULT], [QUESTION, RESULT, QUESTION]]
)
def test_without_evidence_a_line_behind_the_last_question_says_so(messages):
    told = Recalled(retrieved=FOUND, says_unknown=True).prompt(messages, tools=False)
    last = max(i for i, message in enumerate(messages) if message == QUESTION)
    note = NOTHING_KNOWN.format(BUT_SAID if QUESTION in messages[:last] else "")
    assert told[last] == {"role": "user", "content": f"Where does Bo live?\n{note}"}
    assert told[:last] + told[last + 1 :] == messages[:last] + messages[last + 1 :]


@pytest.mark.parametrize(
    "recalled, asked",
    [
        (Recalled(retrieved=FOUND), [QUESTION]),
        (Recalled(says_unknown=True), [QUESTION]),  # a namespace without memories
        (Recalled(retrieved=FOUND, says_unknown=True), "Bo lives in"),
        (Recalled(retrieved=FOUND, says_unknown=True), TokenText((1, 2), "Bo")),
        (Recalled(retrieved=FOUND, says_unknown=True), [SYSTEM]),
    ],
)
def test_else_nothing_is_added(recalled, asked):
    assert recalled.prompt(asked, tools=False) == asked


def test_where_a_tool_may_know_nothing_is_added():
    assert Recalled(retrieved=FOUND, says_unknown=True).prompt([QUESTION], tools=True) == [QUESTION]
