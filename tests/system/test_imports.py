"""Files of other systems taught to a running instance, also by a process that is killed half-way."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest

from jobs.commands.client import Client
from jobs.commands.teach import BATCH, FIRST_BATCH, teach_files
from tests.conftest import LONGEST_TEXT
from tests.support.exports import T0, chatgpt, claude, claude_message, letta, mem0, node

WORDS = "amber birch cedar delta ember fjord grove heath inlet jetty kelp larch moor north ochre pine".split()


def export(conversations: int, seed: int = 7) -> list[dict]:
    """Conversations of 20 turns with other words each; some turns have no time, some are long, some say the same."""
    draw = random.Random(seed)
    found = []
    for number in range(conversations):
        nodes = [node("r", None)]
        for turn in range(20):
            text = " ".join(draw.choices(WORDS, k=8)) if turn % 6 else "Yes, please."
            text = (
                text
                if turn != 5 or number
                else ". ".join(" ".join(draw.choices(WORDS, k=12)) for _ in range(70))
            )
            time = T0 + 1000 * number + turn if turn % 4 else None
            nodes.append(node(f"n{turn}", nodes[-1]["id"], ("user", "assistant")[turn % 2], text, time=time))
        found.append(chatgpt(nodes, "n19", conversation_id=f"c{number}", create_time=T0 + 1000 * number))
    return found


def contents(client: Client, namespace: str) -> list[str]:
    """Everything that is stored, without what the namespace's name decides."""
    found, cursor = [], None
    while True:
        page = client.get("/v1/memories", namespace=namespace, limit=1000, cursor=cursor)
        for memory in page["memories"]:
            part = memory["context"].get("part", {})
            kept = {**memory["context"], "part": {**part, "of": ""}}
            found.append(
                json.dumps([memory["text"], memory["time"], memory["conversation"], kept], sort_keys=True)
            )
        if (cursor := page["next"]) is None:
            return sorted(found)


def teach(client: Client, file, namespace: str):
    bad: list[str] = []
    summary = teach_files(
        client, [file], namespace=namespace, max_text_bytes=LONGEST_TEXT, report_bad=bad.append
    )
    return summary, bad


def test_a_killed_teach_is_run_again_and_nothing_is_lost_or_doubled(instance, tmp_path):
    file = tmp_path / "conversations.json"
    file.write_text(json.dumps(export(4)))
    with Client(instance.url) as client:
        whole, bad = teach(client, file, "import-whole")
        assert not bad and whole.written == whole.stored > FIRST_BATCH + BATCH

        command = [
            sys.executable,
            "-m",
            "jobs.cli",
            "teach",
            str(file),
            "--url",
            instance.url,
            "-n",
            "import-killed",
        ]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(contents(client, "import-killed")) < FIRST_BATCH and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        between = len(contents(client, "import-killed"))
        assert FIRST_BATCH <= between < whole.stored

        again, bad = teach(client, file, "import-killed")
        assert not bad and again.written == whole.written
        assert again.existing >= between  # a batch may have been on its way when the process died
        assert contents(client, "import-killed") == contents(client, "import-whole")
        third, _ = teach(client, file, "import-killed")
        assert (third.existing, third.stored) == (whole.written, 0)


@pytest.mark.parametrize(
    ("name", "content", "memories"),
    [
        (
            "claude",
            [claude([claude_message("human", "I moved to Turku.", created_at="2026-03-01T08:00:01Z")])],
            1,
        ),
        ("mem0", mem0(), 3),
        ("letta", letta(), 4),
    ],
)
def test_what_was_imported_is_found_and_importing_it_again_changes_nothing(
    instance, tmp_path, name, content, memories
):
    file = tmp_path / "file"
    file.write_text(json.dumps(content))
    space = f"import-{name}"
    with Client(instance.url) as client:
        summary, _ = teach(client, file, space)
        assert summary.stored == memories
        before = client.get("/v1/memories", namespace=space, limit=100)
        summary, _ = teach(client, file, space)
        assert (summary.existing, summary.stored) == (memories, 0)
        assert client.get("/v1/memories", namespace=space, limit=100) == before
        where = {"field": "context.source", "op": "eq", "value": name}
        found = client.post("/v1/memories/search", {"namespace": space, "query": "moved", "filter": where})
        assert "moved" in found["results"][0]["memory"]["text"]
