"""Constrained answers: what they cost a batch, whether they are valid, and what a new schema costs.

    python benchmarks/constrained.py [--model MODEL] [--dtype float32] [--schemas 200] [--rows 8] [--repeats 3]

`batch`: tokens a second of a full batch: all rows free, half of them constrained by a schema, half of them free to call
a tool, alternating; medians of the repeats, every row of the same length. `valid`: answers to random schemas, drawn
from a seed, that parse and validate; those that `--max-tokens` cut are counted apart. `first_token`: milliseconds from
a request to its first token on an idle engine, with a schema that is new and with the same one again; `compile`: the
part of it before the request joins the batch.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jsonschema

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.batching import make_engine
from benchmarks.provenance import of_model
from common.files import write_json
from models.engine.engine import Engine
from models.engine.generation_stats import GenerationStats
from models.engine.request import Request
from models.engine.sampling import Sampling
from models.text.grammar import Grammar, schema_text
from models.weights.adapters import BASE
from models.weights.load import load_model

Json = dict[str, Any]
WORDS = "river bread tide clock owl bridge salt kite glass map größe 都市".split()
# Neither of them ends within the answers of `batch`.
ITEM = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}, "count": {"type": "integer"}},
        "required": ["name", "count"], "additionalProperties": False}  # fmt: skip
LONG = Grammar(schema=schema_text({"type": "array", "items": ITEM, "minItems": 1000}, "schema"))
CALLING = Grammar(tools=(("look", schema_text(ITEM, "tools")),))
MIXES = {"free": None, "half a schema": LONG, "half may call": CALLING}


def schema_of(rng: random.Random, depth: int = 0) -> Json:
    """Objects of up to 4 keys, 3 deep, of strings, numbers, enumerations, arrays."""
    kinds = ["string", "integer", "number", "boolean", "enum", "array"] + (["object"] if depth < 3 else [])
    kind = rng.choice(kinds) if depth else "object"
    if kind == "object":
        names = rng.sample(WORDS, rng.randint(1, 4))
        required = [name for name in names if rng.random() < 0.7]
        inner = {name: schema_of(rng, depth + 1) for name in names}
        return {"type": "object", "properties": inner, "required": required, "additionalProperties": False}
    if kind == "array":
        return {"type": "array", "items": schema_of(rng, depth + 1), "maxItems": rng.randint(1, 3)}
    if kind == "string":
        return {"type": "string", "maxLength": rng.randint(3, 20)}
    if kind == "enum":
        return {"enum": rng.sample([*WORDS, 1, 2.5, None, True], 3)}
    return {"type": kind, **({} if kind == "boolean" else {"minimum": 0, "maximum": rng.randint(1, 1000)})}


def submit(engine: Engine, text: str, limit: int, grammar: Grammar | None, **more: Any) -> Request:
    return engine.submit(
        [{"role": "user", "content": text}],
        [],
        namespace="bench",
        adapter=BASE,
        sampling=Sampling(max_tokens=limit, grammar=grammar, **more),
        turn=GenerationStats(mode="off"),
    )


def run(engine: Engine, requests: Sequence[Request]) -> None:
    while engine.busy:
        engine.step()
    for request in requests:
        if request.error is not None:
            raise request.error


def rate(engine: Engine, rows: int, limit: int, grammar: Grammar | None) -> float:
    """Tokens a second of a batch, half of whose rows have this grammar. Prompts run before the clock does."""
    requests = [
        submit(
            engine, f"Write about the {WORDS[i % 10]}.", limit, grammar if i % 2 else None, min_tokens=limit
        )
        for i in range(rows)
    ]
    while len(engine.scheduler.running) < rows:
        engine.step()
    before = sum(request.turn.completion_tokens for request in requests)
    started = time.perf_counter()
    run(engine, requests)
    return (sum(request.turn.completion_tokens for request in requests) - before) / (
        time.perf_counter() - started
    )


def batches(engine: Engine, rows: int, limit: int, repeats: int) -> Json:
    rates: dict[str, list[float]] = {name: [] for name in MIXES}
    for grammar in MIXES.values():
        rate(engine, rows, 4, grammar)  # warms up
    for _ in range(repeats):
        for name, grammar in MIXES.items():
            rates[name].append(rate(engine, rows, limit, grammar))
    median = {name: statistics.median(values) for name, values in rates.items()}
    ratio = {name: value / median["free"] for name, value in median.items()}
    return {"rows": rows, "tokens": limit, "tokens_a_second": rates, "median": median, "to_free": ratio}


def validity(engine: Engine, count: int, limit: int) -> Json:
    """Half of the answers greedy, half of them drawn, all in one queue."""
    rng = random.Random(1337)
    schemas = [schema_of(rng) for _ in range(count)]
    requests = [
        submit(
            engine,
            f"Invent something about {rng.choice(WORDS)}, as JSON.",
            limit,
            Grammar(schema=schema_text(schema, "schema")),
            **({"temperature": 1.0, "seed": i} if i % 2 else {}),
        )
        for i, schema in enumerate(schemas)
    ]
    run(engine, requests)
    valid = sum(_is_valid(request, schema) for request, schema in zip(requests, schemas, strict=True))
    cut = ["".join(request.pieces)[-80:] for request in requests if request.turn.finish_reason == "length"]
    tokens = sum(request.turn.completion_tokens for request in requests)
    return {
        "schemas": count,
        "valid": valid,
        "cut": len(cut),
        "ends_of_cut": cut,
        "max_tokens": limit,
        "tokens": tokens,
    }


def _is_valid(request: Request, schema: Json) -> bool:
    try:
        jsonschema.validate(json.loads("".join(request.pieces)), schema)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def first_tokens(engine: Engine, count: int) -> Json:
    rng = random.Random(7)
    taken: dict[str, list[float]] = {"no schema": [], "new": [], "again": [], "compile": []}
    for _ in range(count):
        grammar = Grammar(schema=schema_text(schema_of(rng), "schema"))
        taken["no schema"].append(_until_first(engine, None))
        started = time.perf_counter()
        engine.grammars.matcher(grammar)
        taken["compile"].append(1e3 * (time.perf_counter() - started))
        taken["new"].append(taken["compile"][-1] + _until_first(engine, grammar))
        taken["again"].append(_until_first(engine, grammar))
    return {name: {"median_ms": statistics.median(each), "max_ms": max(each)} for name, each in taken.items()}


def _until_first(engine: Engine, grammar: Grammar | None) -> float:
    started = time.perf_counter()
    request = submit(engine, "Invent something, as JSON.", 1, grammar)
    run(engine, [request])
    return 1e3 * (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--schemas", type=int, default=200)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/constrained.json"))
    options = parser.parse_args()
    loaded = load_model(options.model, options.dtype)
    with TemporaryDirectory() as scratch:
        engine = make_engine(loaded, Path(scratch), max_batch=options.rows)
        started = time.perf_counter()
        assert engine.grammars.tokenizer
        report = {
            **of_model(loaded, options.model),
            "tokenizer_s": time.perf_counter() - started,
            "first_token": first_tokens(engine, 20),
            "batch": batches(engine, options.rows, options.tokens, options.repeats),
            "valid": validity(engine, options.schemas, options.max_tokens),
        }
    write_json(options.out, report)
    print({key: report[key] for key in ("first_token", "batch", "valid")})


if __name__ == "__main__":
    main()
