"""Engines, requests and tiny models for the tests of the language model."""

import random
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from common.config import RecallConfig, ServeConfig
from models.encoders.encoding_queue import RecalledMemory
from models.engine.engine import Engine
from models.engine.generation_stats import GenerationStats
from models.engine.request import Request
from models.engine.sampling import Sampling, exponential_noise
from models.kv.blocks import BlockStore
from models.kv.prefix import Prefill
from models.weights.adapters import BASE, AdapterStore
from models.weights.load import dequantised, resolve
from models.weights.versions import ModelVersions

QUESTION = [{"role": "user", "content": "Where does Ada Quill live?"}]


def make_engine(loaded, folder: Path, *, recall: RecallConfig | None = None, **serve: Any) -> Engine:
    """Of its own weights, over the blocks and adapters in `folder`, which several may share."""
    weights = ModelVersions(loaded, AdapterStore(folder / "adapters"), 4)
    blocks = BlockStore(folder / "blocks", 1 << 30)
    return Engine(loaded, weights, blocks, recall or RecallConfig(), ServeConfig(**serve))


def encode(engine: Engine, memories=(), adapter: str = BASE, namespace: str = "n") -> int:
    """Have these memories' blocks, and all that wait, encoded. Returns how many were."""
    engine.enqueue(namespace, memories, adapter)
    done = 0
    while count := engine.encode_some():
        done += count
    return done


def case_of(memories, mode: str, *, adapter=BASE, messages=QUESTION, **sampling):
    """One request, as `submit` takes it; 12 tokens at most unless `sampling` has other limits."""
    return messages, memories, mode, adapter, Sampling(**{"max_tokens": 12, **sampling})


def ask(
    engine: Engine,
    memories,
    mode: str,
    *,
    adapter=BASE,
    namespace="n",
    messages=QUESTION,
    attribute=False,
    **sampling,
):
    """The answer to one request, and what happened in it."""
    turn = GenerationStats(mode=mode)
    pieces = engine.answer(
        messages,
        memories,
        namespace=namespace,
        adapter=adapter,
        sampling=Sampling(**{"max_tokens": 12, **sampling}),
        turn=turn,
        attribute=attribute,
    )
    return "".join(pieces), turn


WORDS = "amber basil cedar dune ember fjord grove heron iris jade kelp linen".split()


def memory(number: int, rng: random.Random) -> RecalledMemory:
    words = " ".join(rng.choices(WORDS, k=rng.randint(2, 14)))
    return RecalledMemory(id=f"m{number}", text=f"Box {number} holds {words}.")


def question(rng: random.Random) -> list[dict]:
    text = f"What does box {rng.randint(0, 9)} hold? " + " ".join(rng.choices(WORDS, k=rng.randint(0, 30)))
    return [{"role": "user", "content": text}]


def submit(engine, case, *, attribute=False):
    messages, memories, mode, adapter, sampling = case
    return engine.submit(
        messages,
        memories,
        namespace="n",
        adapter=adapter,
        sampling=sampling,
        turn=GenerationStats(mode=mode),
        attribute=attribute,
    )


def text_of(answer) -> str:
    assert answer.done
    if answer.error:
        raise answer.error
    return "".join(answer.pieces)


def run_alone(engine, case) -> Request:
    answer = submit(engine, case)
    while not answer.done:
        engine.step()
    text_of(answer)
    return answer


def alone(engine, case) -> str:
    return text_of(run_alone(engine, case))


def run_all(engine, cases) -> list[Request]:
    """These requests, submitted at once and answered together."""
    answers = [submit(engine, case) for case in cases]
    while engine.busy:
        engine.step()
    return answers


def together(engine, cases, rng) -> tuple[list[Request], int]:
    """Requests that join in random order and have been answered, and how many ran at once."""
    waiting, answers, most = [*enumerate(cases)], {}, 0
    rng.shuffle(waiting)
    while waiting or engine.busy:
        while waiting and rng.random() < 0.6:
            number, case = waiting.pop()
            answers[number] = submit(engine, case)
        engine.step()
        most = max(most, engine.scheduler.num_running)
    return [answers[number] for number in range(len(cases))], most


