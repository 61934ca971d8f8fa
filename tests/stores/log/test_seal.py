"""The chain of anchors, its options, seals, and stores of the previous format."""

import gzip
import json
from hashlib import blake2b
from pathlib import Path

import lmdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import StoreConfig
from common.errors import Conflict, InvalidInput, StoreCorrupt
from stores.log import record as records
from stores.log import seal as seals
from stores.log.open import chain_of
from stores.log.record import Chain, Op
from stores.shard.shard import Shard
from stores.writes.batch import MemoryBatch
from tests.support.stores import NOW, memory, open_shard, unit

DATA = Path(__file__).resolve().parents[2] / "data"
KEY = "a secret key of 32 bytes, or so.."


def put(shard, *names, **fields):
    items = [(memory(name, **fields), unit(i)) for i, name in enumerate(names)]
    return shard.memories.put(MemoryBatch.of(items), op_id=f"put-{names}", now=NOW)


def rewrite(shard, change):
    """Let `change(txn, log database)` edit the closed shard's log; returns the shard opened again."""
    shard.close()
    with lmdb.open(str(shard.core.log.path), max_dbs=4, map_size=64 << 20, lib_version=0) as env:
        database = env.open_db(b"log")
        with env.begin(write=True) as txn:
            change(txn, database)
    return Shard(shard.core.log.path, number=0, dim=shard.dim, config=shard.config)


@pytest.fixture(params=["plain", "wide", "keyed"])
def options(request, monkeypatch):
    monkeypatch.setenv("CHAIN_KEY", KEY)
    return {
        "plain": {},
        "wide": {"anchor_bits": 256},
        "keyed": {"anchor_bits": 256, "chain_key": "env:CHAIN_KEY"},
    }[request.param]


# Options


def test_anchors_follow_the_options_and_verify_after_erasure(tmp_path, options):
    shard = open_shard(tmp_path / "shard", **options)
    answers = put(shard, *(f"m{i}" for i in range(6)))
    key, size = (KEY.encode() if "chain_key" in options else b""), options.get("anchor_bits", 64) // 8
    anchor = bytes(size)
    for record, answer in zip(shard.core.log.records(), answers, strict=True):
        anchor = blake2b(anchor + record.digest, digest_size=size, key=key).digest()
        assert record.anchor == anchor and answer["anchor"] == anchor.hex()
    shard.erasure.forget("acme", ids=["m1", "m4"], op_id="f", now=NOW)
    for _ in range(2):
        assert shard.chain.verify() is None and len(shard.memories.list("acme")) == 4
        shard.close()
        shard = open_shard(tmp_path / "shard", **options)
    disk = b"".join(file.read_bytes() for file in shard.core.log.path.rglob("*") if file.is_file())
    assert KEY.encode() not in disk
    shard.close()


def test_the_options_are_part_of_the_logs_identity(tmp_path, monkeypatch, options):
    open_shard(tmp_path / "shard", **options).close()
    monkeypatch.setenv("OTHER", KEY[::-1])
    others = [{}, {"anchor_bits": 256}, {"anchor_bits": 256, "chain_key": "env:OTHER"}]
    for other in others:
        if other != options:
            with pytest.raises(Conflict, match="anchor_bits") as caught:
                open_shard(tmp_path / "shard", **other)
            assert KEY not in caught.value.message and KEY[::-1] not in caught.value.message
    open_shard(tmp_path / "shard", **options).close()


