"""Learning to read injected blocks: scenes that no benchmark asks about, gradients through the encoding, resuming."""

import json
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from peft import load_peft_weights
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.session_sets import own
from common.errors import Conflict, InvalidInput
from jobs.demo.demo_data import EPISODIC, FIRST, LAST, RELATIONAL, SPATIAL
from models.kv import prefix as kv
from models.text.prompt import PromptBuilder
from models.weights.adapters import AdapterStore
from models.weights.load import load_model
from models.weights.load_report import check_adapter, load_report
from models.weights.versions import ModelVersions
from tests.support.models import write_tiny_llama
from train.anchors import Anchors, anchor_batch, make_anchors
from train.encoders import reader
from train.encoders.reader_data import TIES, TOPICS, Question, data_digest, scene
from train.encoders.reader_teacher import Lesson, is_right
from train.evaluation.evaluate import normalise
from train.objective import position_logits

TOLERANCE = 1e-4  # float32, small states: two orders of the same sums
CONFIG = reader.ReaderConfig(steps=20, lr=5e-3, rank=4, anchors=6, held_out=2)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_llama(
        tmp_path_factory.mktemp("tiny"), num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3
    )


@pytest.fixture
def small(tiny):
    return load_model(tiny, "float32")


@pytest.fixture
def lesson(small):
    """What the tiny model says behind the memories as text, right or wrong."""
    builder = PromptBuilder(small.tokenizer)
    blocks = [builder.memory(text) for text in scene(1, 2, 4).memories]
    memories = [token for block in blocks for token in block]
    tails = [builder.tail([{"role": "user", "content": each.text}]) for each in scene(1, 2, 4).questions]
    whole = [[*builder.head, *memories, *tail] for tail in tails]
    said = make_anchors(small.model, small.tokenizer, whole, 5, 0)
    answers = [replace(each, prompt=tail) for each, tail in zip(said, tails, strict=True)]
    return Lesson(builder.head, blocks, answers, {})


def served_prefix(model, lesson):
    """As the engine makes it."""
    head = kv.encode_head(model, lesson.head)
    states = kv.encode_blocks(model, head, lesson.blocks)
    blocks = [
        kv.KVBlock(memory_id="", fingerprint="", ids=tuple(ids), text="", states=each, width=len(ids))
        for ids, each in zip(lesson.blocks, states, strict=True)
    ]
    return kv.assemble(head, blocks[::-1], model.model.rotary_emb.inv_freq, kv.INDEPENDENT)


def served_logits(model, lesson):
    """At the same positions as `read_logits`, one question at a time."""
    with torch.inference_mode():
        return torch.cat(
            [
                position_logits(
                    model,
                    anchor_batch([each], 0, "cpu"),
                    kv.as_cache(served_prefix(model, lesson).lay(), model.config),
                )
                for each in lesson.answers
            ]
        )


# Data


def test_scenes_are_drawn_by_seed_and_ask_for_what_they_tell():
    scenes = [scene(5, number, 6) for number in range(300)]
    assert scenes == [scene(5, number, 6) for number in range(300)] != [scene(6, n, 6) for n in range(300)]
    kinds = Counter(question.kind for each in scenes for question in each.questions)
    assert set(kinds) == {"one", "who", "which", "more", "count", "chain"} and min(kinds.values()) > 20
    for each in scenes:
        assert 2 <= len(each.memories) <= 8 and 1 <= len(each.questions) <= 6
        told = normalise(" ".join(each.memories))
        for question in each.questions:
            assert question.kind == "count" or any(normalise(answer) in told for answer in question.answers)
            assert all(normalise(name) in told for name in question.wrong)
    assert data_digest(5, 20, 6) == data_digest(5, 20, 6) != data_digest(5, 21, 6)


def test_nothing_measured_is_trained_on():
    """No name, answer, sentence or question of the benchmark's own sets; no wording, names aside."""
    demo = (*EPISODIC, *RELATIONAL, *SPATIAL)
    assert not {a.lower() for t in TOPICS for a in t.answers} & {a.lower() for t in demo for a in t.answers}
    measured = {wording for t in demo for wording in (t.text, *t.train, *t.audit, *t.test)}
    trained = {wording for t in TOPICS for wording in (*t.texts, *t.asks, t.who, t.which, t.count, t.more)}
    assert not measured & (trained | set(TIES.values()))
    names = {first + last for first in FIRST for last in LAST}
    shown = " ".join(text for n in range(200) for text in scene(1337, n, 6).memories)
    assert not names & set(re.findall(r"\w+", shown))
    facts = own(100, 1337)
    assert not {fact.text for fact in facts.facts} & set(shown.split("\n"))


def test_an_answer_that_names_both_is_not_right():
    asked = Question(text="Which of the two?", answers=("Ada Low",), wrong=("Bo Tarn",), kind="which")
    assert is_right("It is Ada Low.", asked)
    assert not is_right("Ada Low and Bo Tarn.", asked)


# Student


def test_without_training_the_student_reads_what_is_served(small, lesson):
    served, logits = served_prefix(small.model, lesson), served_logits(small.model, lesson)
    model = reader.add_lora(small.model, CONFIG)  # B is zero: the base
    mine = reader.student_prefix(model, lesson, small.model.model.rotary_emb.inv_freq)
    assert torch.allclose(mine.lay(), served.lay(), atol=TOLERANCE, rtol=0)
    assert torch.equal(mine.positions, served.positions) and mine.length == served.length
    read = reader.read_logits(model, lesson, small.model.model.rotary_emb.inv_freq)
    assert torch.allclose(read, logits, atol=1e-3, rtol=0)