def ragged(
    rng: random.Random, memories: Sequence[RecalledMemory], versions: Sequence[str], count: int
) -> list:
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


TIE = 1e-3  # of logits: about ten times what rounding changes between batch sizes and processors
MOST_TIES = 0.1  # of the answers that are compared


def assert_same_answers(engine, cases, requests, expected) -> int:
    """Require the same tokens of `requests` as of `expected`, which ran `cases` alone, or in other company.

    Where two answers differ, the first difference must be a near-tie: a naive forward pass over the prompt and the
    tokens so far, without any cache of the engine, must score both choices within `TIE` of its best. What follows a
    near-tie is not compared. No more than `MOST_TIES` of the answers (or one) may end so. Returns how many did.
    """
    ties = 0
    for case, request, lone in zip(cases, requests, expected, strict=True):
        for answer in (request, lone):
            if answer.error:
                raise answer.error
        if request.tokens == lone.tokens:
            assert text_of(request) == text_of(lone)
            continue
        pairs = enumerate(zip(request.tokens, lone.tokens, strict=False))
        place = next((n for n, (one, other) in pairs if one != other), None)
        assert place is not None, f"one answer ends before the other: {request.tokens} {lone.tokens}"
        gaps = [gap_of(engine, case, lone.tokens[:place], r.tokens[place]) for r in (request, lone)]
        assert max(gaps) <= TIE, f"answers differ at token {place} by {gaps} logits: no near-tie"
        ties += 1
    assert ties <= max(1, MOST_TIES * len(expected)), (
        f"{ties} of {len(expected)} answers diverge at near-ties"
    )
    return ties


@torch.inference_mode()
def assert_greedy(model, prompt: Sequence[int], tokens: Sequence[int]) -> None:
    """Require that each of `tokens` scores within `TIE` of the best one in a naive forward pass, with no cache, over
    `prompt` and the tokens before it."""
    ids = torch.tensor([[*prompt, *tokens]], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float().cpu()
    gaps = logits.max(-1).values - logits[range(len(tokens)), list(tokens)]
    assert gaps.max() <= TIE, f"not the best tokens, by {gaps.tolist()} logits"


@torch.inference_mode()
def gap_of(engine, case, before: Sequence[int], token: int) -> float:
    """By how many logits `token` falls short of the choice of a naive pass behind the tokens `before`."""
    sampling = case[4]
    request = submit(engine, case)
    prompt = request.prompt
    engine.cancel(request)
    values = [prompt.values]
    overlaid = engine.overlay.rows(values) if engine.overlay else nullcontext()
    with engine.versions.using(case[3]) as model, overlaid:
        prefill = Prefill(prompt.prefix, [*prompt.ids, *before], engine.loaded.model.config)
        while not prefill.done:
            prefill.advance(model, 1 << 20)
    logits = prefill.logits.float().cpu()
    if request.bias is not None:
        logits = logits + request.bias.cpu()
    if sampling.temperature == 0.0:
        return float(logits.max() - logits[token])
    generator = sampling.generator()
    for _ in range(len(before) + 1):
        noise = exponential_noise(len(logits), generator)
    probabilities = torch.softmax(logits.double() / sampling.temperature, dim=-1)
    scores = logits.double() - sampling.temperature * noise.log()
    ordered = probabilities.sort(descending=True).values
    above, gaps = ordered.cumsum(0) - ordered, []
    for shift in (-TIE, 0.0, TIE):  # a token may be at the border of the nucleus
        kept = (
            probabilities >= ordered[above < max(sampling.top_p + shift, 1e-9)].min()
            if sampling.top_p < 1
            else scores > -torch.inf
        )
        if kept[token]:
            gaps.append(float(scores[kept].max() - scores[token]))
    return min(gaps, default=float("inf"))