def test_without_the_key_nobody_makes_a_chain_that_verifies(tmp_path, monkeypatch):
    """Whoever may write to the disk forges a record and all anchors behind it: the plain chain follows,
    the keyed one does not."""
    monkeypatch.setenv("CHAIN_KEY", KEY)

    def forge(txn, database):
        previous = Chain(bits=256).genesis
        for seq in (1, 2, 3):
            key = seq.to_bytes(8, "big")
            old = records.decode(txn.get(key, db=database), seq)
            body = old.body.replace(b"m2", b"mX")
            new = records.make(
                Op.PUT,
                **{name: getattr(old, name) for name in ("seq", "epoch", "time", "op_id", "vector")},
                body=body,
                previous=previous,
                chain=Chain(bits=256),
            )
            txn.put(key, records.encode(new), db=database)
            previous = new.anchor
        meta = json.loads(records.check_crc(txn.get(b"meta"), "meta"))
        txn.put(b"meta", records.add_crc(json.dumps({**meta, "anchor": previous.hex()}).encode()))

    found = {}
    for name, chain_key in (("plain", None), ("keyed", "env:CHAIN_KEY")):
        shard = open_shard(tmp_path / name, anchor_bits=256, chain_key=chain_key)
        put(shard, "m1", "m2", "m3")
        sealed = shard.chain.head()
        shard = rewrite(shard, forge)
        found[name] = shard.chain.verify()
        assert shard.chain.verify(sealed)["reason"] == (
            "not the sealed anchor" if name == "plain" else found[name]["reason"]
        )
        shard.close()
    assert found["plain"] is None and found["keyed"]["seq"] == 1


def test_a_key_is_read_from_where_the_configuration_says(tmp_path, monkeypatch):
    file = tmp_path / "key"
    file.write_bytes(KEY.encode() + b"\n")
    monkeypatch.setenv("CHAIN_KEY", KEY)
    found = [chain_of(StoreConfig(chain_key=where)) for where in (f"file:{file}", "env:CHAIN_KEY")]
    assert {chain.key for chain in found} == {KEY.encode()} and KEY not in repr(found)
    monkeypatch.setenv("SHORT", "short and secret"[:15])
    for bad in ("env:ABSENT", "env:SHORT", f"file:{tmp_path / 'absent'}", KEY):
        with pytest.raises(InvalidInput, match="chain_key") as caught:
            chain_of(StoreConfig(chain_key=bad))
        assert "secret" not in caught.value.message


# Which operation is broken


def test_verify_names_the_operation_of_the_first_broken_record(tmp_path):
    shard = open_shard(tmp_path / "shard")
    put(shard, "m1", "m2")
    shard.memories.touch("acme", ["m1"], op_id="touch-1", now=NOW)

    def swap_time(txn, database):
        key = (3).to_bytes(8, "big")
        raw = bytearray(txn.get(key, db=database))
        raw[25] ^= 1  # within the time
        txn.put(key, records.add_crc(bytes(raw[4:])), db=database)

    shard = rewrite(shard, swap_time)
    assert shard.chain.verify() == {
        "seq": 3,
        "op": "touch",
        "op_id": "touch-1",
        "reason": "the content does not match its digest",
    }
    shard.close()


def test_a_damaged_record_says_what_can_still_be_read_of_it(tmp_path):
    shard = open_shard(tmp_path / "shard")
    put(shard, "m1", text="needle " * 500)
    file = tmp_path / "shard" / "data.mdb"
    file.write_bytes(file.read_bytes().replace(b"needle", b"noodle"))
    fault = shard.chain.verify()
    assert (fault["seq"], fault["op"], fault["op_id"]) == (1, "put", "put-('m1',)")
    assert "checksum" in fault["reason"]
    shard.close()
    with pytest.raises(StoreCorrupt, match="record 1 ") as caught:
        open_shard(tmp_path / "shard")
    assert caught.value.fault == fault


# Seals


@given(st.binary(max_size=40))
def test_the_checksum_is_fnv_1a(data):
    value = 14695981039346656037
    for byte in data:
        value = ((value ^ byte) * 1099511628211) % 2**64
    assert seals.fnv1a(data) == value
    assert seals.fnv1a(b"") == 0xCBF29CE484222325 and seals.fnv1a(b"foobar") == 0x85944171F73967E8