def test_gradients_reach_the_adapter_through_the_blocks(small, lesson):
    """With the question's own pass cut off, what is left comes through the encoding."""
    model = reader.add_lora(small.model, CONFIG)
    prefix = reader.student_prefix(model, lesson, small.model.model.rotary_emb.inv_freq)
    laid = prefix.lay()
    last_block = laid[..., -len(lesson.blocks[-1]) :, :]
    adapter = [each for name, each in model.named_parameters() if re.search("[kv]_proj.lora_B", name)]
    given = torch.autograd.grad(last_block.square().sum(), adapter, retain_graph=True)
    assert len(given) == 4 and all(float(each.abs().max()) > 0 for each in given)
    laid.retain_grad()
    states = kv.as_cache(laid, model.config)
    logits = position_logits(model, anchor_batch(lesson.answers, 0, "cpu"), states)
    logits.logsumexp(-1).sum().backward()
    assert float(laid.grad.abs().amax(dim=(0, 1, 2, 4)).min()) > 0  # every slot is read


def test_a_few_steps_lower_the_loss_and_give_an_adapter_that_serves(small, lesson, tmp_path):
    base = load_model(small.name, "float32")
    model = reader.add_lora(small.model, CONFIG)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=CONFIG.lr)
    before = reader.held_out_loss(model, [lesson])
    for number in range(10):
        reader._step(model, optimizer, lesson, Anchors([], [], []), CONFIG, number)
    assert reader.held_out_loss(model, [lesson]) < 0.8 * before

    cursor = reader.Cursor(steps=10, next_scene=1)
    reader._save(tmp_path / "run", model, optimizer, cursor)
    store = AdapterStore(tmp_path / "adapters")
    digest = store.publish(
        tmp_path / "run" / "checkpoint-000010" / "adapter",
        reader.manifest(small, CONFIG, cursor),
        alias="reader",
    )
    assert store.resolve("base:reader", "tiny") == digest and store.resolve("base:latest", "tiny") is None
    report = load_report(base.model, store.path(digest))
    assert report.complete and len(report.loaded) == 2 * 2 * len(CONFIG.targets)
    assert report.provenance["purpose"] == "reader" and report.provenance["model_digest"] == base.digest
    with torch.no_grad():
        read = reader.read_logits(model, lesson, small.model.model.rotary_emb.inv_freq)
    with ModelVersions(base, store, 1).using(digest) as served:
        assert torch.allclose(served_logits(served, lesson), read, atol=1e-3, rtol=0)


def test_a_model_that_cannot_answer_cannot_teach(small, tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "HOPELESS", 3)
    with pytest.raises(InvalidInput, match="cannot teach"):
        reader.train(small, replace(CONFIG, questions=2, held_out=0), tmp_path, lambda _: None)


# What is loaded


def test_a_folder_that_does_not_fit_is_reported_and_refused(small, tmp_path):
    folder = tmp_path / "adapter"
    reader.add_lora(load_model(small.name, "float32").model, CONFIG).save_pretrained(folder)
    whole = load_report(small.model, folder)
    assert whole.complete and len(whole.loaded) == 2 * 2 * len(CONFIG.targets)
    check_adapter(whole)

    narrow = LlamaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, vocab_size=9
    )
    other = load_report(LlamaForCausalLM(narrow), folder)  # one layer of the two, and that of another shape
    assert len(other.shape_errors) == len(other.skipped) == 2 * len(CONFIG.targets) and not other.loaded
    assert all(shape != wanted for shape, wanted in other.shape_errors.values())
    with pytest.raises(Conflict, match="8 tensors of another shape, 8 without a module"):
        check_adapter(other)

    file = folder / "adapter_model.safetensors"
    save_file(
        {name: each for name, each in load_file(file).items() if "0.self_attn.q_proj" not in name}, file
    )
    part = load_report(small.model, folder)
    gone = [f"base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight" for side in "AB"]
    assert part.missing == gone and len(part.loaded) == len(whole.loaded) - 2
    assert json.loads(json.dumps(part.to_dict()))["provenance"]["rank"] == CONFIG.rank
    store = AdapterStore(tmp_path / "adapters")
    digest = store.publish(folder, {"model_digest": small.digest}, alias=None)
    with pytest.raises(Conflict, match="2 missing"):
        ModelVersions(small, store, 1).hold(digest)


# The real model


@pytest.mark.slow
def test_a_training_that_was_cut_off_goes_on_as_if_it_had_not_been(tmp_path):
    config = reader.ReaderConfig(steps=4, scenes=3, checkpoint_every=1, anchors=3, held_out=1, lr=5e-3)

    def stop(text: str) -> None:
        if text.startswith("step 3:"):  # told before it is saved
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reader.train(load_model("smollm2-135m", "float32"), config, tmp_path / "cut", stop)
    folder, report = reader.train(load_model("smollm2-135m", "float32"), config, tmp_path / "cut")
    straight, other = reader.train(load_model("smollm2-135m", "float32"), config, tmp_path / "straight")
    assert report["steps"] == other["steps"] == 4 and report["data_digest"] == other["data_digest"]
    assert report["scenes"] == 3 and report["questions"] == other["questions"]
    mine, wanted = load_peft_weights(str(folder)), load_peft_weights(str(straight))
    assert all(torch.allclose(mine[name], wanted[name], atol=1e-4) for name in wanted)
