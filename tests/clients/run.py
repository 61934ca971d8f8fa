"""Every public client's script of this folder against one instance; writes docs/clients.md.

    make clients                                                   # with environments of its own
    python -m tests.clients.run --python ENV/bin/python --node DIR # with those; DIR holds node_modules
    python -m tests.clients.run --only litellm                     # one of them; the table's other rows stay

Exit status 1 if a client failed. The instance has a temporary store and a free port, and is stopped at the end; with
`--url` a running one is used, which must have the keys `KEYS` and the rest of `serving`.
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from common import config
from jobs.instance import instance as instances
from models.weights.load import dequantised, resolve

HERE = Path(__file__).resolve().parent
REPORT = HERE.parents[1] / "docs" / "clients.md"
MODEL = "smollm2-135m"
START_S = 900.0
LIMIT_S = 1800.0  # of one client's script
KEYS = {
    "key-of-clients": ["clients"],
    "key-of-mem0": ["mem0"],
}  # mem0's script expects no memories but its own


@dataclasses.dataclass(frozen=True)
class Client:
    title: str
    packages: tuple[str, ...]
    script: str
    key: str = "key-of-clients"
    more: tuple[str, ...] = ()

    @property
    def node(self) -> bool:
        return self.script.endswith(".cjs")


@dataclasses.dataclass(frozen=True)
class Row:
    """What became of a client. `failures` are lines, one a step that failed; `skipped` says why nothing was run."""

    client: Client
    versions: tuple[str, ...] = ()
    done: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    skipped: str = ""

    @property
    def result(self) -> str:
        return self.skipped or ("failed" if self.failures else "passed")

    def line(self) -> str:
        names = ", ".join(
            f"{package} {version}"
            for package, version in zip(self.client.packages, self.versions, strict=False)
        )
        done = ", ".join(self.done) + "".join(f"; {note}" for note in self.notes)
        day = str(datetime.date.today())
        cells = (self.client.title, names, self.result, done, f"{self.seconds:.0f}", day)
        return "| " + " | ".join(cells) + " |"


def clients(folder: str) -> list[Client]:
    return [
        Client("OpenAI, Python", ("openai",), "openai_client.py"),
        Client("OpenAI, Node", ("openai",), "node/openai_client.cjs"),
        Client("LangChain, LangGraph", ("langchain-openai", "langgraph"), "langchain_client.py"),
        Client("LlamaIndex", ("llama-index-llms-openai-like",), "llama_index_client.py"),
        Client("LiteLLM", ("litellm",), "litellm_client.py"),
        Client("Instructor", ("instructor",), "instructor_client.py"),
        Client("Pydantic AI", ("pydantic-ai-slim",), "pydantic_ai_client.py"),
        Client("DSPy", ("dspy",), "dspy_client.py"),
        Client("AI SDK", ("@ai-sdk/openai-compatible", "ai"), "node/ai_sdk_client.cjs"),
        Client("mem0", ("mem0ai",), "mem0_client.py", key="key-of-mem0"),
        Client("lm-evaluation-harness", ("lm-eval", "transformers"), "lm_eval_client.py", more=(folder,)),
    ]


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a running instance with its store in `folder`."""
    store = folder / "store"
    settings = config.load(
        overrides={
            "model.name": MODEL,
            "store.dir": str(store),
            "serve.port": 0,
            "serve.mem0": True,
            "serve.api_keys": KEYS,
            "embed.aliases": ["text-embedding-ada-002"],
        },
        env={},
    )
    try:
        yield instances.up(settings, say=print, deadline_s=START_S).url
    finally:
        instances.down(store)


