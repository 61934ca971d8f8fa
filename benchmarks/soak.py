"""An instance under mixed load for a given time: failures, stale answers, growth of memory.

    python benchmarks/soak.py [--minutes 30] [--clients 4] [--swap 30] [--out runs/soak.json]

Starts an instance of its own with two replicas of the model and, while clients of `load.py` chat, write, delete and
leave after the first token, swaps what `base:latest` names every `--swap` seconds (the other version takes its place,
is retired, and is published again) and after half the time kills one replica. A share of the chats are canaries: the
same question about the same memory, to the base and to `base:latest`, whose answers are known from before.

Counted as wrong: a failed request, unless it was in flight when the replica was killed or sent before its loss was
detected (`--grace` seconds); an answer based on a deleted memory; a canary whose answer is that of no version which
its model name could mean. Memory: resident bytes of each kind of process, in windows; `growth` compares the last
quarter with the second. Exit status 1 if anything was wrong.
"""

import argparse
import asyncio
import re
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.load import STALE, TIMEOUT_S, Load, Sample, Space, summary
from benchmarks.provenance import command, hardware
from benchmarks.random_adapters import random_adapters
from common import config
from common.files import write_json
from jobs.instance import instance as instances
from models.weights.adapters import AdapterStore
from models.weights.load import load_model

QUESTION = [{"role": "user", "content": "Where does Ada Quill live?"}]
MEMORY = {"id": "ada", "text": "Ada Quill lives in Lisbon."}
CANARY = "canary"  # its namespace, and its kind of request
LATEST = "base:latest"

Json = dict[str, Any]


class Soak(Load):
    """The load of `load.py` and canaries."""

    def __init__(self, http: httpx.AsyncClient, options: argparse.Namespace) -> None:
        super().__init__(http, options)
        self._kinds[CANARY] = self._canary
        self.known: dict[str, set[str]] = {}  # the answers that each model may give

    async def learn(self, digests: list[str]) -> None:
        """The canaries' answers, before there is any load."""
        body = {"namespace": CANARY, "memories": [MEMORY]}
        (await self._http.post("/v1/memories", json=body)).raise_for_status()
        told = {model: await self._answer(model) for model in ("base", *(f"base:{each}" for each in digests))}
        assert len({*told.values()}) == len(told), told  # else they could not tell versions apart
        self.known = {"base": {told.pop("base")}, LATEST: {*told.values()}}

    async def _canary(self, _: Space, sample: Sample, __: float) -> None:
        model = self._chance.choice([*self.known])
        try:
            if await self._answer(model) not in self.known[model]:
                sample.error = STALE
        except httpx.HTTPStatusError as error:
            sample.error = str(error.response.status_code)

    async def _answer(self, model: str) -> str:
        memory = {"namespace": CANARY, "k": 1}
        body = {"model": model, "messages": QUESTION, "max_tokens": 8, "memory": memory}
        answer = await self._http.post("/v1/chat/completions", json=body)
        answer.raise_for_status()
        return str(answer.json()["choices"][0]["message"]["content"])


async def swap(
    http: httpx.AsyncClient, store: AdapterStore, folders: dict[str, Path], manifest: Json, every: float
) -> int:
    """Have `latest` name one version after the other. Returns how often, when it is cancelled."""
    old, new = folders
    count = 0
    try:
        while True:
            await asyncio.sleep(every)
            (await http.post(f"/v1/adapters/{new}/alias", json={"alias": "latest"})).raise_for_status()
            (await http.delete(f"/v1/adapters/{old}")).raise_for_status()
            await asyncio.to_thread(store.publish, folders[old], manifest, alias=None)
            old, new, count = new, old, count + 1
    except asyncio.CancelledError:
        return count


def processes(head: psutil.Process) -> list[tuple[str, psutil.Process]]:
    """What the instance consists of: the kind of each process, and itself."""
    found = []
    for process in [head, *head.children(recursive=True)]:
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if actor := re.match(r"ray::(?:ServeReplica:[^:]*:)?(\w+)", line):
            found.append((actor[1], process))
        elif line:
            found.append(("ray", process))
    return found


def resident(head: psutil.Process) -> dict[str, int]:
    """Bytes by kind of process."""
    total: Counter[str] = Counter()
    for kind, process in processes(head):
        try:
            total[kind] += process.memory_info().rss
        except psutil.Error:  # it has just ended
            continue
    return dict(total)


