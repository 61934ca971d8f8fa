"""Deletion, cascade and absence: what a model says about what was erased, concluded from the erased, or never told.

    sharpwave up --set model.name=MODEL
    python benchmarks/episodes.py --url http://127.0.0.1:8100 [--episodes 8] [--seed 11] [--mode prefix]

Episodes of `episode_sets.py` (the thresholds of `stores/ranking/evidence.py` were chosen on seeds 1 and 2: take others)
are written, changed and erased over HTTP, then every question is asked. Rates, each with Wilson's 95% interval:

    current, updated   the answer holds the value (and how many are "I don't know" instead)
    deleted, cascade   the answer does not hold the value that was erased, or concluded from it
    absent             the answer says that the model does not know

No language model takes part in writing. `episodes_mem0.py` measures mem0 with the same questions.
"""

import argparse
import re
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.episode_sets import Asked, Episode, episodes
from common.files import write_json
from train.evaluation.evaluate import contains, wilson

Json = dict[str, Any]
SYSTEM = "Answer the question in one short sentence."
UNKNOWN = re.compile(
    r"\b(?:don't|do not|doesn't|does not|didn't|cannot|can't|not|no|never|unable to|without)\b.{0,40}?"
    r"\b(?:know|remember|recall|information|sure|record|mention|aware|told|provide|specif|memory|determine|available)",
    re.IGNORECASE,
)


def live(client: httpx.Client, episode: Episode) -> None:
    """Write, change and erase, one step after the other."""
    for step, given in episode.steps:
        if step == "write":
            body = {"namespace": episode.namespace, "memories": [given]}
            client.post("/v1/memories", json=body).raise_for_status()
        else:
            params = {"namespace": episode.namespace}
            client.delete(f"/v1/memories/{given}", params=params).raise_for_status()


def ask(client: httpx.Client, episode: Episode, asked: Asked, mode: str) -> Json:
    reply = client.post(
        "/v1/chat/completions",
        json={
            "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked.question}],
            "max_tokens": 32,
            "memory": {"namespace": episode.namespace, "mode": mode},
        },
    )
    reply.raise_for_status()
    answer, memory = reply.json()["choices"][0]["message"]["content"], reply.json()["memory"]
    told = {
        "evidence": memory["evidence"],
        "injected": len(memory["injected"]),
        "fallback": memory["fallback"],
    }
    return judged(asked, answer) | told


def judged(asked: Asked, answer: str) -> Json:
    """The question, the answer, whether it holds the value, and whether it says that the model does not know."""
    held = asked.answer is not None and contains(answer, asked.answer)
    return {
        "kind": asked.kind, "question": asked.question, "value": asked.answer, "answer": answer,
        "holds": held, "unknown": bool(UNKNOWN.search(answer)) and not held,
    }  # fmt: skip


def right(row: Json) -> bool:
    if row["kind"] in ("current", "updated"):
        return bool(row["holds"])
    return bool(row["unknown"]) if row["kind"] == "absent" else not row["holds"]


def summary(rows: list[Json]) -> Json:
    of_kind: dict[str, list[Json]] = defaultdict(list)
    for row in rows:
        of_kind[row["kind"]].append(row)
    found = {}
    for kind, some in sorted(of_kind.items()):
        good = sum(map(right, some))
        low, high = wilson(good, len(some))
        found[kind] = {
            "rate": good / len(some), "low": low, "high": high, "n": len(some),
            "unknown": sum(row["unknown"] for row in some) / len(some),
            "evidence": dict(Counter(row["evidence"] for row in some)),
        }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--mode", default="prefix")
    parser.add_argument("--out", type=Path, default=Path("runs/episodes.json"))
    args = parser.parse_args()
    rows: list[Json] = []
    started = time.perf_counter()
    with httpx.Client(base_url=args.url, timeout=600) as client:
        for episode in episodes(args.seed, args.episodes):
            live(client, episode)
            while client.get("/ready").json()["engine"]["pending_blocks"]:
                time.sleep(0.2)
            rows += [ask(client, episode, asked, args.mode) for asked in episode.questions]
            print(
                f"{episode.namespace}: {sum(map(right, rows))} right of {len(rows)}",
                file=sys.stderr,
                flush=True,
            )
        model = client.get("/v1/models").json()["data"][1]["id"]
    report = {"model": model, "mode": args.mode, "seed": args.seed, "seconds": time.perf_counter() - started}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.out, {**report, "kinds": summary(rows), "rows": rows})
    printed(rows)


def printed(rows: list[Json]) -> None:
    for kind, found in summary(rows).items():
        print(f"{kind:8} {found['rate']:.2f} [{found['low']:.2f}, {found['high']:.2f}] n={found['n']}"
              f"  unknown {found['unknown']:.2f}  evidence {found['evidence']}")  # fmt: skip


if __name__ == "__main__":
    main()
