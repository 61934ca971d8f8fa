"""Clients against a running instance: latency, time to first token, tokens per second, errors by kind.

    sharpwave up
    python benchmarks/load.py http://127.0.0.1:8099 [--clients 4] [--seconds 60] [--out FILE]
    python benchmarks/load.py URL --rate 2                     open loop: two arrivals a second, independent of answers
    python benchmarks/load.py URL --mix chat=8,write=1,delete=1 --namespaces 4 --leave 0.05

Closed loop: each client sends its next request when the last one is answered. Open loop: arrivals are Poisson at
`--rate` and none waits for another, so latency includes the queue. Chats stream; a share of them (`--leave`)
disconnects after the first token, like users who close the page. Each namespace is taught `--memories` facts first. A
chat whose answer is based on a memory that this run had deleted before the question counts as `stale`. A line is
printed every `--window` seconds, so that a long run shows drift; the report holds all lines.
"""

import argparse
import asyncio
import json
import platform
import random
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.files import write_json

Json = dict[str, Any]
NAMES = "Ada Bo Cy Dee Eli Fay Gus Hal Ida Jon Kim Lou Mia Ned Oda Pip Quin Rae Sam Tia".split()
PLACES = "Lisbon Oslo Porto Turin Quito Kyoto Cairo Delhi Sofia Riga Perth Lima".split()
TIMEOUT_S = 300.0
PERCENTILES = (50, 95, 99)
STALE = "stale"  # the error of an answer that is wrong, where others are of none


@dataclass
class Sample:
    """One request. `first_s`: to the first token of a chat; `error`: what went wrong, if anything."""

    kind: str
    at: float
    seconds: float
    first_s: float | None = None
    tokens: int = 0
    error: str | None = None
    fallback: bool = False
    left: bool = False


@dataclass
class Space:
    """A namespace as this run knows it: facts that stand, and ids deleted before a given moment."""

    name: str
    facts: dict[str, str] = field(default_factory=dict)  # id -> person
    deleted: dict[str, float] = field(default_factory=dict)
    made: int = 0

    def fact(self, chance: random.Random) -> Json:
        self.made += 1
        person = f"{chance.choice(NAMES)} {chance.choice('BCDFGHKLMNPRSTVW')}{self.made}"
        return {
            "id": f"{self.name}-{self.made}",
            "text": f"{person} lives in {chance.choice(PLACES)}.",
            "person": person,
        }


