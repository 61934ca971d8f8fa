"""Requests through the engine: modes, fallbacks, sampling, adapters."""

import copy
import shutil
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from common.config import RecallConfig
from common.errors import Conflict, InvalidInput, NotFound
from models.encoders.encoding_queue import Erasure, RecalledMemory, Written
from models.engine.engine import Engine
from models.engine.generation_stats import GenerationStats
from models.engine.sampling import Sampling, TextStream, choose
from models.kv.blocks import BlockStore
from models.weights.adapters import BASE, AdapterStore
from models.weights.versions import ModelVersions
from tests.support.models import (
    QUESTION,
    ask,
    assert_same_answers,
    case_of,
    encode,
    make_engine,
    run_alone,
    text_of,
)

ADA = RecalledMemory(id="ada", text="Ada Quill lives in Lisbon.")
BO = RecalledMemory(id="bo", text="Bo Tarn works as a baker.")


@pytest.fixture
def adapters(tmp_path):
    return AdapterStore(tmp_path / "adapters")


@pytest.fixture
def engine(loaded, tmp_path, adapters):
    return make_engine(loaded, tmp_path)


@pytest.fixture
def adaptable(loaded, tmp_path, adapters):
    """An engine with a model of its own: PEFT injects in place, and the session's model must stay as it is."""
    return make_engine(replace(loaded, model=copy.deepcopy(loaded.model)), tmp_path)


def written(memory, *, seq, shard=0, generation=2):
    return Written(id=memory.id, text=memory.text, generation=generation, shard=shard, seq=seq)


def test_prefix_with_one_block_answers_as_text_does_at_fewer_tokens(engine):
    encode(engine, [ADA])
    case = case_of([ADA], "text")
    text, prefix = run_alone(engine, case), run_alone(engine, case_of([ADA], "prefix"))
    assert_same_answers(engine, [case], [prefix], [text])
    assert "Lisbon" in text_of(text)
    text_turn, turn = text.turn, prefix.turn
    assert turn.fallback is None and turn.injected == ["ada"]
    assert turn.prompt_tokens + turn.prefix_tokens == text_turn.prompt_tokens
    assert turn.prompt_tokens == len(engine.queue.builder.tail(QUESTION))


def test_a_missing_block_falls_back_to_text_says_so_and_is_queued(engine):
    text, _ = ask(engine, [ADA], "text")
    given, turn = ask(engine, [ADA], "prefix")
    assert given == text and turn.prefix_tokens == 0
    assert turn.fallback.startswith("text: 1 of 1 blocks") and engine.injection.fallbacks == 1
    while engine.encode_some():
        pass
    assert ask(engine, [ADA], "prefix")[1].fallback is None


def test_a_block_of_other_text_or_another_namespace_is_never_used(engine):
    encode(engine, [ADA])
    moved = RecalledMemory(id="ada", text="Ada Quill lives in Oslo.")
    answer, turn = ask(engine, [moved], "prefix")
    assert turn.fallback and "Lisbon" not in answer
    assert ask(engine, [ADA], "prefix", namespace="other")[1].fallback


def test_forgetting_removes_blocks_from_memory_disk_and_queue(engine, tmp_path):
    encode(engine, [ADA, BO])
    engine.queue.enqueue("n", [RecalledMemory(id="cy", text="Cy keeps a goat.")], BASE)
    assert engine.queue.forget("n", ["ada", "cy"]) == 1
    assert engine.queue.pending_blocks == 0
    on_disk = b"".join(path.read_bytes() for path in (tmp_path / "blocks").rglob("*.safetensors"))
    assert b"Bo Tarn" in on_disk and b"Ada Quill" not in on_disk
    assert ask(engine, [ADA], "prefix")[1].fallback


def test_a_write_waits_for_no_step(engine, monkeypatch):
    """Blocks of a long text may take the model half a minute; meanwhile others are queued."""
    begun, wait, made = threading.Event(), threading.Event(), engine.queue.encoder.encode

    def slow(*given):
        begun.set()
        assert wait.wait(60)
        return made(*given)

    monkeypatch.setattr(engine.queue.encoder, "encode", slow)
    engine.enqueue("n", [ADA], BASE)
    step = threading.Thread(target=engine.encode_some)
    step.start()
    try:
        assert begun.wait(60)
        write = threading.Thread(target=engine.enqueue, args=("n", [BO], BASE))
        write.start()
        write.join(30)
        assert not write.is_alive() and engine.status()["pending_blocks"] == 2
    finally:
        wait.set()
        step.join()
    assert engine.encode_some() == 1 and not engine.busy


def test_an_erased_memory_does_not_come_back_through_a_request_that_waited(engine):
    engine.queue.forget("n", ["ada"])
    for _ in range(2):
        assert ask(engine, [ADA], "prefix")[1].fallback  # retrieved before the erasure, answered after it
        assert engine.encode_some() == 0
    engine.queue.written("n", [written(ADA, seq=1)])  # written anew
    encode(engine, [ADA])
    assert ask(engine, [ADA], "prefix")[1].fallback is None


