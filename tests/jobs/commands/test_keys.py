"""Keys by command, on an encrypted store that nobody runs; and what is read of it with its keys."""

import json
import os
import stat
from pathlib import Path

import pytest

from common.config import Config, StoreConfig
from common.errors import InvalidInput
from common.files import write_bytes, write_json
from jobs import cli
from stores.crypto.keyrings import keyring_folders, read_keyrings
from stores.crypto.master_key import parse_master
from stores.erasure.disk_probe import Canaries, probe_folder
from stores.log.open import block_keyring
from stores.shard.shard import Shard
from stores.snapshots.files import CONTEXT
from stores.writes.batch import MemoryBatch
from tests.support.stores import DIM, NOW, memory, unit

CANARY = "the canary sings in Lisbon"


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["sharpwave", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err and "sharpwave-master" not in out + err
        return int(caught.value.code or 0), out, err

    return call


@pytest.fixture(params=["beside the logs", "apart"])
def store(request, run, tmp_path):
    """A stopped store of two shards with snapshots and a sealed KV block, as `up` leaves it."""
    run("keys", "new", "master.key")
    folder = tmp_path / "store"
    config = StoreConfig(
        dir=str(folder),
        master_key=f"file:{tmp_path / 'master.key'}",
        keys_dir=str(tmp_path / "keys") if request.param == "apart" else None,
        snapshot_every=1,
    )
    write_bytes(folder / "config.yaml", json.dumps(Config(store=config).model_dump(mode="json")).encode())
    write_json(folder / "shards" / "layout.json", {"version": 2, "generation": 1, "shards": 2, "spread": 1})
    for number, namespace in enumerate(("acme", "other")):
        shard = opened(config, number)
        told = memory(f"m{number}", namespace=namespace, text=f"{CANARY} {number}")
        shard.memories.put(MemoryBatch.of([(told, unit(number))]), op_id="1", now=NOW)
        shard.conversations.push(namespace, "talk", [{"role": "user", "text": CANARY}], op_id="2", now=NOW)
        shard.close()
    block = block_keyring(config).encrypt_bytes("acme", CANARY.encode())
    write_bytes(folder / "blocks" / "a" / "b" / "c.safetensors", block)
    return config


def opened(config, number):
    place = f"{config.dir}/shards/{number:04d}"
    return Shard(Path(place), number=number, dim=DIM, config=config)


def probed(config, *texts):
    """Of the store's files: `(where, unchecked)`."""
    rings = read_keyrings(config)
    report = probe_folder(
        Path(config.dir),
        Canaries(texts=texts),
        decrypt=lambda data: rings.decrypt_any(data, CONTEXT),
    )
    return (
        sorted(found["where"] for row in report for found in row["found"]),
        [each for row in report for each in row["unchecked"]],
    )


def test_a_master_key_is_made_once_and_for_its_owner(run, tmp_path):
    code, out, _ = run("keys", "new", "master.key", "--json")
    file = tmp_path / "master.key"
    assert code == cli.OK and json.loads(out)["setting"] == f"file:{file}"
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    first = file.read_bytes()
    assert len(parse_master(first, "it").key) == 32
    code, out, err = run("keys", "new", "master.key")
    assert (code, out) == (cli.CONFLICT, "") and "exists" in err
    assert file.read_bytes() == first


def test_a_stopped_store_gets_another_master_key(run, store, tmp_path):
    assert run("keys", "new", "next.key")[0] == cli.OK
    arguments = ("keys", "master", "master.key", "next.key", "--store", store.dir)
    code, out, _ = run(*arguments, "--json")
    assert code == cli.OK and json.loads(out)["wrapped"] == 5  # of each shard two, of the blocks one
    assert json.loads(run(*arguments, "--json")[1])["wrapped"] == 0
    with pytest.raises(InvalidInput, match="master key"):
        opened(store, 0)
    fresh = store.model_copy(update={"master_key": f"file:{tmp_path / 'next.key'}"})
    for number, namespace in enumerate(("acme", "other")):
        shard = opened(fresh, number)
        assert shard.memories.get(namespace, f"m{number}")["text"] == f"{CANARY} {number}"
        shard.close()
    assert CANARY.encode() == block_keyring(fresh).decrypt_bytes("acme", block_of(fresh))
    assert run("keys", "master", "master.key", "next.key", "--store", tmp_path / "empty")[0] == cli.USAGE


def block_of(config):
    return (Path(config.dir) / "blocks" / "a" / "b" / "c.safetensors").read_bytes()


def test_sql_reads_sealed_snapshots_with_the_stores_own_key(run, store, tmp_path):
    sql = ("sql", "SELECT id, text FROM memories ORDER BY id", "--json", "--store", store.dir)
    code, out, err = run(*sql)
    assert code == cli.OK, err
    assert json.loads(out)["rows"] == [["m0", f"{CANARY} 0"], ["m1", f"{CANARY} 1"]]
    (tmp_path / "master.key").rename(tmp_path / "gone.key")
    code, _, err = run(*sql)
    assert code == cli.USAGE and "store.master_key" in err


def test_a_forgotten_namespace_is_readable_nowhere(store):
    """Found with the keys while it is there, so that not finding it says something; then nothing is left."""
    assert len(keyring_folders(store)) == 3
    found, unchecked = probed(store, CANARY)
    assert unchecked == [] and [where for where in found if where.startswith("blocks")]
    assert {where.split("/")[1] for where in found if "snapshots" in where} == {"0000", "0001"}
    assert all("manifest" in where or "blocks" in where for where in found)  # nothing in clear
    shard = opened(store, 0)
    receipt = shard.erasure.forget("acme", everything=True, op_id="f", now=NOW)
    assert receipt["keys_destroyed"] and receipt["scrubbed"]
    assert not any(
        row["found"] or row["unchecked"] for row in shard.erasure.probe(Canaries(texts=[CANARY, "acme"]))
    )
    shard.close()
    block_keyring(store).destroy("acme")
    found, unchecked = probed(store, f"{CANARY} 0", "acme")
    assert (found, unchecked) == ([], [])
    found, _ = probed(store, CANARY)
    assert {where.split("/")[1] for where in found} == {"0001"}  # the other namespace lives on


def test_a_ring_that_is_missing_is_told_as_unchecked(store, tmp_path):
    for folder in keyring_folders(store):
        if "0000" in str(folder):
            (folder / "ring.json").unlink()
    _, unchecked = probed(store, CANARY)
    assert unchecked and all("0000" in each and "no keyring" in each for each in unchecked)
