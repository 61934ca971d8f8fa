"""The session benchmark: each mode reaches the model as it says, reports compare."""

import argparse
import json

import pytest

from benchmarks.session import MAX_TOKENS, measure
from benchmarks.session_report import write_report
from benchmarks.session_sets import own
from tests.support.models import assert_greedy
from train.generation.chat import SHORTEST_SPAN

MODES = ["full", "text", "prefix", "off", "bias:2", "prefix:int8", "hybrid"]


@pytest.fixture(scope="module")
def facts():
    found = own(12, 1337)
    del found.questions[2:]
    return found


@pytest.fixture(scope="module")
def sessions(loaded, facts):
    def session(exact_from, modes):
        options = argparse.Namespace(
            k=3, share=0.0, exact_from=exact_from, adapter=None, modes=modes, together=2, raw=True
        )
        return measure(loaded, facts, options)

    return session(100, MODES), session(1, ["full"])


def test_a_kept_history_answers_as_its_text(loaded, builder, facts, sessions):
    """Each answer of both is the greedy one of a naive pass over the whole history."""
    text, kept = (session["raw"]["full"] for session in sessions)
    history = [token for fact in facts.facts for token in builder.memory(fact.text)]
    for asked, *rows in zip(facts.questions, text, kept, strict=True):
        messages = [{"role": "system", "content": SHORTEST_SPAN}, {"role": "user", "content": asked.text}]
        for row in rows:
            tokens = loaded.tokenizer.encode(row["answer"], add_special_tokens=False)
            assert len(tokens) == row["output_tokens"]
            if len(tokens) < MAX_TOKENS:
                tokens.append(loaded.tokenizer.eos_token_id)
            assert_greedy(loaded.model, [*builder.head, *history, *builder.tail(messages)], tokens)
    assert [row["prompt_tokens"] for row in text] == [row["prompt_tokens"] for row in kept]


def test_tokens_are_those_of_the_mode(sessions):
    rows, kept = (session["modes"] for session in sessions)
    assert rows["full"]["prompt_tokens"] > rows["text"]["prompt_tokens"] > rows["prefix"]["prompt_tokens"]
    assert rows["prefix"]["prompt_tokens"] > rows["off"]["prompt_tokens"] == rows["bias:2"]["prompt_tokens"]
    both = [rows[name]["prompt_tokens"] + rows[name]["prefix_tokens"] for name in ("text", "prefix")]
    assert both[0] == both[1]
    assert rows["off"]["prefix_tokens"] == rows["full"]["prefix_tokens"] == 0
    assert kept["full"]["prefix_tokens"] == 0
    assert rows["full"]["evidence_recall"] == kept["full"]["evidence_recall"] == 1
    assert rows["off"]["evidence_recall"] == 0


def test_a_report_tells_the_differences_to_an_earlier_one(sessions, tmp_path):
    report = {
        "command": "python x", "model": "m", "dtype": "float32", "k": 3, "sessions": [sessions[0]],
        "hardware": {"device": "cpu", "threads": 2},
    }  # fmt: skip
    write_report(tmp_path, report, None)
    before = json.loads((tmp_path / "report.json").read_text())
    assert " hit | tokens | ms |" not in (tmp_path / "report.md").read_text()
    before["sessions"][0]["modes"]["prefix"]["prompt_tokens"] -= 7
    write_report(tmp_path, report, before)
    row, _ = [  # of the table of modes; the other is of kinds of question
        line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("| prefix |")
    ]
    assert row.endswith("| +0.000 | +7 | +0 |")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