def test_a_write_that_an_erasure_has_met_is_never_encoded_however_late_it_is_told(engine, tmp_path):
    """The write commits as record 7, the erasure follows it, and only then the engine hears of the write."""
    engine.queue.forget("n", ["ada"], Erasure(generation=2, heads={0: 9, 1: 4}))
    for met in (written(ADA, seq=7), written(ADA, seq=4, shard=1), written(ADA, seq=99, generation=1)):
        engine.queue.written("n", [met])
        engine.queue.enqueue("n", [met], BASE)
        assert engine.queue.pending_blocks == 0
    again = Written(id="ada", text="Ada Quill lives in Oslo.", generation=2, shard=0, seq=10)
    engine.queue.written("n", [again])
    engine.queue.enqueue("n", [ADA, again], BASE)  # the old text is still in a request that waits
    while engine.encode_some():
        pass
    engine.queue.enqueue("n", [ADA], BASE)
    assert engine.queue.pending_blocks == 0
    on_disk = b"".join(path.read_bytes() for path in (tmp_path / "blocks").rglob("*.safetensors"))
    assert b"Oslo" in on_disk and b"Lisbon" not in on_disk
    engine.queue.forget("n", ["ada"], Erasure(generation=3, heads={0: 1}))
    engine.queue.written("n", [again])
    engine.queue.enqueue("n", [again], BASE)
    assert engine.queue.pending_blocks == 0


def test_long_memories_are_encoded_in_bounded_batches(engine, monkeypatch):
    monkeypatch.setattr("models.engine.engine.ENCODE_TOKENS", 100)
    engine.queue.enqueue("n", [RecalledMemory(id=str(i), text="word " * 45) for i in range(5)], BASE)
    engine.queue.enqueue(
        "n", [RecalledMemory(id="huge", text="word " * 9000)], BASE
    )  # longer than the context: never injected
    assert engine.queue.pending_blocks == 5
    done = []
    while count := engine.encode_some():
        done.append(count)
    assert done == [2, 2, 1]


def test_blocks_survive_a_restart_and_a_small_budget(loaded, engine, tmp_path, adapters):
    encode(engine, [ADA, BO])
    small = BlockStore(tmp_path / "blocks", 1)  # holds nothing in memory
    again = Engine(loaded, ModelVersions(loaded, adapters, 1), small, RecallConfig())
    assert ask(again, [ADA, BO], "prefix")[1].fallback is None
    assert small.held_bytes == 0 and small.disk_hits == 2


def test_modes_off_and_hybrid_and_no_memories(engine):
    encode(engine, [ADA, BO])
    _, off = ask(engine, [ADA], "off")
    assert (off.injected, off.prefix_tokens) == ([], 0)
    _, empty = ask(engine, [], "prefix")
    assert (empty.prompt_tokens, empty.fallback) == (off.prompt_tokens, None)
    _, prefix = ask(engine, [ADA, BO], "prefix")
    answer, hybrid = ask(engine, [ADA, BO], "hybrid")
    assert "Lisbon" in answer
    assert (
        hybrid.prefix_tokens > prefix.prefix_tokens
    )  # best_last runs the first one again, hybrid injects both


def test_a_prompt_over_the_context_is_an_error_and_too_much_history_is_cut_aloud(engine, monkeypatch):
    # An eighth of the real context: attention over all of it takes a CPU a minute.
    monkeypatch.setattr(engine.loaded.model.config, "max_position_embeddings", 1024)
    long = [RecalledMemory(id=str(i), text="word " * 230) for i in range(6)]
    _, turn = ask(engine, long, "full", max_tokens=1)
    assert turn.fallback.startswith("kept 4 of 6") and turn.injected == ["2", "3", "4", "5"]
    with pytest.raises(InvalidInput, match="context holds 1024"):
        ask(engine, [], "off", messages=[{"role": "user", "content": "word " * 1100}])


def test_an_abandoned_answer_frees_the_model(engine):
    turn = GenerationStats(mode="off")
    pieces = engine.answer(
        QUESTION, [], namespace="n", adapter=BASE, sampling=Sampling(max_tokens=50), turn=turn
    )
    next(pieces)
    pieces.close()
    assert ask(engine, [], "off")[0]


def test_stop_strings_seeds_and_finish_reasons(engine):
    whole, turn = ask(engine, [ADA], "text")
    assert turn.finish_reason == "stop" and turn.completion_tokens > 3
    cut, turn = ask(engine, [ADA], "text", stop=["Lisbon"])
    assert cut == whole.split("Lisbon")[0] and turn.finish_reason == "stop"
    assert ask(engine, [ADA], "text", max_tokens=2)[1].finish_reason == "length"
    draws = [ask(engine, [], "off", temperature=1.5, seed=seed)[0] for seed in (1, 1, 2, 3)]
    assert draws[0] == draws[1] and len(set(draws)) > 1


