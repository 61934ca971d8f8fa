"""An encrypted instance as a user runs it: taught, asked, its keys rotated, a namespace forgotten."""

import json
import time

import pytest

from common import config as configs
from jobs import cli
from jobs.instance import instance as instances

pytestmark = pytest.mark.slow
CANARY = "Ada hid the brass key under the blue tile."


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sealed")
    return folder / "store", folder / "master.key"


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments, code=cli.OK):
        monkeypatch.setattr("sys.argv", ["sharpwave", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        assert int(caught.value.code or 0) == code, err
        return json.loads(out) if "--json" in arguments else out

    return call


def test_taught_rotated_forgotten_and_nothing_is_readable_anywhere(run, running, tmp_path):
    store, key = running
    run("keys", "new", key)
    given = {"store.dir": str(store), "serve.port": 0, "store.master_key": f"file:{key}", "store.shards": 2}
    where = ("--store", store, "--json")
    instances.up(configs.load(overrides=given))
    try:
        for namespace, text in (("acme", CANARY), ("other", "Bo keeps bees on the roof.")):
            file = tmp_path / f"{namespace}.jsonl"
            file.write_text(json.dumps({"id": f"{namespace}-1", "text": text, "pin": True}) + "\n")
            assert run("teach", file, "-n", namespace, *where)["stored"] == 1
        run("turns", "push", "talk", CANARY, "-n", "acme", *where)
        run("ask", "Where is the brass key?", "-n", "acme", "--max-tokens", 4, *where)
        wait_for(lambda: [*(store / "blocks").rglob("*.safetensors")])  # encoded in the background
        run("snapshot", *where)
        sql = ("sql", "SELECT text FROM memories WHERE namespace = 'acme'")
        assert run(*sql, *where)["rows"] == [[CANARY]]
        assert files_with(CANARY.encode(), store) == []

        found = run("probe", CANARY, *where, code=cli.BROKEN)["places"]
        places = {place["place"] for place in found if place["found"]}
        assert {"sealed files", "log", "memories", "turns"} <= places
        assert not any(place["unchecked"] for place in found)
        sealed = next(place for place in found if place["place"] == "sealed files")["found"]
        assert {each["where"].split("/")[0] for each in sealed} == {"shards", "blocks"}

        assert run("keys", "rotate", "-n", "acme", *where)["rotated"]
        assert run("get", "acme-1", "-n", "acme", *where)["text"] == CANARY
        assert run("verify", *where)["intact"]

        receipt = run("forget", "--all", "--force", "-n", "acme", *where)
        assert receipt["keys_destroyed"] and receipt["scrubbed"] and receipt["kv_blocks"] >= 1
        assert run("probe", CANARY, "--vectors", "--fragment", 16, *where)["clean"]
        assert run(*sql, *where)["rows"] == []
        assert run("get", "other-1", "-n", "other", *where)["text"].startswith("Bo keeps bees")
    finally:
        instances.down(store)
    next_key = tmp_path / "next.key"
    run("keys", "new", next_key)
    assert run("keys", "master", key, next_key, *where)["wrapped"] > 0
    instances.up(configs.load(overrides={**given, "store.master_key": f"file:{next_key}"}))
    try:
        assert run("get", "other-1", "-n", "other", *where)["text"].startswith("Bo keeps bees")
        assert run("probe", CANARY, *where)["clean"]
    finally:
        instances.down(store)


def wait_for(found, deadline_s=120.0):
    end = time.monotonic() + deadline_s
    while not found():
        assert time.monotonic() < end
        time.sleep(0.5)


def files_with(needle, folder):
    return [file for file in folder.rglob("*") if file.is_file() and needle in file.read_bytes()]
