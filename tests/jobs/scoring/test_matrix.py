"""The divergence matrix as a job makes it: fan-out, dead actors, failed rows, resumption, files."""

import base64
import json
import os
import re
import signal
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from actors.scorers import BASELINE, NULL, ScoreJob, Scorer, ScorerPool, Task, tasks_of
from common import config
from common.errors import InvalidInput
from common.files import read_json
from jobs.scoring import conversations as talks
from jobs.scoring.compute import compute
from jobs.scoring.matrix import Matrix
from jobs.scoring.page import page_of
from models.scoring.leave_one_out import ScoreContext, naive_row

FACTS = ["Ada lives in Lisbon.", "Bo works as a baker.", "Cy keeps a goat."]
MEMORIES = [{"id": name, "text": text, "cues": []} for name, text in zip("abc", FACTS, strict=True)]
TALKS = [
    talks.Conversation(talks.question("Where does Ada live?", "Lisbon"), "a"),
    talks.Conversation(talks.question("What is the job of Bo?", "baker"), "b"),
]


def job(**changes):
    values = {
        "model": "smollm2-135m",
        "dtype": "float32",
        "adapter": "",
        "adapters_dir": "unused",
        "texts": tuple(FACTS),
        "conversations": tuple(talk.messages for talk in TALKS),
        "batch_tokens": 4096,
        "threads": 1,
    }
    return ScoreJob(**{**values, **changes})


def test_blocks_cover_the_matrix_once():
    for memories, conversations in [(0, 1), (1, 1), (17, 3), (8, 130)]:
        cells = [
            (row, column)
            for task in tasks_of(memories, conversations)
            for row in task.rows
            for column in range(task.start, task.stop)
        ]
        wanted = {(r, c) for r in [BASELINE, NULL, *range(memories)] for c in range(conversations)}
        assert len(cells) == len(set(cells)) and set(cells) == wanted
        assert len({task.key for task in tasks_of(memories, conversations)}) == len(
            tasks_of(memories, conversations)
        )


@pytest.mark.slow
def test_the_job_equals_the_naive_matrix_survives_a_kill_and_resumes(cluster, loaded, builder, tmp_path):
    settings = config.load(overrides={"score.actors": 1})
    found = compute(job(), settings, MEMORIES, TALKS, tmp_path)
    context = ScoreContext(
        builder.head,
        [builder.memory(text) for text in FACTS],
        [builder.transcript(talk.messages, memories=True) for talk in TALKS],
    )
    baseline = naive_row(loaded.model, context, None)
    naive = baseline - np.stack([naive_row(loaded.model, context, i) for i in range(len(FACTS))])
    assert np.abs(found.divergence - naive).max() < 1e-3
    assert found.true_first() == 1.0 and found.errors == []
    assert np.abs(found.null).max() < 1e-3

    [block] = tmp_path.rglob("*.npy")
    marked = np.load(block)
    marked[2:] = -123.0  # a resumed job takes this row from the file instead of computing it
    np.save(block, marked)
    again = compute(job(), settings, MEMORIES, TALKS, tmp_path)
    assert np.allclose(again.divergence[0], marked[0] + 123.0)

    with ScorerPool(job(), 1) as pool:
        os.kill(ray.get(pool.actors[0].pid.remote()), signal.SIGKILL)
        [result] = pool.run([Task(0, len(TALKS), (BASELINE, 0))])
    assert result.error is None and np.abs(result.logprobs[0] - baseline).max() < 1e-3


def test_work_that_keeps_failing_is_reported_failed_and_the_rest_goes_on(cluster):
    bad, good = Task(0, 2, (99,)), Task(0, 2, (BASELINE,))  # there is no memory 99
    with ScorerPool(job(), 1) as pool:
        results = {result.task: result for result in pool.run([bad, good])}
    assert results[bad].logprobs is None and "IndexError" in results[bad].error
    assert results[good].error is None


def test_too_many_memories_for_the_context_is_an_error_with_a_fix():
    with pytest.raises(InvalidInput, match="score fewer memories at once"):
        Scorer(job(texts=("word " * 5000,) * 3)).describe()


