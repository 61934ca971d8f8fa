"""Which memories a request gets: embed the question, search the shards, keep the trace."""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray.exceptions
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from actors.store.sharded_store import ShardedStore
from common.config import Config
from common.errors import InvalidInput, NotReady
from common.types import Json
from models.text.messages import Messages, TokenText
from serve.http import unwrap
from serve.pages import all_memories
from serve.schemas.requests import MemoryField
from serve.telemetry import Telemetry
from stores.memory.memory import parse_time, plain_words
from stores.memory.period import Period, dated, names_validity, period_in
from stores.ranking.evidence import Evidence, about, evidence
from stores.ranking.ranking import Rerank, relevant

# Behind the question: in the system turn small models pass it over (docs/log.md).
NOTHING_KNOWN = "(You remember nothing about this. If it is not general knowledge, say that you do not know.)"


@dataclass(frozen=True, kw_only=True)
class Recalled:
    """The memories for one prompt. `memories`: most relevant first; or all in order of time in mode `full`, and in
    mode `prefix` if the encoder is `kv_exact`. `evidence`: whether they look like an answer; None where nothing was
    searched. `says_unknown`: the model is told to say that it does not know."""

    memories: list[dict[str, Any]] = field(default_factory=list)
    retrieved: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    failure: str | None = None
    evidence: Evidence | None = None
    says_unknown: bool = False

    @property
    def for_engine(self) -> list[dict[str, str]]:
        return [{"id": memory["id"], "text": dated(memory)} for memory in self.memories]

    def prompt(self, asked: Messages, *, tools: bool) -> Messages:
        """The messages for the model: without evidence for an answer the question says so, unless a tool may know, or
        the conversation: with the note, small models deny what was said a turn before (docs/log.md)."""
        if not (self.says_unknown and self.retrieved) or tools or isinstance(asked, str | TokenText):
            return asked
        turns = [i for i, message in enumerate(asked) if message["role"] in ("user", "assistant", "tool")]
        if len(turns) != 1 or asked[turns[0]]["role"] != "user":
            return asked
        question = asked[turns[0]]
        noted = {**question, "content": f"{question['content']}\n{NOTHING_KNOWN}"}
        return [noted if message is question else message for message in asked]


class Recall:
    def __init__(
        self, store: ShardedStore, embedder: DeploymentHandle, telemetry: Telemetry, config: Config
    ) -> None:
        self._store = store
        self._embedder = embedder
        self._telemetry = telemetry
        self._config = config.recall
        self._deadline_s = config.serve.recall_deadline_s
        histories = config.recall.encoder == "kv_exact"  # a prefix is a namespace's whole history
        self._all_by_time = ("full", "prefix") if histories else ("full",)

    async def for_prompt(self, prompt: Messages, asked: MemoryField, mode: str) -> Recalled:
        """Memories for a prompt. If the store does not answer in time there are none, and `failure` has the reason."""
        question = _question(prompt)
        if mode == "off" or (mode not in self._all_by_time and not question):
            return Recalled()
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._deadline_s):
                memories, retrieved, found = await self._memories(asked, question, mode)
        except (NotReady, TimeoutError, ray.exceptions.RayActorError, RayServeException) as error:
            self._telemetry.recall_failed()
            return Recalled(seconds=time.perf_counter() - started, failure=f"off: {unwrap(error).message}")
        took = time.perf_counter() - started
        silent = found == "none" and self._config.absence
        return Recalled(
            memories=memories, retrieved=retrieved, seconds=took, evidence=found, says_unknown=silent
        )

    async def _memories(
        self, asked: MemoryField, question: str, mode: str
    ) -> tuple[list[Json], list[Json], Evidence | None]:
        if mode in self._all_by_time:
            chosen: Json = {"kinds": asked.kinds, "where": asked.filter}
            period = period_of(question, at=asked.at, where=asked.filter)
            return await all_memories(self._store, asked.namespace, period=period, **chosen), [], None
        results, _ = await self.search(
            asked.namespace,
            question,
            asked.k or self._config.k,
            kinds=asked.kinds,
            where=asked.filter,
            retrieval=asked.retrieval,
            at=asked.at,
        )
        retrieved = [{"id": result["memory"]["id"], "score": result["score"]} for result in results]
        full = asked.retrieval == "full"
        found = evidence(results, self._config.evidence_near) if full else None
        results = [result for result in results if not result["memory"].get("unsupported")]
        if asked.k is None and full:
            results = relevant(results, self._config.min_share)
            results = about(results, question) if found == "none" else results
        return _once_each([result["memory"] for result in results]), retrieved, found

    async def search(
        self,
        namespace: str,
        query: str,
        k: int,
        *,
        kinds: Sequence[str] | None,
        where: dict[str, Any] | None,
        retrieval: str,
        offset: int | None = None,
        at: str | float | None = None,
        history: bool = False,
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Results, most relevant first, and the trace with milliseconds, candidates and best result of each stage. For
        `at` and `history` see `period_of`."""
        period = period_of(query, at=at, history=history, where=where)
        self._telemetry.retrieval_requested()
        started = time.perf_counter()
        [vector] = await self._embedder.encode.remote([query])
        embed = {"stage": "embed", "ms": 1e3 * (time.perf_counter() - started)}
        results, stages = await self._store.search.find_traced(
            namespace,
            vector,
            k,
            query=query,
            retrieval=retrieval,
            kinds=kinds,
            where=where,
            period=period,
            now=None if period is None else _asked_about(period),
            offset=offset,
            rerank=self._rerank(),
        )
        return results, {"retrieval": retrieval, "period": _bounds(period), "stages": [embed, *stages]}

    def _rerank(self) -> Rerank | None:
        """A function that calls the cross-encoder from the ranking thread; None if none is configured."""
        if self._config.reranker is None:
            return None
        loop = asyncio.get_running_loop()

        async def ask(texts: Sequence[str], query: str) -> list[float]:
            return await self._embedder.rerank.remote([*texts], query)

        def rerank(texts: Sequence[str], query: str) -> list[float]:
            return asyncio.run_coroutine_threadsafe(ask(texts, query), loop).result(self._deadline_s)

        return rerank


def period_of(
    question: str, *, at: str | float | None = None, history: bool = False, where: Json | None = None
) -> Period | None:
    """The time at which facts must hold: `at` if given, else the time that the question names, else now. None, which is
    any time, with `history`, or where the filter itself names the validity. Raises `InvalidInput` for a bad `at`."""
    if at is not None:
        if history:
            raise InvalidInput("at: not together with history, which has every time", param="at")
        moment = parse_time(at, "at")
        return moment, moment
    if history or names_validity(where):
        return None
    now = time.time()
    return period_in(question, now) or (now, now)


def _asked_about(period: Period) -> float:
    """The moment from which recency counts and by which facts have ended."""
    return max(period[0], 0.0) if period[1] < time.time() - 1.0 else time.time()


def _bounds(period: Period | None) -> list[float | None] | None:
    return None if period is None else [bound if math.isfinite(bound) else None for bound in period]


def _once_each(memories: Sequence[Json]) -> list[Json]:
    """The memories without those that say the same as one before them, word for word: they would only take room."""
    found: dict[str, Json] = {}
    for memory in memories:
        found.setdefault(" ".join(plain_words(dated(memory))), memory)
    return [*found.values()]


def _question(prompt: Messages) -> str:
    """The query for memories: the last user message, or the whole text to continue."""
    if isinstance(prompt, str | TokenText):
        return prompt if isinstance(prompt, str) else prompt.text
    asked = [m.get("content") for m in prompt if m.get("role") == "user"]
    return str(asked[-1]) if asked else ""
