"""How fast is an export of another system read, in how much memory, and how fast is it taught?

    python benchmarks/imports.py [--messages 100000] [--taught 2000] [--url http://127.0.0.1:8099]

Reads a generated ChatGPT export as `sharpwave teach --dry-run` does, in a process of its own, and prints messages a
second and its peak resident memory beside that of the same process without the file. With `--url` the first `--taught`
messages are written to a running instance, too.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jobs.commands.client import Client
from jobs.commands.preview import preview_file
from jobs.commands.teach import teach_files

WORDS = "amber birch cedar delta ember fjord grove heath inlet jetty kelp larch moor north ochre pine".split()
TURNS = 50
T0 = 1_772_352_000.0
MAX_TEXT = 16_384


def write_export(path: Path, messages: int, seed: int = 1) -> None:
    """Conversations of `TURNS` messages of 5 to 200 words, as one list on one line, like ChatGPT's."""
    draw = random.Random(seed)
    with path.open("w") as file:
        for number in range(-(-messages // TURNS)):
            turns = min(TURNS, messages - number * TURNS)
            file.write(("[" if number == 0 else ", ") + json.dumps(_conversation(draw, number, turns)))
        file.write("]")


def _conversation(draw: random.Random, number: int, turns: int) -> dict:
    mapping: dict[str, dict] = {"root": {"id": "root", "message": None, "parent": None, "children": []}}
    last = "root"
    for turn in range(turns):
        id = f"{number}-{turn}"
        message = {
            "id": id,
            "author": {"role": ("user", "assistant")[turn % 2], "name": None, "metadata": {}},
            "create_time": T0 + number * 1000 + turn,
            "content": {
                "content_type": "text",
                "parts": [" ".join(draw.choices(WORDS, k=draw.randint(5, 200)))],
            },
            "metadata": {"model_slug": "invented", "timestamp_": "absolute"},
            "recipient": "all",
        }
        mapping[id] = {"id": id, "message": message, "parent": last, "children": []}
        mapping[last]["children"].append(id)
        last = id
    head = {"title": f"Talk {number}", "create_time": T0 + number * 1000, "conversation_id": f"c{number}"}
    return {**head, "mapping": mapping, "current_node": last}


def read_alone(path: Path | None) -> None:
    """In a process of its own: one line with seconds, memories and peak resident bytes."""
    started = time.perf_counter()
    found = preview_file(path, namespace="bench", max_text_bytes=MAX_TEXT).memories if path else 0
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "memories": found, "peak_bytes": peak}))


def measured(path: Path | None) -> dict:
    command = [sys.executable, __file__, "--read", str(path) if path else ""]
    answer: dict = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--taught", type=int, default=2_000)
    parser.add_argument("--url", help="a running instance to teach")
    parser.add_argument("--read", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read is not None:
        read_alone(Path(options.read) if options.read else None)
        return
    with tempfile.TemporaryDirectory(prefix="sharpwave-") as folder:
        path = Path(folder) / "conversations.json"
        write_export(path, options.messages)
        empty, read = measured(None), measured(path)
        print(
            f"read: {read['memories']} memories of {path.stat().st_size / 1e6:.0f} MB in {read['seconds']:.1f} s, ",
            end="",
        )
        print(f"{read['memories'] / read['seconds']:.0f}/s, peak {read['peak_bytes'] / 1e6:.0f} MB ", end="")
        print(f"({empty['peak_bytes'] / 1e6:.0f} MB without the file)")
        if options.url:
            write_export(path, options.taught)
            started = time.perf_counter()
            with Client(options.url) as client:
                told = teach_files(
                    client,
                    [path],
                    namespace=f"imports-{time.time():.0f}",
                    max_text_bytes=MAX_TEXT,
                    report_bad=print,
                )
            seconds = time.perf_counter() - started
            print(f"taught: {told.written} memories in {seconds:.1f} s, {told.written / seconds:.0f}/s")


if __name__ == "__main__":
    main()
