"""An agent of LangGraph with two tools and a memory: five scripted turns, each checked.

    sharpwave up --set model.name=MODEL
    .venv-clients/bin/python benchmarks/agent.py --url http://127.0.0.1:8100      # environment of `make clients`

The agent knows no field of ours: its namespace stands in the model's name (`base@agent`). Two turns need what only the
memory tells, two a tool, one the conversation. A turn is right if the tool was called as it must be, or not called,
and if the answer has the word that it must have. `--choice auto` leaves to the model whether it calls; `scripted` asks
for a call where the turn needs one, of whichever tool and with whichever arguments the model likes, and else for none.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import MemorySaver
from langgraph.errors import GraphRecursionError
from langgraph.prebuilt import create_react_agent

NAMESPACE = "agent"
MEMORIES = ["The user's home town is Porto.", "The user's budget for a dinner is 40 euros."]
SYSTEM = (
    "You are a helpful assistant. If a tool helps, call it once. Once you have its result, do not call it again: say "
    "the result in one short sentence of plain English."
)
Call = tuple[str, dict[str, Any]]
TURNS: list[tuple[str, Call | None, str]] = [  # what is said, the call, a word of the answer
    ("What is the weather in my home town?", ("weather", {"city": "Porto"}), "sunny"),
    ("How much is 17 times 23?", ("multiply", {"a": 17, "b": 23}), "391"),
    ("What is the weather in Lisbon?", ("weather", {"city": "Lisbon"}), "rain"),
    ("Remind me: how much was 17 times 23?", None, "391"),
    ("What is my budget for a dinner?", None, "40"),
]


@tool
def weather(city: str) -> str:
    """The weather in a city today."""
    return {"Porto": "sunny, 24 degrees", "Lisbon": "rain, 15 degrees"}.get(city, "no such city")


@tool
def multiply(a: int, b: int) -> int:
    """The product of two integers."""
    return a * b


def play(url: str, choice: str) -> list[dict[str, Any]]:
    model = ChatOpenAI(
        base_url=f"{url}/v1",
        api_key="none",
        model=f"base@{NAMESPACE}",
        temperature=0,
        max_tokens=96,
        timeout=600,
    )
    tools = [weather, multiply]

    def chosen(state: Any, runtime: Any) -> Any:
        if choice == "auto":
            return model.bind_tools(tools)
        last = state["messages"][-1]
        first = isinstance(last, HumanMessage) and any(
            call and said == last.content for said, call, _ in TURNS
        )
        return model.bind_tools(tools, tool_choice="required" if first else "none", parallel_tool_calls=False)

    agent = create_react_agent(chosen, tools, prompt=SYSTEM, checkpointer=MemorySaver())
    rows: list[dict[str, Any]] = []
    for said, call, word in TURNS:
        started, failure, messages = time.perf_counter(), None, []
        try:
            state = agent.invoke(
                {"messages": [HumanMessage(said)]},
                {"recursion_limit": 8, "configurable": {"thread_id": "1"}},
            )
            last = max(i for i, message in enumerate(state["messages"]) if isinstance(message, HumanMessage))
            messages = state["messages"][last + 1 :]
        except GraphRecursionError as error:
            failure = str(error)
        calls = [
            (made["name"], made["args"])
            for m in messages
            if isinstance(m, AIMessage)
            for made in m.tool_calls
        ]
        answer = str(messages[-1].content) if messages else ""
        right = (call in calls if call else not calls) and word.lower() in answer.lower()
        took = time.perf_counter() - started
        row = {
            "said": said,
            "calls": calls,
            "answer": answer,
            "failure": failure,
            "right": right,
            "seconds": took,
        }
        rows.append(row)
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--choice", choices=["auto", "scripted"], default="auto")
    parser.add_argument("--out", type=Path, default=Path("runs/agent.json"))
    args = parser.parse_args()
    with httpx.Client(base_url=args.url, timeout=600) as client:
        memories = {"namespace": NAMESPACE, "memories": [{"text": text} for text in MEMORIES]}
        client.post("/v1/memories", json=memories).raise_for_status()
        served = client.get("/v1/models").json()["data"][1]["id"]
    rows = play(args.url, args.choice)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"model": served, "choice": args.choice, "rows": rows}, indent=1))
    print(f"{served}: {sum(row['right'] for row in rows)} of {len(rows)} turns right")


if __name__ == "__main__":
    main()
