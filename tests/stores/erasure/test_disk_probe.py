import base64
import gzip
import json
import os
import unicodedata
from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from common.errors import Conflict
from stores.crypto.keyring import Keyring
from stores.crypto.master_key import new_master
from stores.erasure import disk_probe
from stores.erasure.disk_probe import Canaries, probe_folder
from stores.erasure.shard_probe import probe_shard
from stores.shard.shard import Shard
from stores.view.keyed import line_id, line_memory
from stores.writes.batch import MemoryBatch
from stores.writes.keyed import candidate
from stores.writes.lookups import put_digest, request_digest
from tests.support.log_backends import BACKENDS, Backend
from tests.support.stores import NOW, axis, memory, open_shard, unit

TEXT = 'Ada\'s ca\u00e9n\u00e4ry \u6f22\u5b57 \U0001f426 lives in "Lisbon"\\now'
VECTOR = unit(7, 64)
CANARIES = Canaries(texts=["no such text anywhere", TEXT], vectors=[unit(8, 64), VECTOR])


def probe_core(core, canaries, **options):
    return probe_shard(core.log, core.view, core.view_lock, canaries, **options)


def found(report, place=None):
    return [f for row in report if place in (None, row["place"]) for f in row["found"]]


def row(report, place):
    return next(row for row in report if row["place"] == place)


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


# Every form, planted in the bytes of a file

SPELLINGS = {
    "utf-8": TEXT.encode(),
    "utf-16-le": TEXT.encode("utf-16-le"),
    "utf-16-be": TEXT.encode("utf-16-be"),
    "utf-32-le": TEXT.encode("utf-32-le"),
    "decomposed": unicodedata.normalize("NFD", TEXT).encode(),
    "json": json.dumps({"text": f"so: {TEXT}"}).encode(),
    "json, not ascii": json.dumps({"text": TEXT}, ensure_ascii=False).encode(),
    "json in json": json.dumps(json.dumps({"text": TEXT})).encode(),
    "hex": TEXT.encode().hex().encode(),
    "float32": VECTOR.tobytes(),
    "float16": VECTOR.astype("<f2").tobytes(),
    "float64": VECTOR.astype("<f8").tobytes(),
    "half a vector": VECTOR.tobytes()[: 4 * 40],
    "json numbers": json.dumps({"v": VECTOR.tolist()}).encode(),
    "json numbers, tight": json.dumps(VECTOR.tolist(), separators=(",", ":")).encode(),
    "json numbers, short": json.dumps([float(str(x)) for x in VECTOR]).encode(),
}


@pytest.mark.parametrize("form", SPELLINGS)
@pytest.mark.parametrize("before", [0, 1, 4095])
def test_every_form_is_found_in_a_file(tmp_path, form, before):
    write(tmp_path / "a" / "file", os.urandom(before) + SPELLINGS[form] + os.urandom(50))
    report = probe_folder(tmp_path, CANARIES)
    assert {f["canary"] for f in found(report)} <= {"text 1", "vector 1"} and found(report, "files")
    assert found(report)[0]["where"] == "a/file" and TEXT not in json.dumps(report, ensure_ascii=False)


@given(before=st.binary(max_size=7), after=st.binary(max_size=7), vector=st.booleans())
@settings(deadline=None, max_examples=40)
def test_base64_is_found_at_every_alignment(tmp_path_factory, before, after, vector):
    folder = tmp_path_factory.mktemp("store")
    content = VECTOR.tobytes() if vector else TEXT.encode()
    for name, encode in (("standard", base64.b64encode), ("url", base64.urlsafe_b64encode)):
        write(folder / name, encode(before + content + after))
    assert {f["where"] for f in found(probe_folder(folder, CANARIES))} == {"standard", "url"}


def test_nothing_hides_at_a_seam(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_probe, "CHUNK_BYTES", 64)
    for before in range(60, 70):
        write(tmp_path / str(before), b"x" * before + TEXT.encode())
    places = {f["where"] for f in found(probe_folder(tmp_path, CANARIES))}
    assert places == {str(before) for before in range(60, 70)}


def test_pieces_of_a_text_are_found_where_they_are_asked_for(tmp_path):
    write(tmp_path / "page", b"\0" * 100 + TEXT.encode()[5:30] + b"\0" * 100)
    assert not found(probe_folder(tmp_path, CANARIES))
    wanted = Canaries(texts=[TEXT], fragment=16)
    assert {f["form"] for f in found(probe_folder(tmp_path, wanted))} == {"16 bytes of utf-8"}