def test_the_page_holds_every_cell_and_no_text_leaves_its_place():
    found = replace(
        example(), texts=["</script><script>alert(1)</script>", "Fact \u2028 b.", "Fact c. " * 100]
    )
    page = page_of(found)
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    told = json.loads(data)
    cells = np.frombuffer(base64.b64decode(told["cells"]), "<f4").reshape(3, 2)
    assert np.array_equal(cells, found.divergence.astype("<f4"), equal_nan=True)
    assert [each["text"] for each in told["memories"]][:2] == found.texts[:2]
    assert len(told["memories"][2]["text"]) == 300 and told["truth"] == [0, None]
    assert not re.search(r"""(src|href)=|https?://|@import|url\(""", page)
    rows = np.zeros((500, 500))
    large = replace(
        found, memory_ids=["m"] * 500, texts=["t" * 400] * 500, responses=found.responses[:1] * 500,
        divergence=rows, null=rows[0], truth=[None] * 500,
    )  # fmt: skip
    assert len(page_of(large)) < 3_000_000


def example():
    divergence = np.array([[3.0, -0.5], [np.nan, np.nan], [0.1, 2.0]])
    return Matrix(
        memory_ids=["a", "b", "c"],
        texts=["Fact a.", "Fact b.", "Fact c."],
        responses=[
            {"conversation": j, "entry_index": 2, "tokens": 1, "question": f"Question {j}?"} for j in range(2)
        ],
        divergence=divergence,
        null=np.array([1e-6, -2e-6]),
        truth=[0, None],
        context="text",
        fingerprint="f",
        seconds=1.0,
        errors=["c00000-r+0001: lost"],
    )


def test_failed_rows_are_null_never_zero(tmp_path):
    example().save(tmp_path)
    table = pq.read_table(tmp_path / "matrix.parquet").to_pydict()
    assert table["status"] == ["ok", "ok", "failed", "failed", "ok", "ok"]
    assert table["divergence"] == [3.0, -0.5, None, None, 0.1, 2.0]
    summary = read_json(tmp_path / "summary.json")
    assert summary["failed_rows"] == 1 and summary["errors"] and "b" not in summary["weights"]


def test_a_failed_baseline_leaves_a_readable_report(tmp_path):
    lost = replace(example(), divergence=np.full((3, 2), np.nan), null=np.full(2, np.nan))
    lost.save(tmp_path)
    summary = read_json(tmp_path / "summary.json")
    assert (summary["noise_floor"], summary["true_first"], summary["failed_rows"]) == (None, None, 3)
    assert [row["score"] for row in summary["scores"]] == [None, None]


def test_summary_is_derived_from_the_signed_matrix(tmp_path):
    example().save(tmp_path)
    summary = read_json(tmp_path / "summary.json")
    assert summary["weights"] == {"a": 3.0, "c": 2.1}
    assert [row["score"] for row in summary["scores"]] == [3.1, 2.0]
    assert [row["id"] for row in summary["scores"][0]["mattered"]] == ["a", "c"]
    assert summary["true_first"] == 1.0 and summary["noise_floor"] == 2e-6
    assert (tmp_path / "heatmap.png").read_bytes().startswith(b"\x89PNG")


def test_conversation_files(tmp_path):
    path = tmp_path / "talk.jsonl"
    path.write_text('{"messages": [{"role": "assistant", "content": "Hi"}], "memory": "a"}\n' * 2)
    assert [talk.memory for talk in talks.read(path)] == ["a", "a"]
    path.write_text('{\n"messages": [{"role": "assistant", "content": "Hi"}]\n}')
    assert len(talks.read(path)) == 1
    for text, reason in [
        ("", "empty"),
        ('{"messages": []}', "messages is empty"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "no assistant message"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}\nnope', ":2: not JSON"),
        ("[1]", "expected"),
    ]:
        path.write_text(text)
        with pytest.raises(InvalidInput, match=reason):
            talks.read(path)
