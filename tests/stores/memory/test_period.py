"""The time a question names, and what holds then."""

from datetime import UTC, datetime

import pytest

from stores.memory.period import dated, holds, names_validity, period_in

NOW = datetime(2026, 7, 15, 12, tzinfo=UTC).timestamp()


def days(*given):
    return tuple(
        None if day is None else datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() for day in given
    )


@pytest.mark.parametrize(
    ("question", "first", "behind"),
    [
        ("Where did he live in 2020?", "2020-01-01", "2021-01-01"),
        ("Where did he live back in the year 2020?", "2020-01-01", "2021-01-01"),
        ("Who ran it in March 2021?", "2021-03-01", "2021-04-01"),
        ("Who ran it in Feb. 2024, say?", "2024-02-01", "2024-03-01"),
        ("Where was she on 5 March 2020?", "2020-03-05", "2020-03-06"),
        ("Where was she on March 5th, 2020?", "2020-03-05", "2020-03-06"),
        ("Where was she 2020-03-05?", "2020-03-05", "2020-03-06"),
        ("Where did she live two years ago?", "2024-01-01", "2025-01-01"),
        ("Where did she work last year?", "2025-01-01", "2026-01-01"),
        ("Where did he live at the end of 2019?", "2019-01-01", "2020-01-01"),
    ],
)
def test_a_question_names_a_time(question, first, behind):
    start, end = days(first, behind)
    assert period_in(question, NOW) == (start, end - 1.0)


def test_open_periods():
    assert period_in("Where did he live before 2019?", NOW) == (float("-inf"), days("2019-01-01")[0] - 1)
    assert period_in("Where did he live until 2019?", NOW) == (float("-inf"), days("2020-01-01")[0] - 1)
    assert period_in("Where has he lived since 2019?", NOW) == (days("2019-01-01")[0], NOW)
    assert period_in("Where did he live after May 2019?", NOW) == (days("2019-06-01")[0], NOW)
    start, end = period_in("Where was he yesterday?", NOW)
    assert start < NOW - 86400 < end <= NOW


@pytest.mark.parametrize(
    "question",
    ["Where does he live?", "Who owns the 2020 model?", "Is room 2020 free?", "It may rain, march on!", "In 31 June 20",
     "on 2020-02-31", "", "in 99999 parcels", "the 3 of May"],
)  # fmt: skip
def test_other_questions_name_none(question):
    assert period_in(question, NOW) is None


def test_a_fact_holds_from_its_start_until_its_end():
    fact = {
        "kind": "relational",
        "text": "Ivo lives in Turin.",
        "time": 5.0,
        "valid_from": 10.0,
        "valid_to": 20.0,
    }
    assert [holds(fact, (at, at)) for at in (9.0, 10.0, 19.0, 20.0)] == [False, True, True, False]
    assert holds(fact, (0.0, 10.0)) and not holds(fact, (20.0, 30.0)) and holds(fact, (float("-inf"), 11.0))
    assert holds({"kind": "relational", "time": 5.0}, (5.0, 5.0)) and not holds(
        {"kind": "relational", "time": 5.0}, (4.0, 4.0)
    )
    assert holds({"kind": "episodic", "time": 5.0}, (1.0, 1.0))
    assert dated(fact) == "Ivo lives in Turin. (from 1970-01-01 until 1970-01-01)"
    assert dated({**fact, "valid_to": None}) == "Ivo lives in Turin."


def test_a_filter_that_names_validity():
    assert names_validity({"and": [{"not": {"field": "valid_to", "op": "lt", "value": 3}}]})
    assert not names_validity({"field": "time", "op": "lt", "value": 3}) and not names_validity(None)
