"""Evaluation of the running application, with memory."""

import time
from collections.abc import Sequence
from typing import Any

from ray.serve.handle import DeploymentHandle

from serve.schemas.requests import ChatBody
from train.evaluation.evaluate import MAX_NEW_TOKENS, exact_match, wilson
from train.generation.chat import SHORTEST_SPAN

ENCODE_DEADLINE_S = 600.0
TOGETHER = 8  # questions in flight: the engine answers them in one batch


def wait_for_blocks(app: DeploymentHandle) -> None:
    """Return when no KV block waits to be encoded, so that prefix requests find theirs. Raises `TimeoutError` after
    `ENCODE_DEADLINE_S`."""
    deadline = time.monotonic() + ENCODE_DEADLINE_S
    while app.ready.remote().result(timeout_s=60)["engine"]["pending_blocks"]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"KV blocks are still being encoded after {ENCODE_DEADLINE_S:g} s")
        time.sleep(0.2)


def ask(
    app: DeploymentHandle, questions: Sequence[str], namespace: str, mode: str | None, model: str = "base"
) -> list[dict[str, Any]]:
    """Chat responses to the questions, in order: greedy and short, `TOGETHER` questions in flight."""
    replies: list[dict[str, Any]] = []
    for start in range(0, len(questions), TOGETHER):
        asked = [
            app.ask.remote(
                ChatBody(
                    model=model,
                    messages=[
                        {"role": "system", "content": SHORTEST_SPAN},
                        {"role": "user", "content": question},
                    ],
                    max_tokens=MAX_NEW_TOKENS,
                    memory={"namespace": namespace, **({"mode": mode} if mode else {})},
                )
            )
            for question in questions[start : start + TOGETHER]
        ]
        replies += [reply.result(timeout_s=300) for reply in asked]
    return replies


def memory_on(app: DeploymentHandle, questions: list[dict[str, Any]], namespace: str) -> dict[str, Any]:
    """Exact match with memory as configured, and its 95% interval: the upper reference for an adapter."""
    wait_for_blocks(app)
    rows, retrieved, fallbacks = [], 0, 0
    replies = ask(app, [question["question"] for question in questions], namespace, None)
    for question, reply in zip(questions, replies, strict=True):
        given = reply["choices"][0]["message"]["content"]
        fallbacks += reply["memory"]["fallback"] is not None
        retrieved += len(reply["memory"]["retrieved"])
        rows.append({**question, "given": given, "exact": exact_match(given, question["answer"])})
    exact = [row["exact"] for row in rows]
    low, high = wilson(sum(exact), len(exact))
    return {
        "em": sum(exact) / len(exact),
        "n": len(exact),
        "low": low,
        "high": high,
        "retrieved": retrieved,
        "fallbacks": fallbacks,
        "answers": rows,
    }
