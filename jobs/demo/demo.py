"""The whole loop on invented facts: teach, recall in six modes, score, consolidate, evaluate with memory off.

    python -m jobs.demo.demo [--out runs/demo] [--seed 1337] [--set SECTION.KEY=VALUE]

`make demo` runs it. It uses the public interfaces only: HTTP and Ray jobs. The folder --out is emptied first; the
results are report.json and report.md in it.
"""

import argparse
import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from common import config as configuration
from common.config import Config
from common.errors import InvalidInput, SharpwaveError
from common.files import read_json, write_bytes
from jobs.commands.client import Client
from jobs.commands.teach import teach_files
from jobs.demo import report as reports
from jobs.demo.demo_data import DemoFiles, write_demo
from jobs.evaluation.questions import direct_questions
from jobs.instance import instance as instances
from jobs.instance.instance import Instance
from jobs.instance.submit import submit
from train.evaluation.evaluate import MAX_NEW_TOKENS, contains
from train.generation.chat import SHORTEST_SPAN

Json = dict[str, Any]
NAMESPACE = "demo"
ENCODE_DEADLINE_S = 300.0
SETTINGS = {"gate.min_uplift": 0.6, "serve.port": 0, "store.shards": 2}
# Report name -> the `memory` field of the request.
MODES: dict[str, dict[str, str]] = {
    "full": {"mode": "full"},
    "text": {"mode": "text"},
    "text_flat": {"mode": "text", "retrieval": "flat"},
    "prefix": {"mode": "prefix"},
    "hybrid": {"mode": "hybrid"},
    "off": {"mode": "off"},
}


def run(config: Config, out: Path, seed: int) -> dict[str, Any]:
    """Run all stages in order and return the report; the instance is stopped in any case."""
    seconds: dict[str, float] = {}
    instances.down(config.store_dir)  # of a demo that was cut off
    _fresh(out)
    files = write_demo(out / "data", seed)
    questions, direct = _first_questions(files), _direct_questions(files)
    try:
        with _stage(seconds, "up"):
            instance = instances.up(config, say=_say)
        with Client(instance.url) as client:
            with _stage(seconds, "teach"):
                teach = _teach(client, config, files)
                _wait_for_blocks(client)
            with _stage(seconds, "modes"):
                modes = {
                    name: _both(client, direct[::2], questions[::2], given) for name, given in MODES.items()
                }
            with _stage(seconds, "score"):
                matrix = _score(instance, questions[::2], out)
            with _stage(seconds, "consolidate"):
                consolidated = _job(instance, "consolidate", out / "consolidate")
            with _stage(seconds, "ask"):
                _show(client, questions, consolidated["adapter"])
            telemetry = client.get("/ready")["telemetry"]
        with _stage(seconds, "down"):
            instances.down(config.store_dir)
    finally:
        instances.down(config.store_dir)
    report = {
        **{
            name: consolidated[name]
            for name in ("config_hash", "model", "adapter", "replay", "evaluation", "gate")
        },
        "teach": teach,
        "modes": modes,
        "matrix": {
            name: matrix[name] for name in ("memories", "responses", "seconds", "noise_floor", "true_first")
        },
        "telemetry": {**telemetry, "replay_samples": consolidated["replay"]["samples"]},
        "seconds": {**seconds, **{f"consolidate.{k}": v for k, v in consolidated["seconds"].items()}},
    }
    reports.save(report, out)
    return report


def _fresh(out: Path) -> None:
    """Create an empty folder with a marker file. An existing folder is removed only if it has the marker."""
    mark = out / ".sharpwave-demo"
    if out.exists() and any(out.iterdir()) and not mark.is_file():
        raise InvalidInput(f"--out {out} holds other files; give a new folder", param="out")
    if mark.is_file():
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    mark.touch()


def _teach(client: Client, config: Config, files: DemoFiles) -> dict[str, int]:
    summary = teach_files(
        client,
        [files.experiences, files.transcript],
        namespace=NAMESPACE,
        max_text_bytes=config.store.max_text_bytes,
        report_bad=_say,
    )
    if summary.stored != summary.written or summary.bad:
        raise SharpwaveError(f"teaching lost memories: {summary}")
    return {"written": summary.written, "stored": summary.stored}


def _wait_for_blocks(client: Client) -> None:
    """Background encoding has to catch up, or the prefix mode would be measured as its text fallback."""
    deadline = time.monotonic() + ENCODE_DEADLINE_S
    while client.get("/ready")["engine"]["pending_blocks"]:
        if time.monotonic() > deadline:
            raise SharpwaveError(f"KV blocks were not encoded within {ENCODE_DEADLINE_S:g} s")
        time.sleep(0.2)


