"""Forms: what may become training text, and what must not."""

import json
import random
from pathlib import Path

import pytest

from jobs.demo.demo_data import write_demo
from train.evaluation.evaluate import normalise
from train.replay.forms import MAX_WORDS, Form, forms_of, pick_forms


def memory(kind: str = "episodic", **fields: object) -> dict:
    return {"id": "m", "kind": kind, "text": "", "cues": [], **fields}


def test_held_out_wordings_never_become_forms(tmp_path: Path) -> None:
    files = write_demo(tmp_path, seed=3)
    memories = [json.loads(line) for line in files.experiences.read_text().splitlines()]
    forms = [form for each in memories for form in forms_of(each)]
    asked = {normalise(form.question) for form in forms}
    for each in memories:
        for cue in each["cues"]:
            assert (normalise(cue["question"]) in asked) == (cue["family"] == "train")


def test_the_whole_text_is_never_in_a_question(tmp_path: Path) -> None:
    files = write_demo(tmp_path, seed=3)
    for line in files.experiences.read_text().splitlines():
        record = json.loads(line)
        for form in forms_of(record):
            assert record["text"] not in form.question
            assert form.answer not in form.question.split() or form.kind != "cue"


def test_statement_stops_before_the_answer() -> None:
    record = memory(
        text="Ada moved to Lisbon in May.",
        cues=[{"question": "Where is Ada?", "answer": "Lisbon", "family": "train"}],
    )
    assert forms_of(record) == [
        Form(memory_id="m", kind="cue", question="Where is Ada?", answer="Lisbon"),
        Form(
            memory_id="m", kind="statement", question="Complete the sentence: Ada moved to", answer="Lisbon"
        ),
    ]


@pytest.mark.parametrize("family", ["audit", "test"])
def test_statements_do_not_use_held_out_answers(family: str) -> None:
    record = memory(
        text="Ada moved to Lisbon.", cues=[{"question": "Q?", "answer": "Lisbon", "family": family}]
    )
    assert forms_of(record) == [
        Form(
            memory_id="m", kind="statement", question="Complete the sentence: Ada moved", answer="to Lisbon."
        )
    ]


def test_relation_without_cues_gets_several_wordings_and_a_reversed_one() -> None:
    for relation in ("works_as", "is_afraid_of"):
        forms = forms_of(
            memory("relational", subject="Ada", relation=relation, object="dogs", text="Ada dogs")
        )
        asked = [form for form in forms if form.kind == "question"]
        assert len({form.question for form in asked}) >= 3
        assert all("Ada" in form.question and form.answer == "dogs" for form in asked)
        reverse = [form for form in forms if form.kind == "reversed"]
        assert [form.answer for form in reverse] == ["Ada"] and "dogs" in reverse[0].question


def test_places_with_and_without_coordinates() -> None:
    near = forms_of(memory("spatial", place="library", relation="left_of", other="cafe"))
    assert {form.answer for form in near if form.kind == "question"} == {"cafe"}
    assert [form.answer for form in near if form.kind == "reversed"] == ["library"]
    point = forms_of(memory("spatial", place="museum", relation=None, other=None, x=3.0, y=4.25))
    assert {form.answer for form in point} == {"3, 4.25"} and len(point) >= 3


def test_long_and_tiny_texts() -> None:
    long = forms_of(memory(text=" ".join(f"word{i}" for i in range(10_000)) + ". Short one."))
    assert [form.answer for form in long][1:] == ["one."]
    assert len(long[0].question.split()) <= MAX_WORDS + 3 and len(long[0].answer.split()) <= MAX_WORDS
    assert [form.answer for form in forms_of(memory(text="Hm"))] == ["Hm"]
    assert forms_of(memory(text="")) == []


def test_pick_forms_is_seeded_and_without_repeats() -> None:
    forms = [Form(memory_id="m", kind="cue", question=str(i), answer="a") for i in range(5)]
    assert pick_forms(forms, 3, random.Random(1)) == pick_forms(forms, 3, random.Random(1))
    assert len({form.question for form in pick_forms(forms, 9, random.Random(1))}) == 5
