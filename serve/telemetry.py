"""Counters of one API replica, as Prometheus text and as the report's `telemetry`."""

import logging
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

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
        """CON-9's counters; the gate's and the size come from the store's counts."""
        return {
            "retrieval_requests": int(self._value(self._retrievals)),
            "prefix_fallbacks": int(self._value(self._fallbacks)),
            "gate_attempts": store["gate_attempts"],
            "gate_accepts": store["gate_accepts"],
            "store_size": store["memories"],
        }

    def prometheus(self) -> str:
        return generate_latest(self._registry).decode()

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"sharpwave_{name}", text, registry=self._registry)

    def _value(self, counter: Counter) -> float:
        return next(
            s.value for metric in counter.collect() for s in metric.samples if s.name.endswith("_total")
        )