def test_nucleus_keeps_the_best_token_at_any_top_p():
    logits = torch.tensor([0.0, 5.0, 1.0])
    sampling = Sampling(max_tokens=1, temperature=1.0, top_p=1e-6)
    assert {choose(logits, sampling, None) for _ in range(20)} == {1}


def test_text_stream_holds_back_unfinished_characters_and_stop_strings(loaded):
    text = "naïve 東京 🙂 END tail"
    tokens = loaded.tokenizer.encode(text, add_special_tokens=False)
    stream = TextStream(loaded.tokenizer, Sampling(max_tokens=9, stop=[]))
    pieces = [stream.push(token) for token in tokens] + [stream.finish()]
    assert "".join(pieces) == text and not any("\ufffd" in piece for piece in pieces)
    stream = TextStream(loaded.tokenizer, Sampling(max_tokens=9, stop=[" END"]))
    sent = ""
    for token in tokens:
        sent += stream.push(token)
        if stream.stopped:
            break
    assert sent == "naïve 東京 🙂"


def test_versions_are_immutable_and_named_by_content(adapters, trained):
    first = adapters.publish(trained[0], {"namespace": "n", "created": 1.0, "memory_ids": ["ada"]})
    assert adapters.publish(trained[0], {"namespace": "other", "created": 2.0}) == first
    assert adapters.manifest(first)["namespace"] == "n"
    second = adapters.publish(trained[1], {"namespace": "n", "created": 3.0, "memory_ids": ["bo"]})
    assert second != first and adapters.aliases() == {"latest": second}
    assert adapters.resolve("base:latest", "m") == second == adapters.resolve(f"base:{second}", "m")
    assert adapters.resolve("base", "m") == BASE == adapters.resolve("m", "m")
    assert adapters.holding("n", {"ada"}) == [first] and adapters.holding("m", {"ada"}) == []
    for unknown in ("base:nope", "base:", "base:../../etc", "gpt-4"):
        assert adapters.resolve(unknown, "m") is None
        with pytest.raises(NotFound, match="known: base, m, base:latest"):
            adapters.require(unknown, "m")
    (trained[0] / "adapter_config.json").unlink()
    with pytest.raises(InvalidInput, match="adapter_config"):
        adapters.publish(trained[0], {})


def test_adapters_swap_per_request_and_kv_of_one_never_serves_another(loaded, adaptable, adapters, trained):
    manifest = {"namespace": "n", "created": 1.0, "model_digest": loaded.digest}
    a, b = (adapters.publish(folder, manifest) for folder in trained)
    plain, _ = ask(adaptable, [ADA], "text")
    cases = {version: case_of([ADA], "text", adapter=version) for version in (a, b)}
    answers = {version: run_alone(adaptable, case) for version, case in cases.items()}
    assert len({plain, *map(text_of, answers.values())}) == 3
    encode(adaptable, [ADA], BASE)
    assert ask(adaptable, [ADA], "prefix", adapter=a)[1].fallback  # base blocks are no use to it
    encode(adaptable, [ADA], a)
    given = run_alone(adaptable, case_of([ADA], "prefix", adapter=a))
    assert given.turn.fallback is None
    assert_same_answers(adaptable, [cases[a]], [given], [answers[a]])
    assert ask(adaptable, [ADA], "text")[0] == plain  # and the base is still the base
    shutil.rmtree(adapters.folder / a)
    assert adapters.resolve("base:latest", "m") == b


def test_loaded_adapters_are_bounded_and_those_of_another_base_refused(loaded, adaptable, adapters, trained):
    weights = adaptable.versions
    weights.max_adapters = 1
    for folder in trained:
        manifest = {"namespace": "n", "created": 1.0, "model_digest": loaded.digest}
        with weights.using(adapters.publish(folder, manifest)):
            assert len(weights.loaded) == 1
    shutil.rmtree(adapters.folder)
    other = adapters.publish(trained[0], {"namespace": "n", "model_digest": "another"})
    weights.retire(other)
    with pytest.raises(Conflict, match="trained on base weights another"), weights.using(other):
        pass


def test_a_template_that_moves_the_system_turn_is_refused(loaded):
    from models.text.prompt import PromptBuilder

    class Moved(SimpleNamespace):
        def apply_chat_template(self, messages, **_):
            return "".join(f"<{m['role']}>{m['content']}" for m in reversed(messages))

        def encode(self, text, **_):
            return [ord(c) for c in text]

    with pytest.raises(InvalidInput, match="moves the system turn"):
        PromptBuilder(Moved()).tail(QUESTION)
