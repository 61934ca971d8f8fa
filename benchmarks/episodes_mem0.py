"""The episodes of `episodes.py` with mem0 as the memory: the same questions, reader, embedder and measure.

    pip install mem0ai qdrant-client        # in an environment of its own, beside what the evaluation imports
    sharpwave up --set model.name=MODEL
    python benchmarks/episodes_mem0.py --url http://127.0.0.1:8100 [--episodes 8] [--seed 11] [--infer]

mem0 runs in this process with a local Qdrant; its embedder and its model are the instance's, over OpenAI's routes and
without the instance's memory. By default texts are stored as they are; with `--infer` mem0 has the model extract facts
at write time, as it does by default. Recalled memories go to the reader in the prompt of mem0's own quickstart.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.pop(1)  # this folder, which has a mem0.py of its own

from benchmarks.episode_sets import Asked, Episode, episodes
from benchmarks.episodes import SYSTEM, judged, printed, right, summary
from common.files import write_json

Json = dict[str, Any]
K = 8
PROMPT = (
    "You are a helpful AI. Answer the question based on query and memories. "
    + SYSTEM
    + "\nUser Memories:\n{}"
)


def opened(url: str, folder: str) -> Any:
    from mem0 import Memory

    served = {"api_key": "none", "openai_base_url": f"{url}/v1"}
    return Memory.from_config(
        {
            "llm": {"provider": "openai", "config": {**served, "model": "base", "temperature": 0.0}},
            "embedder": {
                "provider": "openai",
                "config": {**served, "model": "minilm", "embedding_dims": 384},
            },
            "vector_store": {
                "provider": "qdrant",
                "config": {"path": f"{folder}/qdrant", "embedding_model_dims": 384, "on_disk": True},
            },
            "history_db_path": f"{folder}/history.db",
        }
    )


def text_of(given: Json) -> str:
    return str(
        given.get("text") or f"{given['subject']} {given['relation'].replace('_', ' ')} {given['object']}."
    )


def live(memory: Any, episode: Episode, infer: bool) -> None:
    """Write and erase, one step after the other; what mem0 made of a text is erased with it."""
    stored: dict[str, list[str]] = {}
    for step, given in episode.steps:
        if step == "write":
            made = memory.add(text_of(given), user_id=episode.namespace, infer=infer)
            stored[given["id"]] = [one["id"] for one in made["results"]]
        else:
            for id in stored[given]:
                memory.delete(id)


def ask(client: httpx.Client, memory: Any, episode: Episode, asked: Asked) -> Json:
    found = memory.search(asked.question, filters={"user_id": episode.namespace}, top_k=K)["results"]
    known = "\n".join(f"- {one['memory']}" for one in found)
    reply = client.post(
        "/v1/chat/completions",
        json={
            "messages": [
                {"role": "system", "content": PROMPT.format(known)},
                {"role": "user", "content": asked.question},
            ],
            "max_tokens": 32,
            "memory": {"mode": "off"},
        },
    )
    reply.raise_for_status()
    answer = reply.json()["choices"][0]["message"]["content"]
    return judged(asked, answer) | {"evidence": None, "injected": len(found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--infer", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/episodes_mem0.json"))
    args = parser.parse_args()
    rows: list[Json] = []
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, httpx.Client(base_url=args.url, timeout=600) as client:
        memory = opened(args.url, folder)
        for episode in episodes(args.seed, args.episodes):
            live(memory, episode, args.infer)
            rows += [ask(client, memory, episode, asked) for asked in episode.questions]
            print(
                f"{episode.namespace}: {sum(map(right, rows))} right of {len(rows)}",
                file=sys.stderr,
                flush=True,
            )
    report = {"infer": args.infer, "seed": args.seed, "seconds": time.perf_counter() - started}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.out, {**report, "kinds": summary(rows), "rows": rows})
    printed(rows)


if __name__ == "__main__":
    main()
