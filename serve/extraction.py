"""What is stated in a conversation, as the served model finds it: one chat request without memory."""

import json
import re

from common.types import Json
from serve.access import Principal
from serve.answers import Answers
from serve.schemas.requests import ChatBody, MemoryField, WriteBody
from stores.imports.chat import digest, text_of

ASKED = (
    "You are given a conversation. List what it states about people and things that is worth remembering. Write one "
    "statement a line, begin each line with '- ', and name who or what it is about, so that the line can be understood "
    "by itself. Write the list and nothing else. If there is nothing to remember, write: none"
)
_ITEM = re.compile(r"^\s*(?:[-*\u2022]|\d+[.)])\s+(.+?)\s*$", re.MULTILINE)


async def memories(
    body: WriteBody, asking: Principal, answers: Answers, instructions: str = ""
) -> list[Json]:
    """An episode for each statement in `body.messages`, of its conversation. Empty if the model's answer is no list.
    Raises as a chat does: `Overloaded`, or `InvalidInput` for a conversation that is too long for the model."""
    messages = body.messages or []
    said = "\n".join(f"{message.get('role')}: {text_of(message.get('content'))}" for message in messages)
    asked = [
        {"role": "system", "content": "\n".join(filter(None, (ASKED, instructions)))},
        {"role": "user", "content": said},
    ]
    chat = ChatBody(messages=asked, memory=MemoryField(mode="off"))
    response = await answers.answer(chat, asking, counted=False)
    [choice] = json.loads(bytes(response.body))["choices"]
    item = {
        "conversation": body.conversation or digest(messages),
        "context": {**(body.context or {}), "inferred": True},
        **({"time": body.time} if body.time is not None else {}),
    }
    cut = choice["finish_reason"] == "length"
    return [{"text": text, **item} for text in stated(choice["message"]["content"], cut=cut)]


def stated(answer: str, *, cut: bool = False) -> list[str]:
    """The items of the list that an answer is, each once; where it was `cut` off, without the last."""
    found = _ITEM.findall(answer)
    return [*dict.fromkeys(found[:-1] if cut else found)]
