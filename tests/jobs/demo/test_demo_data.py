"""The demo's invented world: reproducible, of all kinds, and asked in wordings that share nothing."""

import json
from collections import Counter
from pathlib import Path

import pytest

from jobs.demo.demo_data import FAMILIES, START, check_families, write_demo
from stores.imports.chat import Skipped
from stores.imports.reader import FileReader
from stores.memory.memory import Memory, parse_memory
from train.evaluation.evaluate import normalise


@pytest.fixture(scope="module")
def memories(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    files = write_demo(tmp_path_factory.mktemp("demo"), seed=1337)
    return [json.loads(line) for line in files.experiences.read_text().splitlines()]


def test_kinds_and_families(memories: list[dict]) -> None:
    assert Counter(each["kind"] for each in memories) == {"episodic": 10, "relational": 6, "spatial": 4}
    for each in memories:
        asked = Counter(cue["family"] for cue in each["cues"])
        assert set(asked) == set(FAMILIES) and min(asked.values()) >= 3
        assert len({cue["answer"] for cue in each["cues"]}) == 1
        assert each["cues"][0]["answer"] in each["text"]
        assert len(each["cues"][0]["answer"].split()) <= 2


def test_no_wording_is_in_two_families(memories: list[dict]) -> None:
    families = {
        family: {normalise(c["question"]) for m in memories for c in m["cues"] if c["family"] == family}
        for family in FAMILIES
    }
    for family in FAMILIES:
        for other in set(FAMILIES) - {family}:
            assert not families[family] & families[other]
    # Syntax: train asks with a wh-word first, audit commands, test starts with a statement.
    first = {family: {question.split()[0] for question in found} for family, found in families.items()}
    assert first["train"] <= {"what", "which", "where", "in"}
    assert first["audit"] == {"name", "say", "give"}
    assert all(not question.startswith(("what", "which", "where")) for question in families["test"])


def test_a_leak_between_families_is_refused(memories: list[dict]) -> None:
    question = memories[0]["cues"][0]["question"]
    leak = {
        **memories[0],
        "cues": [*memories[0]["cues"], {"question": question.upper(), "answer": "x", "family": "test"}],
    }
    with pytest.raises(AssertionError, match="families"):
        check_families([leak])


def test_seed_decides_every_byte(tmp_path: Path) -> None:
    one, two, other = (write_demo(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    for name in ("experiences", "questions", "transcript"):
        assert getattr(one, name).read_bytes() == getattr(two, name).read_bytes()
        assert getattr(one, name).read_bytes() != getattr(other, name).read_bytes()


def test_answers_do_not_follow_from_names(memories: list[dict]) -> None:
    """Within a topic every answer is another one, so that guessing the topic's favourite cannot pass."""
    seen: dict[str, list[str]] = {}
    for each in memories:
        name = next(
            w
            for w in each["cues"][0]["question"].split()
            if w[0].isupper() and w not in ("What", "Which", "Where", "In")
        )
        topic = each["cues"][0]["question"].replace(name, "")[:12]
        seen.setdefault(topic, []).append(each["cues"][0]["answer"])
    assert all(len(set(answers)) == len(answers) for answers in seen.values())


def test_files_are_what_the_stores_read(tmp_path: Path) -> None:
    files = write_demo(tmp_path, seed=1337)
    for path, number in ((files.experiences, files.num_memories), (files.transcript, 4)):
        found = list(FileReader(path, namespace="demo", max_text_bytes=1 << 20))
        assert not [line for line in found if isinstance(line, Skipped)]
        assert len({line.id for line in found if isinstance(line, Memory)}) == number
    rows = [json.loads(line) for line in files.questions.read_text().splitlines()]
    assert len(rows) == files.num_questions >= 48 and {row["family"] for row in rows} == {"test"}
    first = json.loads(files.experiences.read_text().splitlines()[0])
    assert parse_memory(first, namespace="demo", now=0.0, max_text_bytes=1 << 20).time == START
