"""Engines, requests and tiny models for the tests of the language model."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from common.config import RecallConfig, ServeConfig
from models.encoders.encoding_queue import Recalled
from models.engine.engine import Engine
from models.engine.generation_stats import Turn
from models.engine.sampling import Sampling
from models.kv.blocks import BlockStore
from models.weights.adapters import BASE, AdapterStore
from models.weights.load import dequantised, resolve
from models.weights.versions import Weights

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


WORDS = "amber basil cedar dune ember fjord grove heron iris jade kelp linen".split()


def memory(number: int, rng: random.Random) -> Recalled:
    words = " ".join(rng.choices(WORDS, k=rng.randint(2, 14)))
    return Recalled(id=f"m{number}", text=f"Box {number} holds {words}.")


def question(rng: random.Random) -> list[dict]:
    text = f"What does box {rng.randint(0, 9)} hold? " + " ".join(rng.choices(WORDS, k=rng.randint(0, 30)))
    return [{"role": "user", "content": text}]


def submit(engine, case):
    messages, memories, mode, adapter, sampling = case
    return engine.submit(
        messages, memories, namespace="n", adapter=adapter, sampling=sampling, turn=Turn(mode=mode)
    )


def text_of(answer) -> str:
    assert answer.done
    if answer.error:
        raise answer.error
    return "".join(answer.pieces)


def alone(engine, case) -> str:
    answer = submit(engine, case)
    while not answer.done:
        engine.step()
    return text_of(answer)


def together(engine, cases, rng) -> tuple[list[str], int]:
    """The answers of requests that join in random order, and how many ran at once."""
    waiting, answers, most = [*enumerate(cases)], {}, 0
    rng.shuffle(waiting)
    while waiting or engine.busy:
        while waiting and rng.random() < 0.6:
            number, case = waiting.pop()
            answers[number] = submit(engine, case)
        engine.step()
        most = max(most, len(engine._running))
    return [text_of(answers[number]) for number in range(len(cases))], most


def ragged(rng: random.Random, memories: Sequence[Recalled], versions: Sequence[str], count: int) -> list:
    """Cases of every kind, as `submit` takes them: messages, memories, mode, version, sampling."""
    return [
        (
            question(rng),
            rng.sample(memories, rng.randint(1, 4)),
            rng.choice(["prefix", "prefix", "hybrid", "text", "off"]),
            rng.choice(versions),
            Sampling(max_tokens=rng.randint(1, 12)),
        )
        for _ in range(count)
    ]


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
