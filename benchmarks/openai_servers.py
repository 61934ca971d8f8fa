"""Servers with OpenAI's interface beside each other: time to first token and tokens per second over HTTP.

    sharpwave up --set serve.port=8123
    vllm serve FOLDER --port 8200 --dtype float32 --enforce-eager
    python benchmarks/openai_servers.py --server sharpwave,http://127.0.0.1:8123,base:off \\
        --server vllm,http://127.0.0.1:8200,FOLDER [--repeats 3] [--clients 1 8]

The same weights should stand behind both; FOLDER is the one that `model.name` names, or into which a GGUF file was
dequantised (`models.weights.load`). The requests are those of `batching.py`: prompts and answers of unequal lengths,
greedy, streamed, with `ignore_eos`, so that every server generates as many tokens. No request comes twice to a server:
some keep the states of prompts that they have seen, and would be measured without prefill. Closed loop: each client
sends its next request when the last one is answered. The servers take turns and only one works at a time; medians of
the repeats, and each server's ratio to the last one named.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.batching import Request, requests
from benchmarks.provenance import command, hardware
from common.files import write_json

Json = dict[str, Any]


@dataclass(frozen=True)
class Server:
    name: str
    url: str
    model: str


async def ask(client: httpx.AsyncClient, server: Server, request: Request) -> tuple[float, int]:
    """Seconds to the first text, and the number of tokens."""
    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": request.text}],
        "max_tokens": request.limit,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started, first, tokens = time.perf_counter(), 0.0, 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        if reply.status_code != 200:
            raise RuntimeError(f"{server.name}: HTTP {reply.status_code}: {(await reply.aread())[:500]!r}")
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if not first and any(choice["delta"].get("content") for choice in event["choices"]):
                first = time.perf_counter() - started
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    if tokens != request.limit:
        raise RuntimeError(f"{server.name}: {tokens} tokens where {request.limit} were asked for")
    return first, tokens


async def load(server: Server, asked: Sequence[Request], clients: int) -> Json:
    waiting = [*reversed(asked)]
    firsts: list[float] = []
    tokens = 0

    async def work(client: httpx.AsyncClient) -> None:
        nonlocal tokens
        while waiting:
            first, generated = await ask(client, server, waiting.pop())
            firsts.append(first)
            tokens += generated

    async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:
        started = time.perf_counter()
        await asyncio.gather(*(work(client) for _ in range(clients)))
        seconds = time.perf_counter() - started
    return {"tokens_per_s": tokens / seconds, "first_s": statistics.median(firsts), "tokens": tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--server", action="append", required=True, help="NAME,URL,MODEL; the last one is the peer"
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/openai_servers.json"))
    args = parser.parse_args()
    servers = [Server(*given.split(",", 2)) for given in args.server]
    seeds = itertools.count(1337)
    found: dict[str, dict[str, list[Json]]] = {}
    for server in servers:
        asyncio.run(load(server, requests(2, next(seeds)), 1))  # what only the first request pays
    for repeat in range(args.repeats):
        for clients in args.clients:
            # One client needs no more than a share of the requests for as many tokens a second.
            count = args.requests if clients > 1 else max(4, args.requests // 4)
            asked = requests(count, next(seeds))  # the same for all servers
            for server in servers if repeat % 2 == 0 else [*reversed(servers)]:
                row = asyncio.run(load(server, asked, clients))
                found.setdefault(str(clients), {}).setdefault(server.name, []).append(row)
                print(f"{server.name:12} {clients} clients  {row['tokens_per_s']:.1f} tokens/s"
                      f"  first {1e3 * row['first_s']:.0f} ms", file=sys.stderr, flush=True)  # fmt: skip
    medians = {
        clients: {
            name: {key: statistics.median(row[key] for row in rows) for key in ("tokens_per_s", "first_s")}
            for name, rows in of.items()
        }
        for clients, of in found.items()
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.out, {"command": command(), "machine": hardware(), "medians": medians, "runs": found})
    for clients, by_name in medians.items():
        peer = by_name[servers[-1].name]
        for name, row in by_name.items():
            rate, first = (row[key] / peer[key] for key in ("tokens_per_s", "first_s"))
            print(f"{clients} clients  {name:12} {row['tokens_per_s']:6.1f} tokens/s ({rate:.2f} x)"
                  f"  first token {1e3 * row['first_s']:5.0f} ms ({first:.2f} x)")  # fmt: skip


if __name__ == "__main__":
    main()
