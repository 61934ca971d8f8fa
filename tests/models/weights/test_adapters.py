"""Versions that were trained on what is gone."""

import shutil

import pytest

from common.errors import InvalidInput, NotFound
from common.types import MODES
from models.weights.adapters import BASE, AdapterStore


@pytest.fixture
def store(trained, tmp_path):
    """Two versions of namespace `n`, the newer one `latest`, and no other."""
    store = AdapterStore(tmp_path / "adapters")
    for number, folder in enumerate(trained):
        manifest = {"namespace": "n", "created": float(number), "memory_ids": ["both", f"only{number}"]}
        store.publish(folder, manifest)
    store.old, store.new = (manifest["digest"] for manifest in store.manifests())
    return store


def test_versions_trained_on_what_is_gone_lose_their_aliases(store):
    store.set_alias("stable", store.old)
    assert store.withdraw("n", {"other"}) == store.withdraw("another", {"both"}) == []
    assert store.withdraw("n", {"only1"}) == [store.new]
    assert store.aliases() == {"latest": store.old, "stable": store.old}
    assert store.withdraw("n", {"both"}) == [store.old, store.new]
    assert store.aliases() == {"latest": BASE, "stable": BASE}
    assert store.resolve("base:latest", "m") == BASE == store.names("m")["base:latest"]
    assert store.resolve(f"base:{store.new}", "m") == store.new, "by digest it can still be asked for"
    store.set_alias("latest", store.new)
    assert store.resolve("base:latest", "m") == store.new


def test_an_alias_never_moves_to_one_that_was_withdrawn(store):
    store.withdraw("n", {"only0"})
    assert store.aliases() == {"latest": store.new}
    store.withdraw("n", {"only1"})
    assert store.aliases() == {"latest": BASE}


def test_a_version_that_was_retired_is_no_longer_withdrawn(store, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(store.path(store.old), copy)
    store.withdraw("n", {"only0"})
    store.retire(store.old, with_aliases=True)
    manifest = {"namespace": "n", "memory_ids": ["again"]}
    assert store.publish(copy, manifest, alias=None) == store.old
    assert store.withdraw("n", {"only1"}) == [store.new]
    assert store.aliases()["latest"] == store.old


def test_an_alias_does_not_move_to_a_damaged_version(store):
    (store.path(store.old) / "adapter_model.safetensors").write_bytes(b"short")
    store.withdraw("n", {"only1"})
    assert store.aliases() == {"latest": BASE}
    with pytest.raises(NotFound):
        store.check("0123456789abcdef")


@pytest.mark.parametrize("alias", MODES)
def test_an_alias_is_never_called_like_a_memory_mode(store, alias):
    with pytest.raises(InvalidInput, match="memory modes"):
        store.set_alias(alias, store.old)
    assert store.aliases() == {"latest": store.new}
