"""What every client's script here does: take URL and KEY, run its steps, and print a line for each."""

import sys
import time
import traceback
from collections.abc import Callable

TIMEOUT_S = 180.0  # of one request: the machine may be busy with something else
EMBEDDER = "text-embedding-ada-002"  # the name that clients send by default; `embed.aliases` has it
ASK = "What is the capital of France?"
MESSAGES = [{"role": "user", "content": ASK}]


def run(*steps: Callable[[str, str], object]) -> None:
    """Run `steps` with the server's address and an API key; exit status 1 if one of them failed.

    A line on standard output is `ok STEP` or `failed STEP: WHY`; tracebacks go to standard error.
    """
    url, key = sys.argv[1:3]
    failed = False
    for step in steps:
        name = step.__name__.replace("_", " ")
        began = time.monotonic()
        try:
            step(url, key)
        except Exception as error:
            traceback.print_exc()
            failed = True
            print(f"failed {name}: {type(error).__name__}: {' '.join(str(error).split())}", flush=True)
        else:
            print(f"ok {name}", flush=True)
        print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr)
    sys.exit(failed)
