"""OpenAI's `/v1/responses`: the core of it, on the same recall and engine as chat."""

import time
from collections.abc import Sequence
from functools import partial
from typing import cast

from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import ValidationError

from common.errors import InvalidInput
from serve.openai_answers import Reply
from serve.openai_responses import ResponsesReply, fresh_id, history_of, turns_of
from serve.parts import Asking, Here, Json, fresh_op
from serve.routes.language import Answering
from serve.schemas import responses as told
from serve.schemas.openai_responses import ResponsesBody, messages_of
from serve.schemas.requests import ChatBody

router = APIRouter()


@router.post("/v1/responses", response_model=told.ResponsesAnswer, responses=told.STREAM)
async def respond(body: ResponsesBody, asking: Asking, parts: Here, answers: Answering) -> Response:
    """Answer `input` behind earlier responses, with the memories that `memory` asks for."""
    namespace = ""
    if body.store or body.previous_response_id:
        namespace = parts.remembering(body, asking).namespace or asking.space(None)
    history = await history_of(parts.store.conversations, namespace, body.previous_response_id)
    chat = _chat(body, history)
    form = partial(ResponsesReply, asked=body, id=(id := fresh_id()))
    if not body.store:
        return await answers.answer(chat, asking, form=form)
    said = cast(list[Json], chat.prompts[0])[-len(messages_of(body.input)) :]
    limit = parts.config.store.max_turns
    if limit and len(said) + 2 > limit:
        raise InvalidInput(
            f"input has {len(said)} messages, store.max_turns is {limit}: send fewer, or store = false",
            param="input",
        )

    async def keep(reply: Reply) -> None:
        turns = turns_of(body.previous_response_id, [*said, cast(ResponsesReply, reply).message])
        await parts.store.conversations.push(namespace, id, turns, op_id=fresh_op(), now=time.time())

    return await answers.answer(chat, asking, form=form, keep=keep)


def _chat(body: ResponsesBody, history: Sequence[Json]) -> ChatBody:
    """The chat request. Raises as a body of chat does."""
    try:
        return body.chat(history)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
