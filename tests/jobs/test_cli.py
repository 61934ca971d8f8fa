"""The command line against a small HTTP server: what goes to stdout, what to stderr, and the exit codes."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from common.errors import Conflict, InvalidInput, Overloaded, SharpwaveError
from jobs import cli
from jobs.commands import jobs, shown
from jobs.commands.client import Client
from jobs.commands.teach import Summary
from jobs.instance.instance import Instance
from tests.support import exports

Run = Callable[..., tuple[int, str, str]]
COMMANDS = ("up", "down", "teach", "ask", "score", "consolidate", "evaluate", "forget", "status", "sql")


class FakeServer(ThreadingHTTPServer):
    """Keeps memories by id, and answers like `serve.api` where the command line looks."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.memories: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, str, Any]] = []
        self.fail_next: list[SharpwaveError] = []
        self.namespaces = ["default", "demo", "other"]
        self.refuse_below = 0  # texts shorter than this are refused by the write gate

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def write(self, body: dict[str, Any]) -> dict[str, Any]:
        results = []
        for item in body["memories"]:
            known = self.memories.get(item["id"])
            if known is not None and known != item:
                raise Conflict(f"id {item['id']!r} exists with other content")
        for item in body["memories"]:
            kept = len(item["text"]) >= self.refuse_below
            status = "existing" if item["id"] in self.memories else "new" if kept else "refused"
            if kept:
                self.memories[item["id"]] = item
            results.append({"id": item["id"], "stored": kept, "status": status})
        return {"memories": results, "written": len(results), "stored": len(results)}

    def answer(self, method: str, path: str, body: Any) -> dict[str, Any]:
        if self.fail_next:
            raise self.fail_next.pop(0)
        match method, path.partition("?")[0]:
            case "POST", "/v1/memories":
                return self.write(body)
            case "GET", "/v1/memories":
                return {"memories": list(self.memories.values()), "next": None}
            case "POST", "/v1/memories/forget":
                gone = (
                    list(self.memories) if body.get("all") else [i for i in body["ids"] if i in self.memories]
                )
                for each in gone:
                    del self.memories[each]
                return {"namespace": body["namespace"], "forgotten": gone, "log_records": len(gone)}
            case "GET", "/ready":
                return {"status": "ready", "store": {"memories": len(self.memories), "shards": [{"seq": 3}]}}
            case "GET", "/v1/memories/m1":
                return {"id": "m1", "text": "Ada moved\nto Lisbon. " + "She likes it there. " * 20}
            case "GET", "/v1/namespaces":
                return {"namespaces": [{"namespace": name, "memories": 1} for name in self.namespaces]}
            case "POST", "/v1/memories/search" | "/v1/facts/query":
                return {"results": [], "facts": []}
            case "GET", "/v1/models":
                return {"object": "list", "data": [{"id": "base"}]}
            case "POST", "/v1/chat/completions":
                if body["memory"].get("mode") == "full":
                    raise InvalidInput("memory.mode = 'full': too long", param="memory.mode")
                memory = {"mode": "prefix", "retrieved": [{"id": "m1", "score": 0.5}], "injected": ["m1"]}
                message = {"role": "assistant", "content": "In Lisbon."}
                return {"choices": [{"message": message}], "memory": memory | {"prefix_tokens": 7}}
            case _:
                raise AssertionError(f"unexpected {method} {path}")


class Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def do_GET(self) -> None:
        self._handle("GET")

    def do_POST(self) -> None:
        self._handle("POST")

    def _handle(self, method: str) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "null")
        self.server.requests.append((method, self.path, body))
        try:
            answer, status = self.server.answer(method, self.path, body), 200
        except SharpwaveError as error:
            answer, status = error.to_dict(), error.status
        if status == 200 and body is not None and body.get("stream"):
            self._send(200, "text/event-stream", _events(answer))
        else:
            self._send(status, "application/json", json.dumps(answer).encode(), retry_after="0")

    def _send(self, status: int, kind: str, data: bytes, retry_after: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if status == 429 and retry_after is not None:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def _events(answer: dict[str, Any]) -> bytes:
    pieces: list[dict[str, Any]] = [
        {"choices": [{"delta": {"content": word}}]} for word in ("In ", "Lisbon.")
    ]
    pieces.append({"choices": [{"delta": {}, "finish_reason": "stop"}], "memory": answer["memory"]})
    return "".join(f"data: {json.dumps(piece)}\n\n" for piece in pieces).encode() + b"data: [DONE]\n\n"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """`run("ask", "hi")` -> (exit code, stdout, stderr), in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("SHARPWAVE_URL", "SHARPWAVE_API_KEY", "SHARPWAVE_STORE__DIR"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["sharpwave", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return int(caught.value.code or 0), out, err

    return call


def lines(path: Path, *items: object) -> Path:
    path.write_text("".join((item if isinstance(item, str) else json.dumps(item)) + "\n" for item in items))
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_leads_with_examples(run: Run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == cli.OK
    assert out.index(f"  sharpwave {command}") < out.index("Options:")


@pytest.mark.parametrize(
    "arguments",
    [
        ("ask",),
        ("ask", "hi", "--mode", "psychic"),
        ("teach", "absent.jsonl"),
        ("up", "--port", "70000"),
        ("fly",),
    ],
)
def test_wrong_usage_is_2(run: Run, arguments: tuple[str, ...]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (cli.USAGE, "")
    assert "sharpwave" in err


@pytest.mark.parametrize(
    "arguments", [("ask", "hi"), ("status",), ("consolidate",), ("forget", "--all", "--force")]
)
def test_without_an_instance_the_message_says_how_to_start_one(run: Run, arguments: tuple[str, ...]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (cli.FAILED, "")
    assert "sharpwave up" in err


def test_down_without_an_instance_is_done_already(run: Run) -> None:
    assert run("down", "--json") == (cli.OK, json.dumps({"stopped": False}, indent=2) + "\n", "")


def test_an_error_is_a_json_document_on_request(run: Run) -> None:
    code, out, err = run("status", "--json")
    assert code == cli.FAILED
    assert json.loads(out)["error"]["type"] == "not_ready_error"
    assert "no instance" in err


def test_nobody_listening_is_told_without_a_traceback(run: Run) -> None:
    with FakeServer() as unused:
        url = unused.url
    code, out, err = run("status", "--url", url)
    assert (code, out) == (cli.FAILED, "")
    assert f"no answer from {url}" in err


def test_teach_tells_bad_lines_and_writes_the_rest(run: Run, server: FakeServer, tmp_path: Path) -> None:
    file = lines(
        tmp_path / "mixed.jsonl",
        {"text": "Ada moved to Lisbon."},
        "not json",
        {"kind": "wat", "text": "x"},
        {"kind": "relational", "subject": "Ada", "relation": "lives_in", "object": "Lisbon"},
    )
    code, out, err = run("teach", file, "--url", server.url, "--json")
    assert code == cli.FAILED
    counts = {"read": 2, "written": 2, "stored": 2, "existing": 0, "refused": 0, "bad": 2, "left_out": 0}
    assert json.loads(out) == counts
    assert f"{file}:2: " in err and f"{file}:3: kind = 'wat'" in err
    assert len(server.memories) == 2


def test_a_dry_run_says_what_would_be_written_and_needs_no_server(run: Run, tmp_path: Path) -> None:
    long = "A sentence. " * 3_000
    chat = exports.claude(
        [
            exports.claude_message("human", "I moved to Turku.", created_at="2026-03-01T08:00:00Z"),
            exports.claude_message(
                "assistant", long, {"type": "tool_use"}, created_at="2026-03-02T08:00:00Z"
            ),
            {"sender": "robot", "text": "?"},
        ]
    )
    file = tmp_path / "anything"
    file.write_text(json.dumps([chat]))
    code, out, err = run("teach", "--dry-run", file)
    assert code == cli.FAILED and err == ""
    for line in (
        "Claude export (1 documents)",
        "2026-03-01T08:00:00+00:00 to 2026-03-02T08:00:00+00:00",
        "1 long texts into 3 parts",
        "1 x a block of type tool_use",
        f"{file}:1: chat_messages[2]: sender 'robot'",
        "user: I moved to Turku.",
    ):
        assert line in out
    code, out, _ = run("teach", "--dry-run", file, file, "--json")
    first, second = json.loads(out)["files"]
    assert first == second
    assert (first["memories"], first["conversations"], first["split"], first["parts"]) == (4, 1, 1, 3)
    assert (first["formats"], first["bad_count"], len(first["samples"])) == ({"Claude export": 1}, 1, 3)
    assert not (tmp_path / ".sharpwave").exists()
    file.write_text('{"alpha": 1, "beta": 2}')
    code, out, _ = run("teach", "--dry-run", file)
    assert code == cli.FAILED and "keys alpha, beta" in out and "ChatGPT export" in out


def test_what_is_left_out_is_counted_and_what_is_bad_is_named(
    run: Run, server: FakeServer, tmp_path: Path
) -> None:
    file = tmp_path / "conversations.json"
    file.write_text(json.dumps([exports.branching()]))
    code, out, err = run("teach", file, "--url", server.url)
    assert (code, err) == (cli.OK, "") and "5 stored of 5 written; 10 left out" in out
    assert run("teach", file, "--url", server.url)[1].startswith(
        "0 stored of 5 written, 5 were there already"
    )
    assert {item["context"]["source"] for item in server.memories.values()} == {"chatgpt"}


def test_teaching_twice_stores_nothing_twice(run: Run, server: FakeServer, tmp_path: Path) -> None:
    file = lines(tmp_path / "many.jsonl", *({"text": f"Fact {i}."} for i in range(200)))
    first = run("teach", file, "--url", server.url)
    again = run("teach", file, "--url", server.url)
    assert first[0] == again[0] == cli.OK
    assert first[1] == "200 stored of 200 written\n"
    assert again[1] == "0 stored of 200 written, 200 were there already\n"
    assert len(server.memories) == 200
    written = [body["memories"] for method, path, body in server.requests if path == "/v1/memories"]
    assert [len(batch) for batch in written] == [8, 64, 64, 64] * 2


def test_what_the_write_gate_refuses_is_visible(run: Run, server: FakeServer, tmp_path: Path) -> None:
    server.refuse_below = 10
    file = lines(tmp_path / "two.jsonl", {"text": "short"}, {"text": "long enough to be kept"})
    code, out, err = run("teach", file, "--url", server.url)
    assert code == cli.PARTIAL
    assert "1 stored of 2 written" in out and "1 refused by the write gate" in out
    assert "1 of 2 memories are not stored" in err
    code, out, _ = run("teach", file, "--url", server.url, "--json")
    assert code == cli.PARTIAL and json.loads(out)["refused"] == 1


def test_what_says_the_same_counts_as_stored() -> None:
    statuses = ("new", "duplicate", "aggregated", "routed", "existing", "refused")
    summary = Summary()
    summary.count({"status": status, "stored": status != "refused"} for status in statuses)
    assert (summary.written, summary.stored, summary.existing, summary.refused) == (6, 4, 1, 1)


def test_one_conflict_in_a_batch_costs_only_itself(run: Run, server: FakeServer, tmp_path: Path) -> None:
    server.memories["taken"] = {"id": "taken", "text": "something else"}
    file = lines(
        tmp_path / "three.jsonl", {"text": "One."}, {"id": "taken", "text": "Two."}, {"text": "Three."}
    )
    code, out, err = run("teach", file, "--url", server.url, "--json")
    assert code == cli.FAILED
    assert json.loads(out) | {"read": 3, "stored": 2, "bad": 1} == json.loads(out)
    assert f"{file}: memory 'taken': id 'taken' exists with other content" in err


def test_an_empty_file_is_bad_input(run: Run, server: FakeServer, tmp_path: Path) -> None:
    code, _, err = run("teach", lines(tmp_path / "empty.jsonl"), "--url", server.url)
    assert code == cli.FAILED
    assert "empty" in err


def test_an_overloaded_server_is_asked_again(server: FakeServer) -> None:
    server.fail_next = [Overloaded("busy"), Overloaded("busy")]
    with Client(server.url) as client:
        assert client.get("/ready")["status"] == "ready"
    assert len(server.requests) == 3


def test_a_request_is_repeated_only_where_that_is_safe(server: FakeServer) -> None:
    body = {"namespace": "default", "memories": []}
    with Client(server.url) as client:
        server.fail_next = [cli.NotReady("restarting")]
        assert client.post("/v1/memories", body, safe=True)["written"] == 0
        server.fail_next = [cli.NotReady("restarting")]
        with pytest.raises(cli.NotReady):
            client.post("/v1/memories", body)


@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_the_answer_is_all_of_stdout(run: Run, server: FakeServer, stream: tuple[str, ...]) -> None:
    code, out, err = run("ask", "Where does Ada live?", "-k", 5, "--url", server.url, *stream)
    assert (code, out) == (cli.OK, "In Lisbon.\n")
    assert "mode prefix: 1 memories, 7 prefix tokens" in err and "0.500  m1" in err
    [asked] = [body for method, _, body in server.requests if method == "POST"]
    assert asked["memory"] == {"namespace": "default", "k": 5}


def test_an_answer_names_what_it_stood_on_in_one_line(
    run: Run, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns in (40, 80):
        monkeypatch.setenv("COLUMNS", str(columns))
        _, _, err = run("ask", "Where?", "--url", server.url)
        [line] = [line for line in err.splitlines() if "m1" in line]
        assert line.startswith("  0.500  m1  Ada moved to Lisbon.") and line.endswith("…")
        assert len(line) == columns


@pytest.mark.parametrize("command", [("search", "x"), ("facts", "x"), ("list",)])
def test_nothing_found_is_said_and_so_is_a_namespace_that_is_not_there(
    run: Run, server: FakeServer, command: tuple[str, ...]
) -> None:
    code, out, err = run(*command, "-n", "demo", "--url", server.url)
    assert (code, out) == (cli.OK, "") and "match in namespace 'demo'" in err
    code, out, err = run(*command, "-n", "dmeo", "--url", server.url)
    assert (code, out) == (cli.OK, "")
    assert err == "no namespace 'dmeo'; did you mean 'demo'? namespaces: default, demo, other\n"
    code, out, err = run(*command, "-n", "zzz", "--url", server.url, "--json")
    assert code == cli.OK and json.loads(out)
    assert err == "no namespace 'zzz'; namespaces: default, demo, other\n"


def test_a_time_is_checked_before_it_is_sent(run: Run, server: FakeServer) -> None:
    for command in (("search", "x"), ("ask", "x"), ("facts", "x"), ("places", "macros")):
        code, out, err = run(*command, "--at", "yesterday", "--url", server.url)
        assert (code, out) == (cli.USAGE, "") and "ISO 8601" in err
    assert not server.requests
    run("search", "x", "--at", "2016-06-01", "--history", "--url", server.url)
    assert server.requests[0][2]["at"] == "2016-06-01" and server.requests[0][2]["history"] is True
    run("ask", "x", "--at", "1464739200", "--url", server.url)
    [asked] = [body for _, path, body in server.requests if path == "/v1/chat/completions"]
    assert asked["memory"] == {"namespace": "default", "at": "1464739200"}
    run("search", "x", "--url", server.url)
    assert not {"at", "history"} & server.requests[-2][2].keys()


@pytest.mark.parametrize(
    ("held", "says"),
    [
        ({"valid_from": 0.0, "valid_to": None}, "since 1970-01-01"),
        ({"valid_from": 0.0, "valid_to": 86400.0}, "1970-01-01 to 1970-01-02"),
        ({"kind": "relational", "time": 60.0}, "since 1970-01-01 00:01"),
        (
            {"kind": "relational", "time": 60.0, "valid_from": 0, "valid_to": 3600},
            "1970-01-01 to 1970-01-01 01:00",
        ),
        ({"kind": "episodic", "time": -62135596800.0}, "0001-01-01"),
        ({"kind": "spatial", "time": 253402300799.0}, "9999-12-31 23:59"),
    ],
)
def test_when_something_holds(held: dict[str, Any], says: str) -> None:
    assert shown.when(held) == says


def test_the_servers_refusal_comes_through_as_it_is(run: Run, server: FakeServer) -> None:
    code, out, err = run("ask", "hi", "--mode", "full", "--url", server.url)
    assert (code, out, err) == (cli.USAGE, "", "sharpwave: memory.mode = 'full': too long\n")


def test_status_shows_nested_values_by_name(run: Run, server: FakeServer) -> None:
    code, out, _ = run("status", "--url", server.url)
    assert code == cli.OK
    assert {"ready.store.memories", "ready.store.shards.0.seq"} <= {
        line.split()[0] for line in out.splitlines()
    }


@pytest.mark.parametrize(
    "arguments",
    [(), ("--all", "--id", "a"), ("--filter", "{"), ("--filter", '{"field": "kind"}', "--dry-run")],
)
def test_forget_wants_exactly_one_valid_selection(
    run: Run, server: FakeServer, arguments: tuple[str, ...]
) -> None:
    assert run("forget", *arguments, "--url", server.url, "--force")[0] == cli.USAGE
    assert not any(path == "/v1/memories/forget" for _, path, _ in server.requests)


def test_forget_erases_only_when_told_twice(
    run: Run, server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.memories = {
        name: {"id": name, "kind": kind} for name, kind in [("a", "episodic"), ("b", "spatial")]
    }
    only_spatial = json.dumps({"field": "kind", "op": "eq", "value": "spatial"})
    assert run("forget", "--filter", only_spatial, "--dry-run", "--url", server.url)[:2] == (cli.OK, "b\n")
    code, _, err = run("forget", "--all", "--url", server.url)  # no terminal to ask on
    assert code == cli.USAGE and "--force" in err
    assert len(server.memories) == 2
    code, out, _ = run("forget", "--id", "a", "--force", "--json", "--url", server.url)
    assert code == cli.OK
    assert json.loads(out)["forgotten"] == ["a"]
    assert list(server.memories) == ["b"]


@pytest.mark.parametrize(
    ("job_code", "expected"),
    [(0, cli.OK), (1, cli.FAILED), (2, cli.USAGE), (3, cli.PARTIAL), (137, cli.FAILED)],
)
def test_a_job_gets_absolute_paths_and_its_code_comes_back(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job_code: int, expected: int
) -> None:
    submitted: list[list[str]] = []

    def submit(instance: Instance, job: str, arguments: list[str], **_: object) -> int:
        submitted.append([job, *arguments])
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "report.json").write_text('{"n": 1}')
        return job_code

    monkeypatch.setattr(jobs, "submit", submit)
    found = Instance(store=str(tmp_path / "store"), config_hash="", model="")
    monkeypatch.setattr(jobs, "running", lambda store: found)
    (tmp_path / "talk.json").write_text("{}")
    (tmp_path / "more.yaml").touch()
    options = ("--out", "out", "--set", "score.actors=2", "--config", "more.yaml", "--json")
    code, out, err = run("score", "--conversation", "talk.json", *options)
    assert code == expected
    assert json.loads(out) == {"n": 1}
    assert (f"exit code {job_code}" in err) == (expected == cli.FAILED)
    (arguments,) = submitted
    assert arguments[0] == "score"
    given = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    assert given == {
        "--namespace": "default",
        "--out": str(tmp_path / "out"),
        "--model": "base",
        "--conversation": str(tmp_path / "talk.json"),
        "--config": str(tmp_path / "more.yaml"),
        "--set": "score.actors=2",
    }
