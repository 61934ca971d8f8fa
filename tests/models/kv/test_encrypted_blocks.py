import shutil
from dataclasses import replace

import pytest
import torch

from common.config import StoreConfig
from models.kv.blocks import BlockStore
from models.kv.prefix import KVBlock
from stores.crypto.master_key import new_master
from stores.erasure.disk_probe import Canaries, probe_folder
from stores.log.open import block_keyring

TEXT = "the canary sings"


def block(memory_id="m", text=TEXT):
    states = torch.arange(48, dtype=torch.float32).reshape(2, 2, 1, 3, 4)
    return KVBlock(
        memory_id=memory_id, fingerprint="fingerprint", ids=(1, 2, 3), text=text, states=states, width=3
    )


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_MASTER", new_master().text)
    return StoreConfig(dir=str(tmp_path), master_key="env:TEST_MASTER")


def opened(config, tmp_path):
    return BlockStore(tmp_path / "blocks", 1 << 20, encryptor=block_keyring(config))


def test_sealed_blocks_come_back_and_say_nothing(config, tmp_path):
    opened(config, tmp_path).put("acme", block())
    blocks = opened(config, tmp_path)  # another process, that has nothing in memory
    assert blocks.has("acme", "m", "fingerprint", [1, 2, 3])
    assert not blocks.has("acme", "m", "fingerprint", [1, 2])
    found = blocks.get("acme", "m", "fingerprint", [1, 2, 3])
    assert found.text == TEXT and found.ids == (1, 2, 3) and torch.equal(found.states, block().states)
    assert blocks.get("other", "m", "fingerprint", [1, 2, 3]) is None
    states = Canaries(texts=[TEXT, "acme"], vectors=[block().states.flatten().numpy()])
    report = probe_folder(tmp_path / "blocks", states)
    assert not any(row["found"] for row in report) and report[-1]["unchecked"]
    keyring = block_keyring(config)
    report = probe_folder(
        tmp_path / "blocks", states, decrypt=lambda piece: keyring.decrypt_any(piece, b"file")
    )
    assert {found["canary"] for found in report[-1]["found"]} == {"text 0", "vector 0"}


def test_forgetting_the_last_block_leaves_copies_unreadable(config, tmp_path):
    blocks = opened(config, tmp_path)
    blocks.put("acme", block("a"))
    blocks.put("acme", block("b"))
    blocks.put("other", block("a"))
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "blocks", copy, ignore=shutil.ignore_patterns("keys"))
    assert blocks.forget("acme", ["a"]) == 1
    assert opened(config, tmp_path).has("acme", "b", "fingerprint", [1, 2, 3])
    assert blocks.forget("acme", ["b"]) == 1
    shutil.copytree(copy, tmp_path / "blocks", dirs_exist_ok=True)
    blocks = opened(config, tmp_path)
    assert blocks.get("acme", "a", "fingerprint", [1, 2, 3]) is None, "a miss, so it is encoded anew"
    assert not blocks.has("acme", "b", "fingerprint", [1, 2, 3]) and blocks.misses == 1
    assert blocks.get("other", "a", "fingerprint", [1, 2, 3]).text == TEXT
    blocks.put("acme", block("a"))
    assert opened(config, tmp_path).get("acme", "a", "fingerprint", [1, 2, 3]).text == TEXT


def test_what_was_encoded_behind_a_forgotten_memory_goes_where_files_are_sealed_too(config, tmp_path):
    blocks = opened(config, tmp_path)
    history = [
        replace(block(id), front=front, behind=behind)
        for id, front, behind in (("a", "0", ()), ("b", "1", ("a",)), ("c", "2", ("a", "b")))
    ]
    for each in history:
        blocks.put("acme", each)
    blocks = opened(config, tmp_path)
    assert blocks.forget("acme", ["b"]) == 2
    left = [
        each.memory_id
        for each in history
        if blocks.has("acme", each.memory_id, "fingerprint", [1, 2, 3], each.front)
    ]
    assert left == ["a"]
    assert blocks.get("acme", "a", "fingerprint", [1, 2, 3], "0").behind == ()


def test_blocks_of_before_the_encryption_are_misses(config, tmp_path):
    BlockStore(tmp_path / "blocks", 1 << 20).put("acme", block())
    assert opened(config, tmp_path).get("acme", "m", "fingerprint", [1, 2, 3]) is None
    assert block_keyring(StoreConfig(dir=str(tmp_path))) is None
