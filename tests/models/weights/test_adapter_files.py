"""A damaged adapter is refused where it is published, where an alias would name it, and where it is loaded."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.random_adapters import random_adapters
from common.errors import Conflict, InvalidInput
from models.weights.adapter_files import fault_of
from models.weights.adapters import AdapterStore
from models.weights.load_report import check_folder
from models.weights.versions import ModelVersions
from tests.support.adapters import DAMAGES, A, change_config, change_tensors


@pytest.mark.parametrize("says", DAMAGES)
def test_a_damaged_folder_is_refused_wherever_it_comes_in(says, loaded, trained, tmp_path):
    store = AdapterStore(tmp_path / "adapters")
    versions = ModelVersions(loaded, store, 2)
    good, bad = trained
    manifest = {"namespace": "n", "model_digest": loaded.digest}
    latest, digest = store.publish(good, manifest), store.publish(bad, manifest, alias=None)
    DAMAGES[says](bad)
    with pytest.raises(InvalidInput, match=says):
        store.publish(bad, manifest)
    with pytest.raises(Conflict, match=says):
        check_folder(loaded.model, bad)
    DAMAGES[says](store.path(digest))  # on the disk, after it was published
    with pytest.raises(Conflict, match=says):
        store.set_alias("latest", digest)
    assert store.resolve("base:latest", "m") == latest
    for use in (versions.check, versions.hold):
        with pytest.raises(Conflict, match=says):
            use(digest)
    versions.check(latest)
    with versions.using(latest):
        assert versions.loaded == [latest]
    versions.retire(latest)


def test_changed_values_are_not_the_version_that_was_published(loaded, trained, tmp_path):
    store = AdapterStore(tmp_path / "adapters")
    digest = store.publish(trained[0], {"model_digest": loaded.digest}, alias=None)
    change_tensors(store.path(digest), lambda tensors: tensors[A].mul_(2))
    assert fault_of(store.path(digest)) is None
    with pytest.raises(Conflict, match="not what it was when it was published"):
        store.set_alias("latest", digest)
    with pytest.raises(Conflict, match="not what it was when it was published"):
        ModelVersions(loaded, store, 1).hold(digest)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_largest_finite_values_pass(dtype, trained):
    def largest(tensors):
        for name, tensor in tensors.items():
            tensors[name] = torch.full_like(tensor, torch.finfo(dtype).max, dtype=dtype)

    change_tensors(trained[0], largest)
    assert fault_of(trained[0]) is None


def test_a_whole_adapter_of_another_model_is_refused(loaded, tmp_path):
    small = LlamaConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=99)
    folder = random_adapters(small, tmp_path)[0]
    assert fault_of(folder) is None
    check_folder(LlamaForCausalLM(small), folder)
    store = AdapterStore(tmp_path / "adapters")
    digest = store.publish(folder, {"model_digest": loaded.digest}, alias=None)
    with pytest.raises(Conflict, match="8 tensors of another shape, 0 without a module, 112 missing"):
        ModelVersions(loaded, store, 1).check(digest)


def test_a_pattern_of_modules_is_read_as_peft_reads_it(trained):
    for folder in trained:
        change_config(folder, target_modules=r".*\.(q|v)_proj")
    assert fault_of(trained[0]) is None
    change_config(trained[0], target_modules=r".*\.q_proj")
    assert "belongs to no module" in fault_of(trained[0])
    change_config(trained[1], target_modules="(")
    assert "must name modules" in fault_of(trained[1])