def test_a_file_name_tells_too(tmp_path):
    write(tmp_path / "ada lovelace.json", b"{}")
    assert found(probe_folder(tmp_path, Canaries(texts=["ada lovelace"])))[0]["form"] == "utf-8 in its name"


# Places whose bytes must be decoded


def plant_parquet(folder):
    table = pa.table(
        {
            "text": ["filler " * 50, TEXT] * 400,
            "vector": pa.array([unit(1, 64).tolist(), VECTOR.tolist()] * 400, pa.list_(pa.float32())),
        }
    )
    pq.write_table(table, folder / "memories.parquet", compression="zstd", write_statistics=False)
    return "snapshots", {"text 1", "vector 1"}


def plant_parquet_bytes(folder):
    table = pa.table({"vector": pa.array([VECTOR.tobytes()] * 9, pa.binary())})
    pq.write_table(table, folder / "v.parquet", compression="brotli")
    return "snapshots", {"vector 1"}


def plant_parquet_metadata(folder):
    table = pa.table({"x": [1]}).replace_schema_metadata({"note": TEXT})
    pq.write_table(table, folder / "m.parquet")
    return "snapshots", {"text 1"}


def plant_arrow(folder):
    table = pa.table({"text": [TEXT] * 50})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(str(folder / "t.arrow"), table.schema, options=options) as writer:
        writer.write_table(table)
    return "snapshots", {"text 1"}


def plant_gzip(folder):
    (folder / "log.gz").write_bytes(gzip.compress(TEXT.encode() * 9))
    return "compressed files", {"text 1"}


def plant_block(folder):
    states = {"states": np.zeros(4, np.float32)}
    save_file(states, folder / "block.safetensors", metadata={"text": TEXT, "memory": "m"})
    return "kv blocks", {"text 1"}


@pytest.mark.parametrize(
    "plant",
    [plant_parquet, plant_parquet_bytes, plant_parquet_metadata, plant_arrow, plant_gzip, plant_block],
)
def test_what_must_be_decoded_is_found(tmp_path, plant):
    place, canaries = plant(tmp_path)
    report = probe_folder(tmp_path, CANARIES)
    assert {f["canary"] for f in found(report, place)} == canaries and row(report, place)["checked"] == 1
    assert not found(probe_folder(tmp_path, Canaries(texts=["no such text"], vectors=[unit(8, 64)])))


def test_what_is_sealed_is_found_with_its_key_and_unreadable_without(tmp_path):
    keyring = Keyring(tmp_path / "keys", new_master())
    store = tmp_path / "store"
    write(store / "block.safetensors", keyring.encrypt_bytes("acme", TEXT.encode()))
    blobs = [keyring.encrypt_bytes("acme", b"filler"), keyring.encrypt_bytes("acme", VECTOR.tobytes())]
    write(store / "7" / "parts.bin", b"".join(blobs))
    parts = [{"part": "t", "at": 0, "bytes": len(blobs[0])}]
    parts.append({"part": "v", "at": len(blobs[0]), "bytes": len(blobs[1])})
    write(store / "7" / "manifest.json", json.dumps({"sealed": True, "parts": parts}).encode())

    def opened(piece):
        return keyring.decrypt_any(piece, b"file")

    report = probe_folder(store, CANARIES, decrypt=opened)
    assert {(f["canary"], f["where"]) for f in found(report, "sealed files")} == {
        ("text 1", "block.safetensors"),
        ("vector 1", "7/manifest.json part 1"),
    }
    blind = row(probe_folder(store, CANARIES), "sealed files")
    assert len(blind["unchecked"]) == 3 and not blind["found"] and "no keyring" in blind["unchecked"][0]
    keyring.destroy("acme")
    report = probe_folder(store, CANARIES, decrypt=opened)
    assert not found(report) and not row(report, "sealed files")["unchecked"]
    assert row(report, "sealed files")["checked"] == 3


def test_what_cannot_be_read_is_said(tmp_path):
    write(tmp_path / "0.store", os.urandom(50))
    write(tmp_path / "broken.parquet", b"PAR1" + os.urandom(50))
    write(tmp_path / "torn.gz", gzip.compress(TEXT.encode() * 9)[:-20])
    report = probe_folder(tmp_path, CANARIES)
    assert "tantivy" in row(report, "compressed files")["unchecked"][0]
    assert [text.split(":")[0] for text in row(report, "compressed files")["unchecked"]] == [
        "0.store",
        "torn.gz",
    ]
    assert row(report, "snapshots")["unchecked"][0].startswith("broken.parquet")


