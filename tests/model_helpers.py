"""Engines, requests and tiny models for the tests of the language model."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from common.config import RecallConfig, ServeConfig
from models.adapters import BASE, AdapterStore
from models.blocks import BlockStore
from models.engine import Engine
from models.load import dequantised, resolve
from models.sampling import Sampling
from models.turn import Turn
from models.weights import Weights

QUESTION = [{"role": "user", "content": "Where does Ada Quill live?"}]


def make_engine(loaded, folder: Path, *, recall: RecallConfig | None = None, **serve: Any) -> Engine:
    """Of its own weights, over the blocks and adapters in `folder`, which several may share."""
    weights = Weights(loaded, AdapterStore(folder / "adapters"), 4)
    blocks = BlockStore(folder / "blocks", 1 << 30)
    return Engine(loaded, weights, blocks, recall or RecallConfig(), ServeConfig(**serve))


def encode(engine: Engine, memories=(), adapter: str = BASE, namespace: str = "n") -> int:
    """Have these memories' blocks, and all that wait, encoded. Returns how many were."""
    engine.enqueue(namespace, memories, adapter)
    done = 0
    while count := engine.encode_some():
        done += count
    return done


def ask(engine: Engine, memories, mode: str, *, adapter=BASE, namespace="n", messages=QUESTION, **sampling):
    """The answer to one request, and what happened in it."""
    turn = Turn(mode=mode)
    pieces = engine.answer(
        messages,
        memories,
        namespace=namespace,
        adapter=adapter,
        sampling=Sampling(**{"max_tokens": 12, **sampling}),
        turn=turn,
    )
    return "".join(pieces), turn


def write_tiny_llama(folder: Path, **changes: Any) -> str:
    """A random two-layer Llama with the real tokenizer, as a folder: no answer of its is right, but it has
    gradients."""
    tokenizer = AutoTokenizer.from_pretrained(dequantised(Path(resolve("smollm2-135m"))))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, eos_token_id=2,
        bos_token_id=1, **changes,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
