"""LangChain's OpenAI classes, and an agent of LangGraph with a tool."""

import contextlib
from typing import Any, Literal

from langchain_core.messages import ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langgraph.errors import GraphRecursionError
from langgraph.prebuilt import create_react_agent
from pydantic import BaseModel
from steps import ASK, EMBEDDER, TIMEOUT_S, run


class Place(BaseModel):
    """A place to visit."""

    city: Literal["Lisbon", "Porto"]


def made(url: str, key: str) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=f"{url}/v1", api_key=key, model="base", max_tokens=48, timeout=TIMEOUT_S, max_retries=0
    )


def invoke(url: str, key: str) -> None:
    reply = made(url, key).invoke([("system", "Be short."), ("user", ASK)])
    assert reply.content and reply.usage_metadata["output_tokens"] > 0, reply


def stream(url: str, key: str) -> None:
    pieces = [piece.content for piece in made(url, key).stream(ASK)]
    assert len(pieces) > 1 and "".join(pieces), pieces


def structured_output(url: str, key: str) -> None:
    for method in ("json_schema", "function_calling"):
        found = made(url, key).with_structured_output(Place, method=method).invoke("Where shall I go?")
        assert isinstance(found, Place), (method, found)


def embeddings(url: str, key: str) -> None:
    embedder = OpenAIEmbeddings(
        base_url=f"{url}/v1", api_key=key, model=EMBEDDER, check_embedding_ctx_length=False, max_retries=0
    )
    assert len(embedder.embed_documents(["one", "two"])) == 2
    assert len(embedder.embed_query("one")) > 100


def langgraph_agent(url: str, key: str) -> None:
    """The first call is forced, since the model is small; then it is free to answer or call until the limit."""
    asked = []

    @tool
    def weather(city: Literal["Lisbon", "Porto"]) -> str:
        """The weather of a city."""
        asked.append(city)
        return f"It is sunny in {city}."

    def model(state: Any, runtime: Any) -> Any:
        answered = any(isinstance(message, ToolMessage) for message in state["messages"])
        return made(url, key).bind_tools([weather], tool_choice="auto" if answered else "required")

    agent = create_react_agent(model, [weather])
    states = []
    with contextlib.suppress(GraphRecursionError):
        states += agent.stream(
            {"messages": [("user", "What is the weather in Lisbon?")]},
            {"recursion_limit": 6},
            stream_mode="values",
        )
    assert asked and asked[0] in ("Lisbon", "Porto"), states


if __name__ == "__main__":
    run(invoke, stream, structured_output, embeddings, langgraph_agent)
