"""LlamaIndex's class for servers that speak OpenAI's interface."""

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from steps import ASK, TIMEOUT_S, run


def made(url: str, key: str, *, chat: bool) -> OpenAILike:
    return OpenAILike(
        model="base",
        api_base=f"{url}/v1",
        api_key=key,
        is_chat_model=chat,
        context_window=2048,
        max_tokens=12,
        timeout=TIMEOUT_S,
        max_retries=0,
    )


def complete(url: str, key: str) -> None:
    assert made(url, key, chat=False).complete("The sky is").text


def stream_complete(url: str, key: str) -> None:
    assert [*made(url, key, chat=False).stream_complete("The sky is")][-1].text


def chat(url: str, key: str) -> None:
    assert made(url, key, chat=True).chat([ChatMessage(role="user", content=ASK)]).message.content


def stream_chat(url: str, key: str) -> None:
    pieces = [*made(url, key, chat=True).stream_chat([ChatMessage(role="user", content=ASK)])]
    assert len(pieces) > 1 and pieces[-1].message.content, pieces


if __name__ == "__main__":
    run(complete, stream_complete, chat, stream_chat)
