"""Several replicas over one folder of KV blocks: erasure and retirement reach all of it."""

import copy
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.errors import NotFound
from models.encoders.encoding_queue import Erasure, RecalledMemory, Written
from models.engine.generation_stats import GenerationStats
from models.engine.sampling import Sampling
from models.kv.blocks import BlockStore
from models.kv.prefix import KVBlock
from models.weights.adapters import AdapterStore
from tests.support.models import QUESTION, encode, make_engine

ADA = RecalledMemory(id="ada", text="Ada Quill lives in Lisbon.")
BO = RecalledMemory(id="bo", text="Bo Tarn works as a baker.")


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "blocks").rglob("*.safetensors"))


def test_what_one_replica_erased_does_not_come_back_out_of_another(loaded, tmp_path):
    here, there = make_engine(loaded, tmp_path), make_engine(loaded, tmp_path)
    there.enqueue("n", [ADA, BO], "")
    assert here.queue.forget("n", ["ada"], Erasure(generation=1, heads={0: 7})) == 0
    while there.encode_some():  # queued before, and nobody told it
        pass
    assert len(files(tmp_path)) == 1
    late = make_engine(loaded, tmp_path)
    for engine in (there, late):
        engine.enqueue("n", [ADA], "")  # a request that had recalled it before
        assert not engine.busy
    removed = [
        engine.queue.forget("n", ["bo"], Erasure(generation=1, heads={0: 8})) for engine in (here, there)
    ]
    assert removed == [1, 0] and not files(tmp_path)


@pytest.mark.parametrize("seq", [7, 8])
def test_what_was_written_after_an_erasure_is_encoded_by_any_replica(loaded, tmp_path, seq):
    here, there = make_engine(loaded, tmp_path), make_engine(loaded, tmp_path)
    here.queue.forget("n", ["ada"], Erasure(generation=1, heads={0: 7}))
    again = Written(id="ada", text=ADA.text, generation=1, shard=0, seq=seq)
    there.queue.written("n", [again])
    encode(there, [again])
    assert len(files(tmp_path)) == (seq > 7)


def test_marks_are_of_one_namespace_and_do_not_stay_for_ever(tmp_path, monkeypatch):
    here, there = (BlockStore(tmp_path / "blocks", 0).erased for _ in range(2))
    assert there.get("n", "ada") is None
    for number in range(20):  # each seen at once, however close they come
        here.add("n", [f"m{number}", "ada"], {"number": number})
        assert there.get("n", f"m{number}") == there.get("n", "ada") == {"number": number}
    assert there.get("m", "ada") is None and there.get("n", "bo") is None
    monkeypatch.setattr("models.kv.erasure_marks.KEPT_S", -1.0)
    assert BlockStore(tmp_path / "blocks", 0).erased.get("n", "ada") is None
    assert not [*(tmp_path / "blocks" / "erased").iterdir()]


def test_a_block_written_twice_and_erased_meanwhile_is_whole_or_gone(tmp_path):
    states = torch.arange(2 * 2 * 3 * 40 * 16, dtype=torch.float32).reshape(2, 2, 3, 40, 16)
    block = KVBlock(
        memory_id="ada", fingerprint="f", ids=tuple(range(40)), text="text", states=states, width=40
    )
    writers = [BlockStore(tmp_path / "blocks", 0) for _ in range(2)]
    done, torn = threading.Event(), []

    def read():
        while not done.is_set():
            found = BlockStore(tmp_path / "blocks", 0).get("n", "ada", "f", block.ids)
            if found is not None and not torch.equal(found.states, states):
                torn.append(found)

    def write(store):
        for i in range(30):
            store.put("n", block)
            if i % 5 == 4:
                store.forget("n", ["ada"])

    reader = threading.Thread(target=read)
    threads = [threading.Thread(target=write, args=(store,)) for store in writers]
    for thread in (reader, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    reader.join()
    assert not torn
    writers[0].forget("n", ["ada"])
    assert not files(tmp_path)


def test_a_retired_version_finishes_what_runs_and_leaves_nothing(loaded, tmp_path, trained):
    engine = make_engine(replace(loaded, model=copy.deepcopy(loaded.model)), tmp_path)
    adapters = AdapterStore(tmp_path / "adapters")
    version, other = (
        adapters.publish(folder, {"namespace": "n", "model_digest": loaded.digest}, alias=None)
        for folder in trained
    )
    for adapter in ("", version, other):
        encode(engine, [ADA, BO], adapter)
    asked = {"namespace": "n", "adapter": version, "sampling": Sampling(max_tokens=8)}
    alone = "".join(engine.answer(QUESTION, [ADA], turn=GenerationStats(mode="prefix"), **asked))
    running = engine.submit(QUESTION, [ADA], turn=GenerationStats(mode="prefix"), **asked)
    engine.step()
    adapters.retire(version)
    engine.queue.enqueue("n", [RecalledMemory(id="cy", text="Cy Vell keeps a goat.")], version)
    assert engine.retire(version) == 2 and not engine.queue.pending_blocks
    with pytest.raises(NotFound, match=version):
        engine.submit(QUESTION, [ADA], turn=GenerationStats(mode="prefix"), **asked)
    engine.enqueue("n", [ADA], version)
    assert not engine.queue.pending_blocks
    while not running.done:
        engine.step()
    assert "".join(running.pieces) == alone and running.error is None
    assert engine.versions.loaded == [other] and len(files(tmp_path)) == 4
    assert adapters.publish(trained[0], {"namespace": "n", "model_digest": loaded.digest}) == version
    assert "".join(engine.answer(QUESTION, [ADA], turn=GenerationStats(mode="text"), **asked)) == alone
