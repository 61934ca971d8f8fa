"""Pydantic AI: an agent with structured output."""

from typing import Literal

from openai import AsyncOpenAI
from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from steps import ASK, TIMEOUT_S, run


class Visit(BaseModel):
    city: Literal["Lisbon", "Porto"]
    days: int = Field(ge=1, le=9)


def made(url: str, key: str) -> OpenAIChatModel:
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key=key, timeout=TIMEOUT_S, max_retries=0)
    return OpenAIChatModel("base", provider=OpenAIProvider(openai_client=client))


def text(url: str, key: str) -> None:
    assert Agent(made(url, key), model_settings={"max_tokens": 12}).run_sync(ASK).output


def structured_output(url: str, key: str) -> None:
    for form in (Visit, NativeOutput(Visit)):
        agent = Agent(made(url, key), output_type=form, model_settings={"max_tokens": 100})
        assert isinstance(agent.run_sync("Plan a visit to Lisbon of 3 days.").output, Visit), form


if __name__ == "__main__":
    run(text, structured_output)
