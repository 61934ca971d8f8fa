"""Shared and expensive: the real small model, once a session."""

import os
import shutil

import pytest
from hypothesis import settings

# How long an example takes says how busy the machine is.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # several processes share two cores: waiting must not spin
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Of one model, here or in an instance: as many as make all workers' the cores, beyond which each only slows the others.
THREADS = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


# Workers of `pytest -n` take whole folders, since the tests of one share what is expensive: the model, or in
# tests/system one running instance. These files of it have processes of their own, and may run beside the others.
APART = ("test_crash", "test_packaging", "test_reshard", "test_start", "test_two_nodes")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class ByFolder(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            _, folder, *more = nodeid.partition("::")[0].split("/")
            apart = folder == "system" and more[0].removesuffix(".py") in APART
            return f"{folder}/{more[0]}" if apart else folder

    return ByFolder(config, log)


@pytest.fixture(scope="session")
def loaded():
    """SmolLM2-135M-Instruct in float32."""
    import torch

    from models.weights.load import load_model

    torch.set_num_threads(THREADS)
    return load_model("smollm2-135m", "float32")


@pytest.fixture(scope="session")
def shallow(loaded):
    """Its first layers, three times as fast: for what must hold of any weights, where no answer need make sense."""
    import copy
    from dataclasses import replace

    layers = 6
    model = copy.copy(loaded.model)
    model._modules = {**model._modules, "model": copy.copy(loaded.model.model)}
    model.config = model.model.config = copy.deepcopy(loaded.model.config)
    model.config.num_hidden_layers = layers
    model.config.layer_types = None
    model.model._modules = {**model.model._modules, "layers": loaded.model.model.layers[:layers]}
    return replace(loaded, model=model, digest=f"{loaded.digest}-{layers}")


@pytest.fixture(scope="session")
def builder(loaded):
    from models.text.prompt import PromptBuilder

    return PromptBuilder(loaded.tokenizer)


@pytest.fixture(scope="session")
def adapter_folders(loaded, tmp_path_factory):
    """Two PEFT folders whose weights change the answer: random, which is enough to tell versions apart."""
    from benchmarks.random_adapters import random_adapters

    return random_adapters(loaded.model.config, tmp_path_factory.mktemp("adapters"))


@pytest.fixture
def trained(adapter_folders, tmp_path):
    """The same, for one test to change."""
    return [shutil.copytree(folder, tmp_path / folder.name) for folder in adapter_folders]


LONGEST_TEXT = 4096  # bytes; a text of the default 16,384 takes a CPU 15 s to encode


@pytest.fixture(scope="session")
def instance(tmp_path_factory):
    """A running instance with two shards, as `sharpwave up` starts it; tests use namespaces of their own."""
    from common import config
    from jobs.instance import instance as instances

    store = tmp_path_factory.mktemp("instance") / "store"
    settings = config.load(
        overrides={
            "store.dir": str(store),
            "serve.port": 0,
            "serve.max_body_bytes": 1 << 20,
            "store.max_text_bytes": LONGEST_TEXT,
            "model.threads": THREADS,
            "embed.aliases": ["text-embedding-ada-002"],
        }
    )
    try:
        yield instances.up(settings)
    finally:
        instances.down(store)


KEYS = {
    "key-anna": ["anna"],
    "key-ben": {"namespaces": ["ben"], "memory": "text"},
    "key-both": ["anna", "ben"],
    "key-quiet": {"namespaces": ["anna", "ben"], "namespace": "ben", "memory": "off"},
    "key-all": ["*"],
}


@pytest.fixture(scope="session")
def guarded(tmp_path_factory):
    """A running instance with API keys, one of each kind, and mem0's interface."""
    from common import config
    from jobs.instance import instance as instances

    store = tmp_path_factory.mktemp("guarded") / "store"
    settings = config.load(
        overrides={
            "store.dir": str(store),
            "serve.port": 0,
            "serve.api_keys": KEYS,
            "serve.mem0": True,
            "model.threads": THREADS,
        }
    )
    try:
        yield instances.up(settings)
    finally:
        instances.down(store)


@pytest.fixture
def http(instance):
    """An HTTP client on the running instance."""
    import httpx

    with httpx.Client(base_url=instance.url, timeout=180) as client:
        yield client


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory):
    """A real redis-server that syncs every write; tests use key prefixes of their own."""
    from tests.support.redis_server import RedisServer

    server = RedisServer(tmp_path_factory.mktemp("redis") / "server")
    yield server
    server.kill()
