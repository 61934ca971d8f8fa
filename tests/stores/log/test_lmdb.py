"""Records as bytes, and what is LMDB's own."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import NotReady, StoreCorrupt
from stores.log import base
from stores.log import record as records
from stores.log.lmdb import LmdbLog
from stores.log.record import PLAIN, Op
from tests.support.log_backends import append

GENESIS = PLAIN.genesis


# Records

encodable = st.builds(
    records.make,
    st.sampled_from(Op),
    seq=st.integers(1, 2**63),
    epoch=st.integers(1, 2**63),
    time=st.floats(allow_nan=False),
    op_id=st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    previous=st.binary(min_size=8, max_size=8),
    body=st.binary(max_size=300),
    vector=st.binary(max_size=64),
)


@given(encodable)
def test_a_record_survives_its_encoding(record):
    assert records.decode(records.encode(record), record.seq) == record
    assert records.intact(record)


def test_a_large_record_survives_its_encoding():
    record = records.make(
        Op.PUT,
        seq=1,
        epoch=1,
        time=0.0,
        op_id="o",
        previous=GENESIS,
        body=b"x" * 10_000_000,
        vector=b"v" * 8192,
    )
    assert records.decode(records.encode(record), 1) == record


@given(encodable, st.data())
def test_every_flipped_bit_is_found(record, data):
    raw = bytearray(records.encode(record))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(StoreCorrupt) as caught:
        records.decode(bytes(raw), record.seq)
    assert str(record.seq) in caught.value.message


@given(encodable, st.integers(0, 60))
def test_a_torn_record_is_found(record, kept):
    with pytest.raises(StoreCorrupt):
        records.decode(records.encode(record)[:kept], record.seq)


def test_a_record_under_another_number_is_found():
    record = records.make(Op.PUT, seq=1, epoch=1, time=0, op_id="", previous=GENESIS, body=b"", vector=b"")
    with pytest.raises(StoreCorrupt, match="record 2 holds record 1"):
        records.decode(records.encode(record), 2)


@given(encodable)
def test_an_erased_record_keeps_its_place_in_the_chain_and_nothing_else(record):
    erased = records.decode(records.encode(records.erase(record)), record.seq)
    assert erased.erased and records.intact(erased)
    assert (erased.digest, erased.anchor) == (record.digest, record.anchor)
    assert not erased.body and not erased.vector and erased.salt != record.salt
    assert not records.intact(replace(erased, body=b"back again"))


# Spelling

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(json_values)
def test_a_body_is_json_that_reads_as_what_was_spelled(value):
    """Whole numbers beyond 64 bits too, which orjson does not take."""
    assert json.loads(base.encode_json(value)) == value


def test_what_is_no_unicode_is_refused():
    with pytest.raises(UnicodeEncodeError):
        base.encode_json({"text": "\ud800"})


def test_equal_contents_have_unequal_digests():
    """Without a salt, whoever sees the digest of an erased memory could test guesses against it."""
    same = {
        "seq": 1,
        "epoch": 1,
        "time": 0.0,
        "op_id": "o",
        "previous": GENESIS,
        "body": b"Ada",
        "vector": b"",
    }
    assert records.make(Op.PUT, **same).digest != records.make(Op.PUT, **same).digest


# What is LMDB's own; what every log does is in `test_log_conformance.py`


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "data.mdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreCorrupt):
        LmdbLog(tmp_path / "log", map_size_bytes=64 << 20, identity={})


def test_a_full_map_refuses_the_write_and_the_log_goes_on(tmp_path):
    log = LmdbLog(tmp_path / "log", map_size_bytes=256 << 10, identity={})
    append(log, 1)
    with pytest.raises(NotReady, match="map_size_bytes") as caught:
        append(log, 2, body="x" * 1_000_000)
    assert caught.value.code == "store_full" and log.failure is None
    append(log, 2)
    assert log.seq == 2 and log.verify() is None
    log.close()
