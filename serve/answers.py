"""Chat and completions: recall, generation, OpenAI's format. Each choice is a separate request to the engine."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

from fastapi.responses import JSONResponse, Response

from common.errors import InvalidInput, Overloaded
from models.engine.generation_stats import MOST_ATTRIBUTED
from models.text.messages import Messages, TokenText
from serve import openai_answers as shapes
from serve.access import Principal
from serve.http import HeldStream, unwrap
from serve.parts import Json, Parts, fresh_op
from serve.recall import Recalled
from serve.schemas.requests import ChatBody, CompletionBody
from serve.telemetry import Telemetry

Form = Callable[[Any, str, Sequence[Recalled]], shapes.Reply]
Keep = Callable[[shapes.Reply], Awaitable[None]]


class Answers:
    def __init__(self, parts: Parts, telemetry: Telemetry) -> None:
        self._parts = parts
        self._telemetry = telemetry
        self.in_flight = 0
        self._background: set[asyncio.Task] = set()

    async def answer(
        self,
        body: ChatBody | CompletionBody,
        asking: Principal,
        *,
        counted: bool = True,
        form: Form | None = None,
        keep: Keep | None = None,
    ) -> Response:
        """Answer a request, as one response or as a stream. `counted`: count this as a use of the injected memories.
        `form`: of the response, where it is not that of the body's route; `keep` is awaited once all answers have ended
        and before the client is told.

        Raises `NotFound` for an unknown model, `Forbidden` and `InvalidInput` as `Parts.remembering`, `Overloaded` if
        too many requests run.
        """
        body.memory = self._parts.remembering(body, asking)
        config = self._parts.config
        prompts, samplings = await self._readable(body.prompts), body.sampling(config.serve.max_new_tokens)
        self._parts.version(body.model, asking)  # an unknown one is refused before anything is done
        mode, attribute = str(body.memory.mode), self._attributed(body)
        started = time.perf_counter()
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(self.admitted(len(prompts) * len(samplings)))
            recalled = await asyncio.gather(
                *(self._parts.recall.for_prompt(prompt, body.memory, mode) for prompt in prompts)
            )
            requests = [
                {
                    "messages": found.prompt(prompt, tools=bool(body.shown_tools)),
                    "memories": found.for_engine,
                    "namespace": body.memory.namespace,
                    "mode": mode,
                    "sampling": sampling,
                    "tools": body.shown_tools,
                    "attribute": attribute,
                }
                for prompt, found in zip(prompts, recalled, strict=True)
                for sampling in samplings
            ]
            first, pieces = await self._begun(body.model, asking, requests)
            self._telemetry.began(mode, time.perf_counter() - started)
            await stack.enter_async_context(contextlib.aclosing(pieces))
            reply = (form or _form_of(body))(body, mode, recalled)
            if body.stream:
                held = stack.pop_all()  # the stream ends after this function does
                events = self._events(reply, first, pieces, keep)
                return HeldStream(events, held, media_type="text/event-stream")
            whole = reply.whole([first, *[piece async for piece in pieces]])
            if keep:
                await keep(reply)
        self._after(reply, counted=counted)
        return JSONResponse(whole)

    def _attributed(self, body: ChatBody | CompletionBody) -> bool:
        """Whether it is measured what each memory did to the answer: where it is asked for, and for a share of others
        that can be."""
        memory, recall = body.memory, self._parts.config.recall
        if memory.attribute is None:
            few = (memory.k or recall.k) <= MOST_ATTRIBUTED
            possible = body.n == 1 and few and memory.mode in ("prefix", "hybrid", "text")
            return possible and random.random() < recall.attribute_share
        if memory.attribute and body.n > 1:
            raise InvalidInput(
                f"memory.attribute: n = {body.n}, but influence is told of one answer; ask for one",
                param="memory.attribute",
            )
        return memory.attribute

    async def _readable(self, prompts: Sequence[Messages]) -> Sequence[Messages]:
        """Prompts of token ids with their texts. Raises `InvalidInput` for an id that the vocabulary lacks."""
        given = [prompt.ids for prompt in prompts if isinstance(prompt, TokenText)]
        if not given:
            return prompts
        texts = iter(await self._parts.engines.token_texts(given))
        return [TokenText(p.ids, next(texts)) if isinstance(p, TokenText) else p for p in prompts]

    @contextlib.contextmanager
    def admitted(self, requests: int = 1) -> Iterator[None]:
        """Admit so many engine requests together. Raises `Overloaded`, and `InvalidInput` if they can never fit."""
        limit = self._parts.config.serve.max_queued
        if requests > limit:
            raise InvalidInput(
                f"the call asks for {requests} answers, serve.max_queued is {limit}; send fewer at once",
                param="n",
            )
        if self.in_flight + requests > limit:
            raise Overloaded(
                f"{self.in_flight} requests are in flight, the limit is {limit}; retry after 1 s"
            )
        self.in_flight += requests
        try:
            yield
        finally:
            self.in_flight -= requests

    async def _begun(
        self, model: str, asking: Principal, requests: Sequence[Json]
    ) -> tuple[shapes.Piece, AsyncGenerator[shapes.Piece]]:
        """The first piece, so that an early failure gets its own status code, and the stream of the others. If the
        version of an alias retires before the engine holds it, the alias is resolved again."""
        adapter = self._parts.version(model, asking)
        while True:
            engines = self._parts.engines
            pieces = side_by_side([engines.generate({**request, "adapter": adapter}) for request in requests])
            try:
                return await anext(pieces), pieces
            except Exception as error:
                await pieces.aclose()
                if unwrap(error).code != "adapter_not_found":
                    raise
                before, adapter = adapter, self._parts.version(model, asking)
                if adapter == before:
                    raise

    async def _events(
        self,
        reply: shapes.Reply,
        first: shapes.Piece,
        pieces: AsyncGenerator[shapes.Piece],
        keep: Keep | None,
    ) -> AsyncIterator[str]:
        try:
            yield reply.event(*first)
            async for piece in pieces:
                text = reply.event(*piece)
                if keep and reply.done:
                    await keep(reply)
                yield text
        except Exception as error:  # the status line is gone: the stream itself has to say what failed
            yield reply.failed(unwrap(error).to_dict())
        else:
            self._after(reply)
        yield reply.ending

    def _after(self, reply: shapes.Reply, *, counted: bool = True) -> None:
        """Count a use of each memory that was injected into a prompt."""
        for turn in reply.turns:
            self._telemetry.answered(turn)
        injected = {id: None for turn in reply.turns for id in turn["injected"]}
        if injected and counted:
            namespace = reply.body.memory.namespace
            self._spawn(
                self._parts.store.memories.touch(namespace, [*injected], op_id=fresh_op(), now=time.time())
            )

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._telemetry.background_failed(task.exception())


def _form_of(body: ChatBody | CompletionBody) -> Form:
    return shapes.ChatReply if isinstance(body, ChatBody) else shapes.TextReply


async def side_by_side(streams: Sequence[AsyncGenerator[Json]]) -> AsyncGenerator[shapes.Piece]:
    """Merge streams: `(index of the stream, item)` in order of arrival. The first error ends all of them."""
    told: asyncio.Queue[shapes.Piece | Exception | None] = asyncio.Queue()

    async def follow(place: int, stream: AsyncGenerator[Json]) -> None:
        try:
            async with contextlib.aclosing(stream):
                async for piece in stream:
                    told.put_nowait((place, piece))
            told.put_nowait(None)
        except Exception as error:
            told.put_nowait(error)

    tasks = [asyncio.create_task(follow(place, stream)) for place, stream in enumerate(streams)]
    try:
        running = len(tasks)
        while running:
            item = await told.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