def test_an_empty_folder_was_not_checked(tmp_path):
    assert all(row["checked"] == 0 for row in probe_folder(tmp_path, CANARIES))


# A shard

SHARD_CANARIES = Canaries(texts=["canary sings"], vectors=[axis(3)], fragment=8)


@pytest.fixture(params=BACKENDS)
def backend(request, tmp_path):
    server = request.getfixturevalue("redis_server") if request.param == "redis" else None
    return Backend(request.param, tmp_path / f"store-{tmp_path.name}", server)


@pytest.fixture(params=["plain", "encrypted"])
def opened(request, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_MASTER", new_master().text)
    config = {"master_key": "env:TEST_MASTER"} if request.param == "encrypted" else {}
    shards = []

    def opened():
        for shard in shards:
            shard.close()
        shards.append(open_shard(tmp_path / "shard", **config))
        return shards[-1]

    yield opened
    shards[-1].close()


def op():
    return {"op_id": os.urandom(8).hex(), "now": NOW}


def looked(shard, canaries=SHARD_CANARIES):
    keyring = shard.core.log.keyring
    opens = (lambda piece: keyring.decrypt_any(piece, b"file")) if keyring else None
    return probe_core(shard.core, canaries) + probe_folder(shard.core.log.path, canaries, decrypt=opens)


def fill(shard, namespace="acme"):
    shard.memories.put(MemoryBatch.of([(memory("kept", namespace="other", text="stays"), axis(0))]), **op())
    shard.conversations.push("other", "c", [{"role": "user", "text": "stays"}], **op())
    shard.memories.put(
        MemoryBatch.of([(memory("m", namespace=namespace, text="the canary sings"), axis(3))]), **op()
    )
    shard.keyed.put(namespace, "bird", "a canary sings too", axis(3), **op())
    shard.keyed.put(namespace, "bird", "silence", axis(4), **op())
    for conversation in ("popped", "rewound", "there"):
        shard.conversations.push(
            namespace, conversation, [{"role": "user", "text": "the canary sings"}], **op()
        )
    shard.conversations.pop(namespace, "popped", **op())
    shard.conversations.rewind(namespace, "rewound", 1, **op())


def test_a_shard_is_full_of_it_before_and_clean_after(opened):
    shard = opened()
    fill(shard)
    before = looked(shard)
    for place in ("log", "memories", "turns", "lines", "index"):
        assert found(before, place), f"the probe of {place} can fail"
    assert bool(found(before, "files")) == (shard.core.log.keyring is None)
    shard.erasure.forget("acme", everything=True, **op())
    for _ in range(2):
        report = looked(shard)
        assert found(report) == [] and [row["unchecked"] for row in report if row["unchecked"]] == []
        assert all(row(report, place)["checked"] for place in ("log", "memories", "turns", "index", "files"))
        shard = opened()
    assert shard.memories.list("other") and shard.conversations.peek("other", "c", 1)


def test_forgetting_ids_leaves_nothing_of_them_either(opened):
    shard = opened()
    fill(shard)
    line = shard.keyed.get("acme", "bird")
    shard.erasure.forget("acme", ids=["m", line["id"]], **op())
    for _ in range(2):
        assert found(looked(shard)) == []
        shard = opened()


def test_no_digest_of_what_was_erased_is_left_to_test_a_guess_against(backend):
    """Whoever has the files and guesses the content makes the digest of the request that wrote it."""
    with closing(Shard(backend.folder / "s", number=0, dim=8, config=backend.config())) as shard:
        fact = {"kind": "relational", "subject": "Ada", "relation": "hides", "object": "a bird"}
        items = {
            "put": memory("m", text="the canary sings"),
            "existing": memory("m", text="the canary sings"),
            "told": memory("f", text="Ada hides a bird", **fact),
            "told again": memory("g", text="a bird is hidden by Ada", **fact),
            "stays": memory("kept", text="something else"),
        }
        for number, (name, item) in enumerate(items.items()):
            shard.memories.put(MemoryBatch.of([(item, axis(number))]), op_id=name, now=NOW)
        turn = [{"role": "user", "text": "the canary sings"}]
        shard.conversations.push("acme", "talk", turn, op_id="push", now=NOW)
        values = [line_memory("acme", "bird", text, None, now=NOW, max_text_bytes=99) for text in ("a", "b")]
        racing = [candidate(value, axis(7)) for value in values]
        shard.keyed.race("acme", "bird", racing, generation=0, op_id="race", now=NOW)
        guesses = {name: put_digest([item]) for name, item in items.items()}
        guesses["push"] = request_digest("turns", "acme", "talk", ["push", turn])
        guesses |= {f"value {i}": each.memory.id for i, each in enumerate(racing)}
        assert all(guess.encode() in backend.disk() for guess in guesses.values())

        ids = ["m", "f", "g", line_id("bird")]
        receipt = shard.erasure.forget("acme", ids=ids, op_id="forget", now=NOW)
        found = [name for name, guess in guesses.items() if guess.encode() in backend.disk()]
        assert found == ["stays"]
        for name in ("put", "existing", "told", "told again"):
            with pytest.raises(Conflict, match="has been erased") as caught:
                shard.memories.put(MemoryBatch.of([(items[name], axis(0))]), op_id=name, now=NOW)
            assert caught.value.code == "erased"
        assert [each["id"] for each in shard.memories.list("acme")] == ["kept"], "nothing is written again"
        assert (
            shard.memories.put(MemoryBatch.of([(items["stays"], axis(4))]), op_id="stays", now=NOW)[0][
                "status"
            ]
            == "new"
        )
        assert shard.erasure.forget("acme", ids=ids, op_id="forget", now=NOW) == receipt, (
            "who erases may ask again"
        )


@pytest.mark.parametrize("by", ["filter", "texts"])
def test_what_chose_the_erased_leaves_no_digest_either(backend, by):
    with closing(Shard(backend.folder / "s", number=0, dim=8, config=backend.config())) as shard:
        where = {"field": "text", "op": "contains", "value": "canary"}
        shard.memories.put(
            MemoryBatch.of([(memory("m", text="the canary sings"), axis(3))]), op_id="put", now=NOW
        )
        shard.conversations.push(
            "acme", "talk", [{"role": "user", "text": "the canary sings"}], op_id="push", now=NOW
        )
        if by == "filter":
            shard.erasure.forget("acme", where=where, op_id="forget", now=NOW)
            guess = request_digest("forget", "acme", None, where, False)
        else:
            shard.erasure.forget_turns("acme", texts=["the canary sings"], op_id="forget", now=NOW)
            guess = request_digest("forget_turns", "acme", None, ["the canary sings"])
        assert guess.encode() not in backend.disk() and shard.conversations.peek("acme", "talk") == []


def test_what_was_left_in_one_place_is_named(opened):
    """Each place with a leftover of its own, put there behind the shard's back."""
    shard = opened()
    fill(shard, "other")
    space = shard.core.view.spaces["other"]
    clean = {row["place"] for row in looked(shard) if not row["found"]}
    assert clean <= {"files", "compressed files", "snapshots", "kv blocks", "sealed files"}
    shard.erasure.forget("other", ids=["m", shard.keyed.get("other", "bird")["id"]], **op())
    assert found(looked(shard)) == []

    space.index.add([10**6], axis(3).reshape(1, -1))
    assert {row["place"] for row in looked(shard) if row["found"]} == {"index"}
    space.index.remove([10**6])
    space.keyed._vectors[-1] = axis(3)
    assert {row["place"] for row in looked(shard) if row["found"]} == {"lines"}
    space.keyed._vectors[-1] = 0
    space.conversations._conversations["c"].popped[9] = {"role": "user", "text": "the canary sings"}
    assert {row["place"] for row in looked(shard) if row["found"]} == {"turns"}
    space.conversations._conversations["c"].popped.clear()
    space.entries["kept"].rivals["the canary sings"] = 1.0
    assert {row["place"] for row in looked(shard) if row["found"]} == {"memories"}
    space.entries["kept"].rivals.clear()
    (shard.core.log.path / "forgotten.tmp").write_text("the canary sings")
    assert {row["place"] for row in looked(shard) if row["found"]} == {"files"}
    (shard.core.log.path / "forgotten.tmp").unlink()
    report = probe_shard(
        shard.core.log,
        shard.core.view,
        shard.core.view_lock,
        SHARD_CANARIES,
        others={"cache": lambda canaries: ["entry 5"]},
    )
    assert found(report, "cache")[0]["where"] == "entry 5" and len(found(report)) == 1
