"""Counters of one API replica, as Prometheus text and as the report's `telemetry`."""

import logging
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

logger = logging.getLogger(__name__)


class Telemetry:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._retrievals = self._counter("retrieval_requests", "Searches of the stores")
        self._recall_failures = self._counter("recall_failures", "Answers without memory: a store was silent")
        self._fallbacks = self._counter("prefix_fallbacks", "Prefix requests answered from text or cut short")
        self._background = self._counter("background_failures", "Failed usage updates and encode requests")
        self._prompt = self._counter("prompt_tokens", "Prompt tokens processed")
        self._cached = self._counter("prefix_tokens", "Prefix slots injected")
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

    def answered(self, turn: dict[str, Any]) -> None:
        self._seconds.labels(turn["mode"]).observe(turn["generate_s"])
        self._prompt.inc(turn["prompt_tokens"])
        self._cached.inc(turn["prefix_tokens"])
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

    def prometheus(self, store: dict[str, Any] | None) -> str:
        """Metrics of this replica and, if its counts are known, of the store (the same at every replica)."""
        of_store = CollectorRegistry()
        if store is not None:
            of_store.register(StoreCounts(store))
        return (generate_latest(self._registry) + generate_latest(of_store)).decode()

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
