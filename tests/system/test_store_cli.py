"""The commands of the stores on a running instance: stdout, exit codes, JSON."""

import json
import re

import pytest

from jobs import cli
from tests.support.transcripts import format_transcript

COMMANDS = (
    "search list get history update weakest export import facts places turns lines seal verify snapshot probe sql "
    "reshard keys restart-shard"
).split()


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """`run("get", "m")` -> (exit code, stdout, stderr), in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("SHARPWAVE_URL", "SHARPWAVE_API_KEY", "SHARPWAVE_STORE__DIR"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["sharpwave", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return int(caught.value.code or 0), out, err

    return call


@pytest.fixture
def ask(run, instance):
    """`ask("facts", ..., namespace="x")` -> the JSON document of a command that must succeed."""

    def call(command, *arguments, namespace=None, code=cli.OK):
        where = ("--namespace", namespace) if namespace else ()
        found, out, err = run(command, *arguments, *where, "--url", instance.url, "--json")
        assert found == code, err
        return json.loads(out)

    return call


@pytest.fixture
def remember(http):
    def call(namespace, *memories):
        answer = http.post("/v1/memories", json={"namespace": namespace, "memories": [*memories]})
        assert answer.status_code == 200, answer.text

    return call


@pytest.mark.parametrize("command", COMMANDS)
def test_help_leads_with_examples(run, command):
    code, out, _ = run(command, "--help")
    assert code == cli.OK
    assert out.index(f"  sharpwave {command}") < out.index("Options:")


@pytest.mark.parametrize("command", sorted({*COMMANDS} - {"sql"}))
def test_without_an_instance_the_message_says_how_to_start_one(run, command, tmp_path):
    (tmp_path / "f.jsonl").touch()
    arguments = {
        **dict.fromkeys("search get history probe".split(), ("x",)),
        "update": ("x", "--text", "y"),
        "export": ("f.jsonl",),
        "import": ("f.jsonl",),
        "places": ("macros",),
        "turns": ("peek", "c"),
        "lines": ("get", "k"),
        "reshard": ("--shards", 2),
        "restart-shard": (0,),
        "keys": ("rotate",),
    }
    code, out, err = run(command, *arguments.get(command, ()))
    assert (code, out) == (cli.FAILED, "") and "sharpwave up" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("search",),
        ("search", "x", "--filter", "{"),
        ("list", "--kind", "olfactory"),
        ("update", "x", "--fields", "[1]"),
        ("export", "file.csv"),
        ("import", "absent.jsonl"),
        ("places", "teleport"),
        ("turns", "push", "c"),
        ("turns", "peek", "c", "text"),
        ("turns", "peek", "c", "--file", "absent.txt"),
        ("facts", "--where", "?x lives_in"),
        ("keys", "new"),
        ("keys", "rotate", "a.key"),
        ("keys", "master", "old.key"),
        ("keys", "master", "absent.key", "absent.key"),
        ("facts", "--where", "?x 'lives_in Lisbon"),
        ("lines", "put", "k"),
        ("lines", "get", "k", "v"),
        ("probe",),
    ],
)
def test_wrong_usage_is_2(run, instance, arguments):
    code, out, err = run(*arguments, "--url", instance.url)
    assert (code, out) == (cli.USAGE, "") and "sharpwave" in err


def test_memories_are_found_listed_and_updated(run, ask, remember, instance):
    space = "cli-memories"
    remember(space, {"id": "m", "text": "Ada lives in Lisbon."}, {"id": "n", "text": "Bo bakes bread."})
    assert ask("search", "bread", "-k", 1, namespace=space)["results"][0]["memory"]["id"] == "n"
    assert ask("search", "bakes", "--complete", namespace=space)["results"][0]["memory"]["id"] == "n"
    assert [m["id"] for m in ask("list", "--limit", 1, namespace=space)["memories"]] == ["m"]
    first = ask("get", "m", namespace=space)["statistics"]["generation"]
    ask("update", "m", "--text", "Ada lives in Porto.", namespace=space)
    assert len(ask("history", "m", namespace=space)["versions"]) == 2
    late = ask("update", "m", "--text", "x", "--generation", first, namespace=space, code=cli.CONFLICT)
    assert late["error"]["code"] == "stale_generation"
    assert ask("get", "nope", namespace=space, code=cli.FAILED)["error"]["type"] == "not_found_error"
    assert len(ask("weakest", "--number", 1, namespace=space)["memories"]) == 1
    code, out, _ = run("list", "-n", space, "--url", instance.url)
    assert code == cli.OK and [line.split()[:2] for line in out.splitlines()] == [
        ["m", "episodic"],
        ["n", "episodic"],
    ]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_namespace_moves_as_a_file(run, ask, remember, instance, tmp_path, form):
    remember("cli-out", {"id": "m", "text": "Ada moved."})
    file = tmp_path / f"acme.{form}"
    assert ask("export", file, namespace="cli-out")["bytes"] == file.stat().st_size
    assert ask("import", file, namespace=f"cli-in-{form}")["new"] == 1
    code, out, _ = run("import", file, "-n", f"cli-in-{form}", "--url", instance.url)
    assert (code, out) == (cli.OK, "0 new of 1, 1 were there already\n")
    assert [path.name for path in tmp_path.iterdir()] == [file.name]  # no part is left


def test_facts_and_places_are_asked(run, ask, remember, instance):
    space = "cli-graphs"
    remember(
        space,
        {"kind": "relational", "id": "f", "subject": "Ada", "relation": "lives_in", "object": "Lisbon"},
        {"kind": "spatial", "place": "library", "relation": "left_of", "other": "cafe"},
    )
    assert [fact["id"] for fact in ask("facts", "--subject", "Ada", namespace=space)["facts"]] == ["f"]
    assert [fact["id"] for fact in ask("facts", "Where is Ada?", namespace=space)["facts"]] == ["f"]
    assert ask("facts", "--source", "Ada", "--target", "Mars", namespace=space)["found"] is False
    assert ask("facts", "x", "--subject", "Ada", namespace=space, code=cli.USAGE)["error"]["param"] == "query"
    assert ask("places", "relation", "library", "cafe", namespace=space)["result"]["relation"] == "west_of"
    code, out, _ = run("facts", "--subject", "Ada", "-n", space, "--url", instance.url)
    assert code == cli.OK and re.fullmatch(r"0\.90  Ada lives_in Lisbon  f  since \d{4}-\d\d-\d\d.*\n", out)
    code, out, err = run("facts", "--subject", "Ada", "-n", "cli-garphs", "--url", instance.url)
    assert (code, out) == (cli.OK, "") and "did you mean 'cli-graphs'" in err
    code, _, err = run("get", "f", "-n", "cli-garphs", "--url", instance.url)
    assert code == cli.FAILED and "did you mean 'cli-graphs'" in err
    code, out, _ = run("places", "position", "nowhere", "-n", space, "--url", instance.url)
    assert (code, out) == (cli.OK, "unknown\n")


def test_turns_and_lines(run, ask, instance):
    space = "cli-lines"
    name = "team/what? #1"
    for text in ("Hello.", "I moved."):
        ask("turns", "push", name, text, namespace=space)
    assert len(ask("turns", "peek", name, "--number", 9, namespace=space)["turns"]) == 2
    assert ask("turns", "pop", name, namespace=space)["turn"]["text"] == "I moved."
    assert ask("turns", "rewind", name, namespace=space)["removed"] == 1
    assert ask("turns", "forget", name, namespace=space)["scrubbed"]

    first = ask("lines", "race", "drink", "Ada drinks tea.", "Ada drinks water.", namespace=space)
    assert first["status"] == "new"
    ask("lines", "race", "drink", "Ada drinks tea.", "--generation", 0, namespace=space, code=cli.CONFLICT)
    ask("lines", "put", "drink", "Ada drinks coffee.", namespace=space)
    assert ask("lines", "get", "drink", namespace=space)["value"] == "Ada drinks coffee."
    assert ask("lines", "query", "coffee", namespace=space)["lines"][0]["key"] == "drink"
    assert len(ask("lines", "bias", "coffee", namespace=space)["vector"]) == 384


def test_sql_has_a_running_instance_write_fresh_snapshots(run, remember, instance):
    def texts(*options):
        sql = ("sql", "SELECT text FROM memories ORDER BY text", "-n", "cli-sql", "--json", *options)
        code, out, err = run(*sql, "--store", instance.store)
        assert code == cli.OK, err
        return [row[0] for row in json.loads(out)["rows"]]

    remember("cli-sql", {"text": "Ada moved to Lisbon."})
    assert texts() == ["Ada moved to Lisbon."]
    remember("cli-sql", {"text": "Bo keeps bees."})
    assert texts("--as-is") == ["Ada moved to Lisbon."]
    assert texts() == ["Ada moved to Lisbon.", "Bo keeps bees."]


def test_a_transcript_is_pushed_as_its_turns(ask, run, tmp_path):
    said = [("user", "where is it?\nuser: he said so"), ("assistant", "see http://example.org // moved")]
    file = tmp_path / "talk.txt"
    file.write_text(format_transcript([{"role": role, "text": text} for role, text in said]))
    assert ask("turns", "push", "t1", "--file", file, namespace="transcripts")["pushed"] == 2
    found = ask("turns", "peek", "t1", "--number", 9, namespace="transcripts")["turns"]
    assert [(turn["role"], turn["text"]) for turn in found] == said
    for content in (b"", b"no turn", b"\xff"):
        file.write_bytes(content)
        code, out, err = run("turns", "push", "t1", "--file", file)
        assert (code, out) == (cli.USAGE, "") and ("transcript" in err or "--file" in err)


def test_facts_are_joined_by_their_variables(ask, remember, run, instance):
    facts = [("Ada", "lives_in", "Lisbon"), ("Ada", "works_at", "Acme Ltd"), ("Bo", "lives_in", "Lisbon")]
    names = ("subject", "relation", "object")
    remember("joins", *({"kind": "relational", **dict(zip(names, fact, strict=True))} for fact in facts))
    patterns = ("--where", "?x lives_in Lisbon", "--where", "?x works_at 'Acme Ltd'")
    assert [each["values"] for each in ask("facts", *patterns, namespace="joins")["solutions"]] == [
        {"?x": "Ada"}
    ]
    _, out, _ = run("facts", *patterns, "--namespace", "joins", "--url", instance.url)
    assert out == "?x = Ada\n"


def test_the_chain_is_sealed_verified_and_probed(run, ask, remember, instance):
    remember("cli-chain", {"text": "Ada wrote a poem about kingfishers."})
    assert len(ask("seal")["shards"]) == 2
    assert ask("verify")["intact"]
    ask("snapshot")
    assert not ask("probe", "Ada wrote a poem about kingfishers.", code=cli.BROKEN)["clean"]
    code, out, _ = run("probe", "Nobody ever wrote this sentence.", "--url", instance.url)
    assert (code, out) == (cli.OK, "not found anywhere\n")


def test_a_shard_is_started_anew(run, ask, remember, instance):
    remember("restarted", {"id": "kept", "text": "Ada moved to Lisbon."})
    before = ask("status")["ready"]["store"]["shards"]
    told = ask("restart-shard", 1)
    assert (told["shard"], told["was"], told["failure"]) == (1, None, None)
    assert (told["seq"], told["epoch"]) == (before[1]["seq"], before[1]["epoch"] + 1)
    assert ask("get", "kept", namespace="restarted")["text"] == "Ada moved to Lisbon."
    assert ask("status")["ready"]["store"]["shards"][0]["epoch"] == before[0]["epoch"]
    code, _, err = run("restart-shard", 7, "--url", instance.url)
    assert code == cli.USAGE and "must be 0 to 1" in err