def environment(home: Path, node: Path) -> dict[str, str]:
    """That of a script: what it keeps goes to `home`, and no key or address of the caller's reaches it."""
    inherited = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    quiet = {"MEM0_TELEMETRY": "False", "HF_HUB_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    return {**inherited, **quiet, "HOME": str(home), "NODE_PATH": str(node / "node_modules")}


def run(client: Client, url: str, python: str, node: Path, home: Path) -> Row:
    """Run a client's script and read its lines."""
    runtime = shutil.which("node") if client.node else shutil.which(python)
    if client.node and not (node / "node_modules").is_dir():
        return Row(
            client, skipped="not run: no npm" if shutil.which("npm") is None else "not run: no packages"
        )
    if runtime is None:
        return Row(client, skipped=f"not run: no {'node' if client.node else 'environment'}")
    home.mkdir()
    env = environment(home, node)
    versions = _node_versions(client, node) if client.node else _python_versions(client, runtime, env)
    command = [runtime, str(HERE / client.script), url, client.key, *client.more]
    began = time.monotonic()
    try:
        ended = subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, timeout=LIMIT_S)
        output, errors, code = ended.stdout, ended.stderr, ended.returncode
    except subprocess.TimeoutExpired as error:
        output, errors, code = _text(error.stdout), _text(error.stderr), None
    lines = output.splitlines()
    failures = _after("failed ", lines)
    if code != 0 and not failures:
        failures = (f"no end in {LIMIT_S:.0f} s" if code is None else f"exit status {code}",)
    if failures:
        print(errors[-6000:], file=sys.stderr)
    seconds = time.monotonic() - began
    return Row(client, versions, _after("ok ", lines), failures, _after("note ", lines), seconds)


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def _after(prefix: str, lines: list[str]) -> tuple[str, ...]:
    return tuple(line.removeprefix(prefix) for line in lines if line.startswith(prefix))


def _node_versions(client: Client, node: Path) -> tuple[str, ...]:
    files = [node / "node_modules" / package / "package.json" for package in client.packages]
    return tuple(json.loads(file.read_text())["version"] for file in files)


def _python_versions(client: Client, python: str, env: dict[str, str]) -> tuple[str, ...]:
    ask = "import sys, importlib.metadata as m; print(*map(m.version, sys.argv[1:]))"
    found = subprocess.run([python, "-c", ask, *client.packages], env=env, capture_output=True, text=True)
    return tuple(found.stdout.split()) or ("missing",) * len(client.packages)


def page(rows: list[Row], former: str) -> str:
    """The report; of clients that were not run, the rows of the `former` one stay."""
    machine = f"{os.cpu_count()} CPU cores, {platform.machine()}, {platform.system()}"
    lines = {row.client.title: row.line() for row in rows}
    titles = [client.title for client in clients("")]
    old = {title: line for title in titles for line in former.splitlines() if line.startswith(f"| {title} |")}
    lines = old | lines
    head = [
        "# Public clients",
        "",
        f"Made by `make clients`: {MODEL}, {machine}; the seconds are of a machine that is also used otherwise.",
        "Each client is used as its users do first, with an API key and without a field of ours (DSPy is told that",
        "the model keeps to schemas); its script is in `tests/clients/`. The model is small: it is checked that",
        "requests are understood and answers parsed, that calls and JSON follow their schemas, and that",
        "log-likelihoods are those of `transformers`; not what it says.",
        "",
        "| client | version | result | what was done | seconds | date |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    failures = [f"- {row.client.title}: {why[:400]}" for row in rows for why in row.failures]
    body = [lines[title] for title in titles if title in lines]
    return "\n".join([*head, *body, *(["", "Failed:", "", *failures] if failures else [])]) + "\n"


def _report(path: Path, rows: list[Row]) -> None:
    path.write_text(page(rows, path.read_text() if path.is_file() else ""))


def _at(url: str | None, folder: Path) -> AbstractContextManager[str]:
    return serving(folder) if url is None else nullcontext(url)


def main() -> int:
    parser = argparse.ArgumentParser(description="Public clients against an instance of their own.")
    parser.add_argument("--python", default=".venv-clients/bin/python", help="of the clients' environment")
    parser.add_argument("--node", type=Path, default=HERE / "node", help="the folder that holds node_modules")
    parser.add_argument("--only", action="append", help="a part of a script's name; may be repeated")
    parser.add_argument("--url", help="of a running instance; without it one is started")
    parser.add_argument("--report", default=str(REPORT), help="where the table goes; empty: nowhere")
    options = parser.parse_args()
    python = os.path.abspath(options.python)
    chosen = clients(str(dequantised(Path(resolve(MODEL)))))
    if options.only:
        chosen = [client for client in chosen if any(part in client.script for part in options.only)]
    rows = []
    with tempfile.TemporaryDirectory(prefix="clients-") as scratch, _at(options.url, Path(scratch)) as url:
        for n, client in enumerate(chosen):
            rows.append(run(client, url, python, options.node.resolve(), Path(scratch) / f"home{n}"))
            print(rows[-1].line(), *rows[-1].failures, sep="\n  ", flush=True)
            if options.report:  # after each: a run that is cut off leaves what it did
                _report(Path(options.report), rows)
    return int(any(row.failures for row in rows))


if __name__ == "__main__":
    sys.exit(main())
