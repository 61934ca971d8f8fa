"""The log of text lines: what a person sees in it, and what a crash leaves behind."""

import json
import random

import pytest

from common.errors import StoreCorrupt
from stores.log import jsonl_lines
from stores.log.record import Op
from tests.support.log_backends import Backend, append, draft, numbers, operation


@pytest.fixture
def backend(tmp_path):
    return Backend("jsonl", tmp_path / "store")


def file_of(log):
    return log.path / "log.jsonl"


def test_a_person_can_read_it(backend):
    log = backend.open()
    append(log, 1, body="Ada zog nach Lübeck.")
    append(log, 2, erase=[1], op=Op.FORGET)
    log.close()
    lines = [json.loads(line) for line in file_of(log).read_text().splitlines()]
    assert [next(iter(line)) for line in lines] == ["state", *["record", "commit", "state"] * 2]
    assert lines[1]["op"] == "put" and lines[1]["body"] == {"number": 1, "body": "Ada zog nach Lübeck."}
    assert "Lübeck" in file_of(log).read_text(), "as text, not escaped"
    assert lines[5]["erase"] == [1] and lines[6]["state"]["seq"] == 2


@pytest.mark.parametrize("seed", range(5))
def test_a_torn_tail_is_cut_wherever_it_tears(backend, seed):
    """Power fails while a batch is written: any of its pages may be missing, the last ones there."""
    rng = random.Random(seed)
    log = backend.open()
    for i in range(1, 6):
        append(log, i)
    synced, note = file_of(log).stat().st_size, (log.path / "synced").read_bytes()
    group = log.stage("op-6", [draft(6, body="x" * 3000), draft(6), draft(6)], now=0.0)
    log.commit([operation(6, group), operation(7, [])])
    log.close()
    whole = file_of(log).read_bytes()
    for cut in [synced, len(whole), *rng.sample(range(synced, len(whole)), 12)]:
        torn = bytearray(whole[:cut])
        if rng.random() < 0.5 and cut > synced:
            hole = rng.randrange(synced, cut)
            torn[hole : hole + 512] = bytes(len(torn[hole : hole + 512]))
        with file_of(log).open("r+b") as file:
            file.write(torn)
            file.truncate()
        (log.path / "synced").write_bytes(note)
        again = backend.open()
        assert numbers(again) == ([1, 2, 3, 4, 5, 6, 6, 6] if torn == whole else [1, 2, 3, 4, 5])
        assert again.seen("op-6", "r") == again.seen("op-7", "r") - 1 if torn == whole else True
        append(again, 8)
        assert again.verify() is None
        again.close()


@pytest.mark.parametrize("where", ["cut", "flipped"])
def test_damage_at_the_end_is_not_taken_for_a_torn_tail(backend, where):
    """What was acknowledged is never cut away in silence."""
    log = backend.open()
    for i in range(1, 6):
        append(log, i)
    log.close()
    data = bytearray(file_of(log).read_bytes())
    if where == "cut":
        data = data[:-100]
    else:
        data[-100] ^= 1
    with file_of(log).open("r+b") as file:
        file.write(data)
        file.truncate()
    with pytest.raises(StoreCorrupt, match="record 5 is missing") as caught:
        backend.open()
    assert caught.value.fault["seq"] == 5


def test_a_damaged_commit_line_is_found(backend):
    log = backend.open()
    for i in range(1, 6):
        append(log, i)
    log.close()
    data = file_of(log).read_bytes()
    with file_of(log).open("r+b") as file:
        file.write(data.replace(b'"op_id":"op-2","request"', b'"op_id":"op-9","request"'))
    log = backend.open()
    assert log.seen("op-9", "r") is None and log.verify() == 3
    log.close()


def test_a_copy_elsewhere_opens(backend):
    log = backend.open()
    for i in range(1, 6):
        append(log, i)
    log.close()
    (backend.folder / "copy").mkdir()
    (backend.folder / "copy" / "log.jsonl").write_bytes(file_of(log).read_bytes())
    copy = backend.open("copy")
    assert numbers(copy) == [1, 2, 3, 4, 5] and copy.seen("op-5", "r") == 5
    copy.close()


@pytest.mark.parametrize("content", [b"not a log\n" * 1000, b"\x7fELF", b'{"record":1}\n'])
def test_a_file_that_is_no_log_is_refused_and_left_alone(backend, content):
    (backend.folder / "log").mkdir(parents=True)
    file = backend.folder / "log" / "log.jsonl"
    file.write_bytes(content)
    with pytest.raises(StoreCorrupt, match="no log of ours"):
        backend.open()
    assert file.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b'{"sta', b'{"state":{"format"', bytes(4096)])
def test_a_first_opening_that_was_cut_off_begins_again(backend, content):
    (backend.folder / "log").mkdir(parents=True)
    (backend.folder / "log" / "log.jsonl").write_bytes(content)
    log = backend.open()
    append(log, 1)
    assert log.epoch == 1 and log.verify() is None
    log.close()


def test_reading_on_from_a_record_reads_none_before_it(backend, monkeypatch):
    """A reshard reads a log 500 records at a time."""
    log = backend.open()
    written = [append(log, i, body="x" * 100) for i in range(1, 41)]
    append(log, 41, erase=[7])
    log.scrub()  # which moves every line
    read = []
    kind = jsonl_lines.kind
    monkeypatch.setattr(jsonl_lines, "kind", lambda line: read.append(line) or kind(line))
    for reopened in (False, True):
        if reopened:
            log.close()
            log = backend.open()
        for after in (1, 20, 39, 40):
            read.clear()
            assert [record.seq for record in log.records(after)] == [*range(after + 1, 42)]
            assert len([line for line in read if kind(line) == "record"]) == 42 - after
        assert next(log.records(29)) == written[29]
    log.close()