def _measure(client: Client, questions: list[dict[str, Any]], memory: dict[str, str]) -> dict[str, float]:
    """Means over the questions; a hit is the expected answer in the model's first line."""
    replies = [_ask(client, row["question"], memory) for row in questions]
    answers = [reply["choices"][0]["message"]["content"] for reply in replies]
    for reply in replies:
        if reply["memory"]["fallback"]:
            raise SharpwaveError(f"mode {memory['mode']} fell back: {reply['memory']['fallback']}")
    hits = [contains(answer, row["answer"]) for answer, row in zip(answers, questions, strict=True)]
    n = len(replies)
    return {
        "hit_rate": sum(hits) / n,
        "prompt_tokens": sum(reply["usage"]["prompt_tokens"] for reply in replies) / n,
        "prefix_tokens": sum(reply["memory"]["prefix_tokens"] for reply in replies) / n,
        "retrieve_ms": sum(reply["timings"]["retrieve_ms"] for reply in replies) / n,
        "generate_ms": sum(reply["timings"]["generate_ms"] for reply in replies) / n,
        "n": n,
    }


def _both(
    client: Client, direct: list[Json], indirect: list[Json], memory: dict[str, str]
) -> dict[str, float]:
    """The plain questions, and the hit rate of the indirect ones, which a small model understands less well."""
    return {**_measure(client, direct, memory), "indirect": _measure(client, indirect, memory)["hit_rate"]}


def _ask(client: Client, question: str, memory: dict[str, str], model: str = "base") -> dict[str, Any]:
    body = {
        "model": model,
        "messages": [
            {"role": "system", "content": SHORTEST_SPAN},
            {"role": "user", "content": question},
        ],
        "max_tokens": MAX_NEW_TOKENS,
        "memory": {"namespace": NAMESPACE, **memory},
    }
    return client.post("/v1/chat/completions", body)


def _score(instance: Instance, questions: list[dict[str, Any]], out: Path) -> dict[str, Any]:
    """The matrix over the correctly answered questions, each with the memory it came from."""
    talks = [
        {
            "memory": row["memory"],
            "messages": [
                {"role": "system", "content": SHORTEST_SPAN},
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row["answer"]},
            ],
        }
        for row in questions
    ]
    path = out / "data" / "conversations.jsonl"
    write_bytes(path, "".join(json.dumps(talk) + "\n" for talk in talks).encode())
    return _job(
        instance, "score", out / "score", "--conversation", str(path.resolve()), report="summary.json"
    )


def _job(
    instance: Instance, name: str, out: Path, *arguments: str, report: str = "report.json"
) -> dict[str, Any]:
    """A Ray job on the instance; exit code 3 is a result too: a rolled-back adapter, a partial matrix."""
    code = submit(
        instance, name, ["--namespace", NAMESPACE, "--out", str(out.resolve()), *arguments], say=_say
    )
    if code not in (0, 3):
        raise SharpwaveError(f"job {name} failed with exit code {code}; its log is above")
    return read_json(out / report)


def _show(client: Client, questions: list[dict[str, Any]], adapter: str | None) -> None:
    """One question as an example, answered with memory off, before and after the training."""
    row = questions[0]
    models = ["base", *(["base:latest"] if adapter else [])]
    for model in models:
        reply = _ask(client, row["question"], {"mode": "off"}, model)
        given = reply["choices"][0]["message"]["content"]
        _say(f'  {model}, memory off: "{row["question"]}" -> "{given}" (expected "{row["answer"]}")')


def _first_questions(files: DemoFiles) -> list[dict[str, Any]]:
    """The first test question of each memory."""
    rows = [json.loads(line) for line in files.questions.read_text().splitlines()]
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
        first.setdefault(row["memory"], row)
    return list(first.values())


def _direct_questions(files: DemoFiles) -> list[Json]:
    """The first plain question of each memory, in the order of `_first_questions`."""
    memories = [json.loads(line) for line in files.experiences.read_text().splitlines()]
    found = {each["memory"]: each for each in direct_questions(memories)}
    return [found[row["memory"]] for row in _first_questions(files) if row["memory"] in found]


@contextlib.contextmanager
def _stage(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    _say(f"[{name}]")
    yield
    seconds[name] = time.perf_counter() - started
    _say(f"[{name}] {seconds[name]:.1f} s")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None, say: Callable[[str], None] = print) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    arguments = parser.parse_args(argv)
    out = arguments.out.resolve()
    overrides = {**SETTINGS, "store.dir": str(out / "store")} | dict(
        map(configuration.parse_override, arguments.set)
    )
    try:
        report = run(configuration.load(overrides=overrides), out, arguments.seed)
    except SharpwaveError as error:
        print(f"demo: {error.message}", file=sys.stderr)
        return 1
    say(reports.markdown(report))
    say(f"{out / 'report.md'}\n{out / 'score' / 'heatmap.png'}")
    return 0 if report["gate"]["accepted"] else 1


if __name__ == "__main__":
    sys.exit(main())