def test_a_seal_holds_until_the_log_is_another(tmp_path):
    shard = open_shard(tmp_path / "shard")
    empty = seals.seal(tmp_path, [shard.chain.head()], now=NOW)
    assert shard.chain.verify(empty["shards"][0]) is None and seals.read_seal(tmp_path / "nowhere") is None
    put(shard, "m1", "m2", "m3")
    sealed = seals.seal(tmp_path, [{**shard.chain.head(), "more": 1}], now=NOW)
    assert seals.read_seal(tmp_path) == sealed == json.loads((tmp_path / "seal.json").read_text())
    assert sealed["shards"] == [{"shard": 0, "seq": 3, "anchor": shard.counts()["anchor"]}]
    put(shard, "m4")
    shard.erasure.forget("acme", ids=["m2"], op_id="f", now=NOW)
    assert shard.chain.verify(sealed["shards"][0]) is None, "writes and erasures leave it valid"
    fault = shard.chain.verify({**sealed["shards"][0], "anchor": "00" * 8})
    assert (fault["seq"], fault["op"], fault["op_id"]) == (3, "put", "put-('m1', 'm2', 'm3')")
    shard.close()
    other = open_shard(tmp_path / "other")
    put(other, "m1")
    assert other.chain.verify(sealed["shards"][0]) == {
        "seq": 2,
        "op": None,
        "op_id": None,
        "reason": "sealed up to record 3, but the log ends at 1",
    }
    other.close()


@pytest.mark.parametrize("place", range(0, 200, 9))
def test_a_flipped_bit_in_a_seal_is_found(tmp_path, place):
    shards = [{"shard": n, "seq": n * 7, "anchor": f"{n:016x}"} for n in (1, 0)]
    assert [s["shard"] for s in seals.seal(tmp_path, shards, now=NOW)["shards"]] == [0, 1]
    raw = bytearray((tmp_path / "seal.json").read_bytes())
    raw[place % len(raw)] ^= 1
    (tmp_path / "seal.json").write_bytes(raw)
    try:
        found = seals.read_seal(tmp_path)
    except StoreCorrupt:
        return
    raw[place % len(raw)] ^= 1
    assert found == json.loads(raw), "only white space may differ"


# The previous format


@pytest.fixture
def old_store(tmp_path):
    """Made by the code of format 1: four memories and a fact, touched, scored, one forgotten."""
    (tmp_path / "shard").mkdir()
    (tmp_path / "shard" / "data.mdb").write_bytes(gzip.decompress((DATA / "format1.mdb.gz").read_bytes()))
    return tmp_path / "shard"


def test_a_store_of_the_previous_format_opens(old_store):
    for epoch in (2, 3):
        shard = open_shard(old_store)
        assert [m["id"] for m in shard.memories.list("acme")][:4] == ["m0", "m1", "m2", "fact"]
        m2 = shard.memories.get("acme", "m2")
        assert to_items(m2["statistics"]) >= to_items({"usage": 1, "salience": 1.5, "generation": 3})
        assert shard.memories.get("acme", "fact")["object"] == "Lisbon"
        assert shard.search.find("acme", unit(2), 1)[0]["memory"]["id"] == "m2"
        counts = shard.counts()
        assert (counts["epoch"], counts["gate_attempts"], counts["duplicates"]) == (epoch, 3 + epoch, 0)
        if epoch == 2:  # what was anchored, sealed and answered before still holds
            assert (counts["seq"], counts["anchor"]) == (8, "7ac9ac7a1eff8c8a")
        assert shard.chain.verify({"seq": 8, "anchor": "7ac9ac7a1eff8c8a"}) is None
        first = [(memory(f"m{i}", time=i), unit(i)) for i in range(4)]
        again = shard.memories.put(MemoryBatch.of(first), op_id="put", now=NOW)
        assert [answer["seq"] for answer in again] == [1, 2, 3, 4], "a retry gets its first result"
        put(shard, f"new-{epoch}", text=f"written in {epoch}")
        shard.close()


def test_damage_in_a_store_of_the_previous_format_is_found(old_store):
    file = old_store / "data.mdb"
    file.write_bytes(file.read_bytes().replace(b"this is m2", b"this is m7"))
    before = file.read_bytes()
    with pytest.raises(StoreCorrupt, match="record 3 "):
        open_shard(old_store)
    assert file.read_bytes() == before and not (old_store / "scrub").exists()


def test_an_unknown_format_is_refused(tmp_path):
    shard = open_shard(tmp_path / "shard")
    put(shard, "m1")

    def later(txn, database):
        meta = json.loads(records.check_crc(txn.get(b"meta"), "meta"))
        txn.put(b"meta", records.add_crc(json.dumps({**meta, "format": 99}).encode()))

    with pytest.raises(Conflict, match="format 99"):
        rewrite(shard, later)


def to_items(found):
    return set(found.items())
