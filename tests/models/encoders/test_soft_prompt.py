"""The learned encoder: its file, its blocks, its training."""

import json
import random
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from common.config import RecallConfig
from common.errors import InvalidInput, NotFound
from jobs.soft_prompt import lessons_of, measure
from models.encoders.encoding_queue import RecalledMemory
from models.encoders.soft_prompt import SoftPrompt, load_soft_prompt, read_soft_prompt, save_soft_prompt
from models.kv import prefix as kv
from tests.support.models import ask, encode, make_engine
from train.encoders.soft_prompt import soft_loss, teach, train_soft_prompt


@pytest.fixture
def file(loaded, tmp_path):
    torch.manual_seed(1)
    path = tmp_path / "encoder.safetensors"
    module = SoftPrompt(loaded.model.config.hidden_size, 4)
    save_soft_prompt(module, path, {"model_digest": loaded.digest, "steps": 0})
    return path


def rewritten(path, change, **note):
    data = path.read_bytes()
    tensors, end = load(data), 8 + int.from_bytes(data[:8], "little")
    change(tensors)
    return save(tensors, {**json.loads(data[8:end])["__metadata__"], **note})


def test_a_file_loads_with_a_report_of_what_it_held(loaded, file):
    module, report = load_soft_prompt(str(file), loaded)
    assert report.complete and report.loaded == sorted(module.state_dict())
    assert (report.skipped, report.missing, report.shape_errors) == ([], [], {})
    assert report.provenance == {"model_digest": loaded.digest, "steps": 0}
    again = load_soft_prompt(str(file), loaded)[1]
    assert again.digest == report.digest


def test_what_does_not_fit_is_named_and_not_served(loaded, file):
    def spoil(tensors):
        del tensors["norm.weight"]
        tensors["places"] = torch.zeros(4, 10)
        tensors["extra"] = torch.zeros(1)

    file.write_bytes(rewritten(file, spoil))
    module, report = read_soft_prompt(file.read_bytes(), loaded.model.config.hidden_size)
    assert not report.complete and report.missing == ["norm.weight"] and report.skipped == ["extra"]
    assert report.shape_errors == {"places": ([4, 10], [4, module.width])}
    assert "norm.bias" in report.loaded
    with pytest.raises(InvalidInput, match=r"missing \['norm.weight'\], of another shape.*places"):
        load_soft_prompt(str(file), loaded)


def test_files_of_another_model_or_of_nothing_are_refused(loaded, file, tmp_path):
    with pytest.raises(InvalidInput, match="trained for base weights"):
        load_soft_prompt(str(file), replace(loaded, digest="another"))
    with pytest.raises(NotFound, match="no such file"):
        load_soft_prompt(str(tmp_path / "none"), loaded)
    for junk in (b"", b"no tensors here", save({"a": torch.zeros(1)})):
        file.write_bytes(junk)
        with pytest.raises(InvalidInput, match="not a trained soft prompt"):
            load_soft_prompt(str(file), loaded)


def test_its_blocks_serve_and_are_fewer_slots(loaded, file, tmp_path):
    recall = RecallConfig(encoder="soft_prompt", soft_prompt=str(file), reprocess="none")
    engine = make_engine(loaded, tmp_path, recall=recall)
    memories = [
        RecalledMemory(id="ada", text="Ada Quill lives in Lisbon."),
        RecalledMemory(id="short", text="A b"),
    ]
    assert encode(engine, memories) == 2
    answer, turn = ask(engine, memories, "prefix", max_tokens=3)
    assert answer
    assert turn.fallback is None and turn.prefix_tokens == len(engine.queue.builder.head) + 8
    assert engine.status()["encoder"]["report"]["complete"]


def test_as_many_slots_as_tokens_and_nothing_learned_is_the_text(loaded, builder):
    torch.manual_seed(1)
    memory = builder.memory("Ada Quill lives in Lisbon.")
    module = SoftPrompt(loaded.model.config.hidden_size, len(memory)).eval()
    embedded = loaded.model.get_input_embeddings()(torch.tensor(memory))
    assert torch.allclose(module(embedded), embedded, atol=1e-5)


@pytest.mark.slow
def test_forty_steps_bring_answers_nearer_on_memories_never_seen(loaded):
    lessons = random.Random(1).sample([lesson for seed in range(4) for lesson in lessons_of(seed)], 32)
    unseen = lessons_of(99)[::16]
    losses = []
    module = train_soft_prompt(loaded, lessons, steps=40, report=lambda step, loss: losses.append(loss))
    assert len(losses) == 40
    torch.manual_seed(1)
    before = measure(loaded, SoftPrompt(module.width, module.slots).eval(), unseen)
    after = measure(loaded, module, unseen)
    print(f"loss on unseen memories: {before:.3f} before, {after:.3f} after")
    assert after < before
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_with_a_soft_embedding_for_every_token_the_loss_is_that_of_the_text(loaded, builder):
    taught = [teach(loaded, builder, lesson) for lesson in lessons_of(1)[:60:50]]
    wanted = []
    for one in taught:
        ids = torch.tensor([[*builder.head, *one.memory, *one.tail, *one.answer[:-1]]])
        with torch.inference_mode():
            told = loaded.model(input_ids=ids).logits[0, -len(one.answer) :].log_softmax(-1)
        wanted.append(-(one.shares * told.gather(1, one.likely)).sum(-1))
    module = SoftPrompt(loaded.model.config.hidden_size, max(len(one.memory) for one in taught)).eval()
    head = kv.encode_head(loaded.model, builder.head)
    with torch.inference_mode():
        loss = soft_loss(loaded.model, module, head, taught)
    assert torch.allclose(loss, torch.cat(wanted).mean(), atol=1e-3)
