"""A chat request as token pieces: head | memories | tail.

The head (system turn up to the memory list) is the same for every request, so that a memory encoded behind it
can be injected into any of them; the client's own system text follows the memories. Pieces are tokenised
apart and only then joined, so that the text prompt and the injected prefix are the same ids: byte-pair merges
never cross a piece's edge. A text to continue, as completions have it, takes the tail's place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import InvalidInput
from models.text.messages import MEMORIES, RESPONSE, Message, Messages, TokenText, check_messages
from models.text.tools import Tool, as_text, for_template, renders_tools

PREAMBLE = "You remember these facts:\n"
DEFAULT_SYSTEM = "You are a helpful assistant."


@dataclass(frozen=True)
class Response:
    """One assistant turn inside a `Transcript`'s tail: tokens `start:stop` of `tail`, message `entry_index`."""

    entry_index: int
    start: int
    stop: int


@dataclass(frozen=True)
class Transcript:
    """A conversation whose assistant turns are scored: tail ids and where the responses lie in them."""

    tail: list[int]
    responses: list[Response]


class PromptBuilder:
    """Renders through the tokenizer's own chat template. Raises `InvalidInput` for messages it cannot render."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._native_tools = False
        head = self._render([{"role": "system", "content": PREAMBLE + MEMORIES}], generate=False).partition(
            MEMORIES
        )[0]
        self.head_text = head
        self.head = self._ids(head)
        self._native_tools = renders_tools(
            lambda messages, tools: self._apply(messages, True, tools), head, PREAMBLE + MEMORIES
        )

    def memory(self, text: str) -> list[int]:
        """One memory as a list item. Special tokens inside the text stay plain text: a memory cannot end the turn."""
        return self._tokenizer.encode(
            f"- {text.strip()}\n", add_special_tokens=False, split_special_tokens=True
        )

    def tail(self, asked: Messages, tools: Sequence[Tool] = ()) -> list[int]:
        """What follows the memories: the client's system text, the tools, the conversation, the assistant's opening;
        of a text to continue, that text."""
        if isinstance(asked, str | TokenText):
            return self._ids("\n") + self.continued(asked, begins=False)
        return self._ids(self._after_head(check_messages(asked), generate=True, tools=tools))

    def plain(self, asked: Messages, tools: Sequence[Tool] = ()) -> list[int]:
        """The whole prompt of a request without memory; of a text to continue, as the tokenizer begins texts."""
        if isinstance(asked, str | TokenText):
            return self.continued(asked, begins=True)
        return self._ids(self._render(_with_system(check_messages(asked)), generate=True, tools=tools))

    def continued(self, asked: str | TokenText, *, begins: bool) -> list[int]:
        """The ids of a text to continue; `begins`: with the tokens that the tokenizer puts before every text."""
        if isinstance(asked, TokenText):
            return [*asked.ids]
        return list(self._tokenizer.encode(asked, add_special_tokens=begins))

    def transcript(self, messages: Sequence[Message], *, memories: bool) -> Transcript:
        """A conversation to score. With `memories` the tail follows the memory list, else it is the whole prompt as the
        model's chat template has it: where no system turn is given, with the template's own, if it has one.

        Raises `InvalidInput` where no assistant message has content.
        """
        checked = check_messages(messages)
        entries = [i for i, message in enumerate(checked) if message["role"] == "assistant"]
        if not any(checked[i]["content"] for i in entries):
            raise InvalidInput("messages hold no assistant message to score; add one", param="messages")
        marked = [
            {**message, "content": RESPONSE} if message["role"] == "assistant" else message
            for message in checked
        ]
        text = self._after_head(marked, generate=False) if memories else self._render(marked, generate=False)
        pieces = text.split(RESPONSE)
        if len(pieces) != len(entries) + 1:
            raise InvalidInput(
                "this model's chat template drops or repeats assistant messages", param="messages"
            )
        contents = [checked[entry]["content"] for entry in entries]
        stripped = [content.strip() for content in contents]
        if contents != stripped and not memories:  # some templates strip what they are given
            whole = self._render(checked, generate=False)
            contents = stripped if _joined(pieces, stripped) == whole else contents
        tail, responses = self._ids(pieces[0]), []
        for entry, said, following in zip(entries, contents, pieces[1:], strict=True):
            content = self._ids(said)
            responses.append(Response(entry, len(tail), len(tail) + len(content)))
            tail += content + self._ids(following)
        # Nothing after the last response changes its probability.
        return Transcript(tail[: responses[-1].stop], responses)

    def _after_head(self, messages: list[dict], *, generate: bool, tools: Sequence[Tool] = ()) -> str:
        system, rest = _split_system(messages)
        first = {"role": "system", "content": f"{PREAMBLE}{MEMORIES}\n{system}"}
        text = self._render([first, *rest], generate=generate, tools=tools)
        head, _, tail = text.partition(MEMORIES)
        if head != self.head_text:
            raise InvalidInput(
                "this model's chat template moves the system turn; it cannot hold a prefix", param="model"
            )
        return tail

    def _render(self, messages: list[dict], *, generate: bool, tools: Sequence[Tool] = ()) -> str:
        """`messages` begin with a system message."""
        try:
            if self._native_tools:
                return self._apply(for_template(messages), generate, tools)
            return self._apply(as_text(messages, tools), generate)
        except Exception as error:  # Jinja raises whatever the template's author chose
            raise InvalidInput(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error

    def _apply(self, messages: list[dict], generate: bool, tools: Sequence[Tool] = ()) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                messages, tools=[*tools] or None, add_generation_prompt=generate, tokenize=False
            )
        )

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)


def _split_system(messages: list[dict]) -> tuple[str, list[dict]]:
    if messages[0]["role"] == "system":
        return messages[0]["content"], messages[1:]
    return DEFAULT_SYSTEM, messages


def _joined(pieces: Sequence[str], contents: Sequence[str]) -> str:
    return pieces[0] + "".join(map("".join, zip(contents, pieces[1:], strict=True)))


def _with_system(messages: list[dict]) -> list[dict]:
    system, rest = _split_system(messages)
    return [{"role": "system", "content": system}, *rest]
