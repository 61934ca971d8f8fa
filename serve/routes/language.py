"""OpenAI's routes: chat, completions, embeddings, models; and scores. OpenAI parameters without an effect here are
accepted and listed in `warnings`."""

import base64
from collections.abc import Sequence
from typing import Annotated, Any, cast

import numpy as np
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from common.errors import InvalidInput, NotFound
from models.text.messages import TokenText, check_messages
from serve.answers import Answers
from serve.openai_answers import model_entry
from serve.parts import Asking, Here, Json, Parts
from serve.schemas import responses as told
from serve.schemas.requests import ChatBody, CompletionBody, EmbeddingsBody, ScoreBody

router = APIRouter()


def answers_of(request: Request) -> Answers:
    return cast(Answers, request.app.state.answers)


Answering = Annotated[Answers, Depends(answers_of)]


@router.post("/v1/chat/completions", response_model=told.ChatAnswer, responses=told.STREAM)
async def chat(body: ChatBody, asking: Asking, answers: Answering) -> Response:
    """Answer a conversation, with the memories that `memory` asks for."""
    return await answers.answer(body, asking)


@router.post("/v1/completions", response_model=told.CompletionAnswer, responses=told.STREAM)
async def completions(body: CompletionBody, asking: Asking, answers: Answering) -> Response:
    """Continue texts as they stand, without a chat template; memories come before them."""
    return await answers.answer(body, asking)


@router.post("/v1/embeddings", response_model=told.EmbeddingsAnswer, response_model_exclude_unset=True)
async def embeddings(body: EmbeddingsBody, asking: Asking, parts: Here) -> Json:
    """Texts to the unit vectors by which memories are found."""
    name = parts.config.embed.model
    if body.model not in ("", name, *parts.config.embed.aliases):
        raise NotFound(
            f"embedding model {body.model!r} does not exist; this instance has {name!r}",
            param="model",
            code="model_not_found",
        )
    texts = await _texts(body, parts)
    vectors, counts = await parts.embedder.encode_counted.remote(texts)
    tokens = sum(read for read, _ in counts)
    if body.dimensions not in (None, vectors.shape[1]):
        raise InvalidInput(
            f"dimensions = {body.dimensions}: {name} has {vectors.shape[1]}, and no shorter vectors",
            param="dimensions",
        )
    rows = [vector if body.encoding_format == "base64" else vector.tolist() for vector in vectors]
    return {
        "object": "list",
        "model": body.model or name,
        "data": [
            {"object": "embedding", "index": i, "embedding": row if isinstance(row, list) else _base64(row)}
            for i, row in enumerate(rows)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        **_warned(body.warnings() + _cut(counts)),
    }


@router.post("/v1/score", response_model=told.ScoresAnswer, response_model_exclude_unset=True)
async def score(body: ScoreBody, asking: Asking, parts: Here, answers: Answering) -> Json:
    """Log-probability of each assistant message given what came before it, in nats."""
    adapter = parts.version(body.model, asking)
    messages = check_messages(body.messages)
    with answers.admitted():
        scores = await parts.engines.score(messages, adapter)
    return {"scores": scores, **_warned(body.warnings())}


@router.get("/v1/models", response_model=told.ModelsAnswer)
async def models(asking: Asking, parts: Here) -> Json:
    """Every name that a request's `model` may have; the last ones are for embeddings."""
    chat = [model_entry(name, "chat") for name in await parts.loadable_names(asking)]
    embedding = [model_entry(name, "embedding") for name in _embedders(parts)]
    return {"object": "list", "data": [*chat, *embedding]}


@router.get("/v1/models/{name:path}", response_model=told.ModelEntry)
async def model(name: str, asking: Asking, parts: Here) -> Json:
    if name in _embedders(parts):
        return model_entry(name, "embedding")
    parts.version(name, asking)
    return model_entry(name, "chat")


def _embedders(parts: Parts) -> list[str]:
    return [*parts.config.embed.aliases, parts.config.embed.model]


async def _texts(body: EmbeddingsBody, parts: Parts) -> list[str]:
    """What is to be embedded. Raises `InvalidInput` for token ids where it is not set whose they are: ids of another
    vocabulary would get vectors of other words."""
    given = body.texts
    ids = [[*text.ids] for text in given if isinstance(text, TokenText)]
    if ids and parts.config.embed.token_ids is None:
        raise InvalidInput(
            "input holds token ids, and it is not known of which tokenizer: send texts (LangChain: "
            "check_embedding_ctx_length=False), or set embed.token_ids to the client's tokenizer",
            param="input",
        )
    decoded = iter(await parts.embedder.token_texts.remote(ids) if ids else [])
    return [next(decoded) if isinstance(text, TokenText) else text for text in given]


def _cut(counts: Sequence[tuple[int, int]]) -> list[str]:
    """A warning for each text that is longer than what the embedder reads."""
    return [
        f"input[{i}]: {read} of its {whole} tokens were read, the rest is not in its vector; send shorter pieces"
        for i, (read, whole) in enumerate(counts)
        if read < whole
    ]


def _base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _warned(warnings: list[str]) -> dict[str, Any]:
    return {"warnings": warnings} if warnings else {}
