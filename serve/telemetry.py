"""Counters of one API replica, as Prometheus text and as the report's `telemetry`; the requests are counted by a
middleware."""

import logging
from collections.abc import Iterator
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)
disable_created_metrics()  # a series more for each one, which nobody reads
FIRST_TOKEN_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
GONE = 499  # as nginx calls a client that left before it was answered


class Telemetry:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._retrievals = self._counter("retrieval_requests", "Searches of the stores")
        self._recall_failures = self._counter("recall_failures", "Answers without memory: a store was silent")
        self._fallbacks = self._counter("prefix_fallbacks", "Prefix requests answered from text or cut short")
        self._background = self._counter("background_failures", "Failed usage updates and encode requests")
        self._prompt = self._counter("prompt_tokens", "Prompt tokens processed")
        self._cached = self._counter("prefix_tokens", "Prefix slots injected")
        self._output = self._counter("output_tokens", "Tokens of answers")
        self._requests = Counter(
            "sharpwave_requests",
            "HTTP requests answered",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._first = Histogram(
            "sharpwave_first_token_seconds",
            "From a request to the first piece of its answer, with recall and waiting",
            ["mode"],
            registry=self._registry,
            buckets=FIRST_TOKEN_S,
        )
        self._seconds = Histogram(
            "sharpwave_generate_seconds", "Prefill and decoding", ["mode"], registry=self._registry
        )

    def retrieval_requested(self) -> None:
        self._retrievals.inc()

    def recall_failed(self) -> None:
        self._recall_failures.inc()

    def background_failed(self, error: BaseException | None) -> None:
        self._background.inc()
        logger.warning("background work failed: %s", type(error).__name__)

    def requested(self, method: str, route: str, status: int) -> None:
        self._requests.labels(method, route, str(status)).inc()

    def began(self, mode: str, seconds: float) -> None:
        self._first.labels(mode).observe(seconds)

    def answered(self, turn: dict[str, Any]) -> None:
        self._seconds.labels(turn["mode"]).observe(turn["generate_s"])
        self._prompt.inc(turn["prompt_tokens"])
        self._cached.inc(turn["prefix_tokens"])
        self._output.inc(turn["completion_tokens"])
        if turn["fallback"]:
            self._fallbacks.inc()

    def of(self, store: dict[str, Any]) -> dict[str, int]:
        """Counters for `/ready`; those of the write gate and the size come from the store's counts."""
        return {
            "retrieval_requests": int(self._value(self._retrievals)),
            "prefix_fallbacks": int(self._value(self._fallbacks)),
            "gate_attempts": store["gate_attempts"],
            "gate_accepts": store["gate_accepts"],
            "duplicates": store["duplicates"],
            "store_size": store["memories"],
        }

    def prometheus(
        self, store: dict[str, Any] | None, engine: dict[str, Any] | None = None, *, in_flight: int = 0
    ) -> str:
        """Metrics of this replica and, where they are known, of store and engine (the same at every replica)."""
        now = CollectorRegistry()
        now.register(Load(in_flight, engine))
        if store is not None:
            now.register(StoreCounts(store))
        return (generate_latest(self._registry) + generate_latest(now)).decode()

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"sharpwave_{name}", text, registry=self._registry)

    def _value(self, counter: Counter) -> float:
        return next(
            s.value for metric in counter.collect() for s in metric.samples if s.name.endswith("_total")
        )


class StoreCounts(Collector):
    """The store's counts as metrics. They are derived from the logs, so they survive a restart."""

    def __init__(self, store: dict[str, Any]) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        for name, text in (
            ("gate_attempts", "Memories that the write gate decided on"),
            ("gate_accepts", "Those of them that were stored"),
            ("duplicates", "Memories that said what one already says, and were counted there"),
        ):
            yield CounterMetricFamily(f"sharpwave_{name}", text, value=self._store[name])
        yield GaugeMetricFamily("sharpwave_store_size", "Memories held", value=self._store["memories"])


class Load(Collector):
    """How much there is to do: answers on their way at this replica, and of them what waits and runs in all engines."""

    def __init__(self, in_flight: int, engine: dict[str, Any] | None) -> None:
        self._in_flight = in_flight
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("sharpwave_in_flight", "Answers on their way", value=self._in_flight)
        if self._engine is not None:
            for name, of, text in (
                ("queue_length", "waiting", "Answers that wait for an engine"),
                ("running", "running", "Answers that decode"),
            ):
                yield GaugeMetricFamily(f"sharpwave_{name}", text, value=self._engine[of])


class CountRequests:
    """Middleware that counts the answers of `app.state.telemetry` by method, route and status. The outermost, so that
    it sees what others refuse."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})  # `only_known` leaves the route there, also where this scope is copied
        status = GONE

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, told)
        except Exception:
            status = 500
            raise
        finally:
            scope["app"].state.telemetry.requested(scope["method"], _route(scope), status)


def _route(scope: Scope) -> str:
    """The path as it is declared, so that there are as many as routes; `none` of what was refused before it had one."""
    found = scope["state"].get("route") or scope.get("route")
    return str(getattr(found, "path_format", getattr(found, "path", "none")))
