"""DSPy: a signature answered by `Predict`."""

from typing import Literal

import dspy
from steps import TIMEOUT_S, run


class Served(dspy.LM):
    """DSPy asks for JSON of a schema only from models of its catalogue; a small model needs to be held to it."""

    supports_response_schema = True
    supported_params = frozenset({"max_tokens", "response_format", "temperature"})


class Feeling(dspy.Signature):
    """Say how the sentence sounds."""

    sentence: str = dspy.InputField()
    feeling: Literal["glad", "sad"] = dspy.OutputField()


def predict(url: str, key: str) -> None:
    lm = Served(
        "openai/base",
        api_base=f"{url}/v1",
        api_key=key,
        max_tokens=60,
        cache=False,
        timeout=TIMEOUT_S,
        num_retries=0,
    )
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
        found = dspy.Predict(Feeling)(sentence="What a lovely morning!")
    assert found.feeling in ("glad", "sad"), found


if __name__ == "__main__":
    run(predict)