class Load:
    def __init__(self, http: httpx.AsyncClient, options: argparse.Namespace) -> None:
        self.samples: list[Sample] = []
        self._http = http
        self._options = options
        self._chance = random.Random(options.seed)
        run = uuid.uuid4().hex[:8]
        self._spaces = [Space(f"load-{run}-{i}") for i in range(options.namespaces)]
        self._kinds = {"chat": self._chat, "write": self._write, "delete": self._delete}

    async def teach(self) -> None:
        """The facts that the first questions are about; their blocks are encoded before anything is measured."""
        for space in self._spaces:
            facts = [space.fact(self._chance) for _ in range(self._options.memories)]
            memories = [{"id": fact["id"], "text": fact["text"]} for fact in facts]
            answer = await self._http.post(
                "/v1/memories", json={"namespace": space.name, "memories": memories}
            )
            answer.raise_for_status()
            space.facts |= {fact["id"]: fact["person"] for fact in facts}
        while (await self._http.get("/ready")).json()["engine"]["pending_blocks"]:
            await asyncio.sleep(0.2)

    async def erase(self) -> None:
        for space in self._spaces:
            await self._http.post("/v1/memories/forget", json={"namespace": space.name, "all": True})

    async def closed(self, until: float) -> None:
        async def client() -> None:
            while time.monotonic() < until:
                await self._one()

        await asyncio.gather(*(client() for _ in range(self._options.clients)))

    async def open(self, until: float) -> None:
        running: set[asyncio.Task] = set()
        arrival = time.monotonic()
        while (arrival := arrival + self._chance.expovariate(self._options.rate)) < until:
            await asyncio.sleep(max(arrival - time.monotonic(), 0.0))
            task = asyncio.create_task(self._one(arrival))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)

    async def _one(self, arrival: float | None = None) -> None:
        """A request of the mix; measured from when it was due."""
        kinds, weights = zip(*self._options.mix.items(), strict=True)
        [kind] = self._chance.choices(kinds, weights)
        space = self._chance.choice(self._spaces)
        if kind != "write" and not space.facts:
            kind = "write"
        sample = Sample(kind, time.time(), 0.0)
        started = time.monotonic() if arrival is None else arrival
        try:
            await self._kinds[kind](space, sample, started)
        except httpx.HTTPError as error:
            sample.error = type(error).__name__
        sample.seconds = time.monotonic() - started
        self.samples.append(sample)

    async def _chat(self, space: Space, sample: Sample, started: float) -> None:
        person = self._chance.choice([*space.facts.values()])
        body = {
            "model": self._chance.choice(self._options.model.split(",")),
            "messages": [{"role": "user", "content": f"Where does {person} live?"}],
            "max_tokens": self._options.max_tokens,
            "memory": {"namespace": space.name, "mode": self._options.mode},
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        leaves = self._chance.random() < self._options.leave
        asked = time.monotonic()
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                await answer.aread()
                sample.error = _kind_of(answer)
                return
            async for event in _events(answer):
                if "error" in event:
                    sample.error = f"stream {event['error']['code']}"
                    return
                choices = event["choices"]
                if sample.first_s is None and choices and choices[0]["delta"].get("content"):
                    sample.first_s = time.monotonic() - started
                    if leaves:
                        sample.left = True
                        return
                self._told(space, sample, event, asked)

    def _told(self, space: Space, sample: Sample, event: Json, asked: float) -> None:
        if event.get("usage"):
            sample.tokens = event["usage"]["completion_tokens"]
        if memory := event.get("memory"):
            sample.fallback = memory["fallback"] is not None
            if any(space.deleted.get(id, asked) < asked for id in memory["injected"]):
                sample.error = STALE

    async def _write(self, space: Space, sample: Sample, _: float) -> None:
        fact = space.fact(self._chance)
        memory = {"id": fact["id"], "text": fact["text"]}
        body = {"namespace": space.name, "memories": [memory]}
        answer = await self._http.post("/v1/memories", json=body)
        if answer.status_code != 200:
            sample.error = _kind_of(answer)
        elif answer.json()["memories"][0]["id"] == fact["id"]:
            space.facts[fact["id"]] = fact["person"]

    async def _delete(self, space: Space, sample: Sample, _: float) -> None:
        id = self._chance.choice([*space.facts])
        del space.facts[id]
        answer = await self._http.delete(f"/v1/memories/{id}", params={"namespace": space.name})
        if answer.status_code != 200:
            sample.error = _kind_of(answer)
        else:
            space.deleted[id] = time.monotonic()


async def _events(answer: httpx.Response) -> AsyncIterator[Json]:
    async for line in answer.aiter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


def _kind_of(answer: httpx.Response) -> str:
    try:
        return f"{answer.status_code} {answer.json()['error']['code']}"
    except (ValueError, KeyError):
        return str(answer.status_code)


def summary(samples: list[Sample], seconds: float) -> Json:
    """By kind of request; seconds of the answered ones, and what became of the others."""
    told: Json = {}
    for kind in sorted({sample.kind for sample in samples}):
        of_kind = [sample for sample in samples if sample.kind == kind]
        good = [sample for sample in of_kind if sample.error is None and not sample.left]
        told[kind] = {
            "requests": len(of_kind),
            "answered": len(good),
            "left": sum(sample.left for sample in of_kind),
            "per_second": len(good) / seconds,
            "seconds": _percentiles([sample.seconds for sample in good]),
            "errors": dict(Counter(sample.error for sample in of_kind if sample.error)),
        }
        if kind == "chat":
            firsts = [sample.first_s for sample in of_kind if sample.first_s is not None]
            told[kind] |= {
                "first_token_seconds": _percentiles(firsts),
                "tokens_per_second": sum(sample.tokens for sample in good) / seconds,
                "fallbacks": sum(sample.fallback for sample in good),
            }
    return told


def _percentiles(values: list[float]) -> Json | None:
    return {f"p{p}": float(np.percentile(values, p)) for p in PERCENTILES} if values else None


async def measure(options: argparse.Namespace, say: Callable[[str], None]) -> Json:
    headers = {"Authorization": f"Bearer {options.key}"} if options.key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx.AsyncClient(
        base_url=options.url, timeout=TIMEOUT_S, headers=headers, limits=limits
    ) as http:
        load = Load(http, options)
        await load.teach()
        before = (await http.get("/ready")).json()
        started = time.monotonic()
        until = started + options.seconds
        work: Coroutine[Any, Any, None] = load.open(until) if options.rate else load.closed(until)
        running = asyncio.create_task(work)
        windows = await _watch(http, load, running, options, say)
        await running
        seconds = time.monotonic() - started
        after = (await http.get("/ready")).json()
        await load.erase()
    loop = "open" if options.rate else "closed"
    given = {name: value for name, value in vars(options).items() if name not in ("key", "out")}
    return {
        "loop": loop,
        "options": given,
        "machine": {"cpu": platform.processor() or platform.machine(), "python": platform.python_version()},
        "seconds": seconds,
        "all": summary(load.samples, seconds),
        "windows": windows,
        "engine": {"before": before.get("engine"), "after": after.get("engine")},
    }


async def _watch(
    http: httpx.AsyncClient, load: Load, running: asyncio.Task, options: argparse.Namespace, say: Callable
) -> list[Json]:
    """A summary of every window while it runs, with what the engine says of itself at its end."""
    windows: list[Json] = []
    seen, since = 0, time.monotonic()
    while not running.done():
        await asyncio.wait([running], timeout=options.window)
        samples, now = load.samples[seen:], time.monotonic()
        seen += len(samples)
        told = summary(samples, now - since)
        since = now
        try:
            engine = (await http.get("/ready")).json().get("engine")
        except httpx.HTTPError as error:
            engine = {"error": type(error).__name__}
        windows.append({"at": time.time(), "of": told, "engine": engine})
        say(_line(told))
    return windows


def _line(told: Json) -> str:
    parts = []
    for kind, of_kind in told.items():
        shown = of_kind["seconds"]
        times = f" p50 {shown['p50']:.2f} s p95 {shown['p95']:.2f} s" if shown else ""
        first = of_kind.get("first_token_seconds")
        times += (
            f", first token {first['p50']:.2f} s, {of_kind['tokens_per_second']:.1f} tokens/s"
            if first
            else ""
        )
        errors = f" errors {of_kind['errors']}" if of_kind["errors"] else ""
        parts.append(f"{kind} {of_kind['answered']}/{of_kind['requests']}{times}{errors}")
    return " | ".join(parts) or "nothing"


def _mix(text: str) -> dict[str, float]:
    mix = {name: float(weight) for name, _, weight in (part.partition("=") for part in text.split(","))}
    if unknown := mix.keys() - {"chat", "write", "delete"}:
        raise argparse.ArgumentTypeError(f"unknown kinds {sorted(unknown)}; chat, write, delete")
    return mix


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=4, help="of the closed loop")
    parser.add_argument("--rate", type=float, default=0.0, help="arrivals a second; 0: the closed loop")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--window", type=float, default=10.0)
    parser.add_argument("--mix", type=_mix, default=_mix("chat=8,write=1,delete=1"))
    parser.add_argument("--leave", type=float, default=0.0, help="share of chats left after the first token")
    parser.add_argument("--namespaces", type=int, default=2)
    parser.add_argument("--memories", type=int, default=20, help="of each namespace, at the start")
    parser.add_argument("--model", default="base", help="several, by commas: each chat asks one of them")
    parser.add_argument("--mode", default="prefix")
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--key", help="API key")
    parser.add_argument("--out", type=Path, default=Path("runs/load.json"))
    options = parser.parse_args()
    report = asyncio.run(measure(options, lambda line: print(line, flush=True)))
    write_json(options.out, report)
    print(f"{report['loop']} loop, {report['seconds']:.0f} s: {_line(report['all'])}\nreport: {options.out}")
    return 1 if any(of_kind["errors"] for of_kind in report["all"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
