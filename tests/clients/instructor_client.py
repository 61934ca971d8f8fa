"""Instructor: an answer as an object of a Pydantic model."""

from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel, Field
from steps import TIMEOUT_S, run


class Person(BaseModel):
    name: str = Field(max_length=20)
    role: Literal["baker", "pilot"]


def extracted(url: str, key: str, mode: instructor.Mode) -> None:
    openai = OpenAI(base_url=f"{url}/v1", api_key=key, timeout=TIMEOUT_S, max_retries=0)
    found = instructor.from_openai(openai, mode=mode).chat.completions.create(
        model="base",
        messages=[{"role": "user", "content": "Extract: Ada is a baker."}],
        response_model=Person,
        max_tokens=100,
        max_retries=0,
    )
    assert isinstance(found, Person), found


def by_a_tool(url: str, key: str) -> None:
    extracted(url, key, instructor.Mode.TOOLS)


def by_a_schema(url: str, key: str) -> None:
    extracted(url, key, instructor.Mode.JSON_SCHEMA)


if __name__ == "__main__":
    run(by_a_tool, by_a_schema)
