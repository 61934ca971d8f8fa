"""LiteLLM with the provider `openai` and this server's address."""

from typing import Any

import litellm
from steps import ASK, EMBEDDER, MESSAGES, TIMEOUT_S, run


def where(url: str, key: str) -> dict[str, Any]:
    return {"api_base": f"{url}/v1", "api_key": key, "timeout": TIMEOUT_S, "max_retries": 0}


def completion(url: str, key: str) -> None:
    reply = litellm.completion("openai/base", MESSAGES, max_tokens=12, **where(url, key))
    assert reply.choices[0].message.content and reply.usage.total_tokens > 0, reply


def stream(url: str, key: str) -> None:
    chunks = [*litellm.completion("openai/base", MESSAGES, max_tokens=12, stream=True, **where(url, key))]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks), chunks


def text_completion(url: str, key: str) -> None:
    reply = litellm.text_completion(
        model="text-completion-openai/base", prompt="The sky is", max_tokens=4, **where(url, key)
    )
    assert reply.choices[0].text, reply


def embedding(url: str, key: str) -> None:
    reply = litellm.embedding(f"openai/{EMBEDDER}", ["one", "two"], **where(url, key))
    assert len(reply.data) == 2 and len(reply.data[0]["embedding"]) > 100


def responses(url: str, key: str) -> None:
    reply = litellm.responses(model="openai/base", input=ASK, max_output_tokens=12, **where(url, key))
    assert reply.output[0].content[0].text, reply


if __name__ == "__main__":
    run(completion, stream, text_completion, embedding, responses)