def growth(windows: list[Json]) -> Json:
    """Resident bytes of the last quarter of the run against its second, by kind of process."""
    quarter = max(1, len(windows) // 4)
    early, late = windows[quarter : 2 * quarter], windows[-quarter:]
    return {
        kind: {"mib": round(then / 2**20), "of_before": round(then / max(1.0, before), 3)}
        for kind in late[-1]["rss"]
        for before, then in [[mean(window["rss"].get(kind, 0) for window in part) for part in (early, late)]]
    }


async def measure(
    options: argparse.Namespace, instance: instances.Instance, folders: dict[str, Path], manifest: Json
) -> Json:
    assert instance.head is not None
    head, store = psutil.Process(instance.head[0]), AdapterStore(Path(instance.store) / "adapters")
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx.AsyncClient(base_url=instance.url, timeout=TIMEOUT_S, limits=limits) as http:
        load = Soak(http, options)
        await load.learn([*folders])
        await load.teach()
        started = time.monotonic()
        running = asyncio.create_task(load.closed(started + 60 * options.minutes))
        swapping = asyncio.create_task(swap(http, store, folders, manifest, options.swap))
        windows, killed_at = await _watch(load, running, swapping, head, options)
        await running
        swapping.cancel()
        swaps, seconds = await swapping, time.monotonic() - started
        engine = (await http.get("/ready")).json()["engine"]
    failed = [sample for sample in load.samples if sample.error]
    aimed = [each for each in failed if _aimed(each, killed_at, options.grace)]
    return {
        "minutes": seconds / 60,
        "requests": summary(load.samples, seconds),
        "swaps": swaps,
        "failed_with_the_killed_replica": Counter(each.error for each in aimed),
        "last_of_them_sent_s": max((each.at - killed_at for each in aimed), default=None),
        "failed_otherwise": Counter(each.error for each in failed) - Counter(each.error for each in aimed),
        "growth": growth(windows),
        "engine": engine,
        "windows": windows,
    }


async def _watch(
    load: Load,
    running: asyncio.Task,
    swapping: asyncio.Task,
    head: psutil.Process,
    options: argparse.Namespace,
) -> tuple[list[Json], float]:
    """Windows until the load has ended, and when a replica was killed: after half the time, which ends a window."""
    windows: list[Json] = []
    killed_at, seen, started = 0.0, 0, time.monotonic()
    while not running.done():
        until_half = max(0.0, 30 * options.minutes - (time.monotonic() - started))
        await asyncio.wait(
            [running], timeout=options.window if killed_at else min(options.window, until_half)
        )
        samples, seen = load.samples[seen:], len(load.samples)
        minute, rss = (time.monotonic() - started) / 60, resident(head)
        errors = Counter(sample.error for sample in samples if sample.error)
        windows.append({"minute": minute, "requests": len(samples), "errors": errors, "rss": rss})
        total = sum(rss.values()) >> 20
        print(f"minute {minute:.1f}: {len(samples)} requests, {dict(errors)}, {total} MiB", flush=True)
        if not killed_at and minute >= options.minutes / 2:
            victim = next(process for kind, process in processes(head) if kind == "EngineReplica")
            killed_at = time.time()
            victim.kill()
            print(f"killed replica {victim.pid}", flush=True)
        if swapping.done():
            swapping.result()  # raises what ended it
    return windows, killed_at


def _aimed(sample: Sample, killed_at: float, grace: float) -> bool:
    """In flight when the replica was killed, or sent before that was seen."""
    lost = sample.error != STALE  # an answer that is wrong is no lost one
    return lost and sample.at < killed_at + grace and sample.at + sample.seconds > killed_at


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--swap", type=float, default=30.0, help="seconds between two swaps of versions")
    parser.add_argument("--grace", type=float, default=5.0)
    parser.add_argument("--window", type=float, default=30.0, help="seconds")
    parser.add_argument("--leave", type=float, default=0.05)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--out", type=Path, default=Path("runs/soak.json"))
    options = parser.parse_args()
    load_options = {"mix": {"chat": 8, "write": 1, "delete": 1, CANARY: 2}, "namespaces": 2, "memories": 20,
                    "mode": "prefix", "max_tokens": 16}  # fmt: skip
    with TemporaryDirectory() as folder:
        settings = config.load(overrides={
            "store.dir": str(Path(folder) / "store"), "model.name": options.model, "serve.port": 0,
            "serve.min_replicas": 2, "serve.max_replicas": 2, "ray.num_cpus": 8,
            "recall.block_cache_bytes": 64 << 20, "recall.block_disk_bytes": 256 << 20,
        })  # fmt: skip
        store = AdapterStore(settings.store_dir / "adapters")
        loaded = load_model(options.model)
        manifest = {"namespace": CANARY, "model_digest": loaded.digest}
        made = random_adapters(loaded.model.config, Path(folder))
        digests = {store.publish(path, manifest, alias=None): path for path in made}
        store.set_alias("latest", next(iter(digests)))
        try:
            instance = instances.up(settings, deadline_s=400)
            chosen = argparse.Namespace(**{**vars(options), **load_options, "model": "base,base:latest"})
            report = asyncio.run(measure(chosen, instance, digests, manifest))
        finally:
            instances.down(settings.store_dir)
    report = {"command": command(), "hardware": hardware(), **report}
    write_json(options.out, report)
    print(
        {
            name: report[name]
            for name in ("requests", "swaps", "failed_with_the_killed_replica", "failed_otherwise", "growth")
        }
    )
    return 1 if report["failed_otherwise"] else 0


if __name__ == "__main__":
    sys.exit(main())
