"""Order of requests and their admission to the KV cache.

A request is `waiting`, then `prefilling` (one at a time), then `running` (one row of the KV cache each) until it is
removed, or `attributing` while it is measured which memories mattered to its answer. Requests are admitted in order of
arrival, once there is a free row (`serve.max_batch`) and memory for all slots that the request may use
(`serve.kv_cache_bytes`).
"""

from collections import deque
from typing import Any

import torch
from torch import Tensor

from common.config import ServeConfig
from common.errors import InvalidInput
from models.engine.kv_cache import KVCache
from models.engine.request import Request

PREFILL_ALONE = 2048  # tokens of prompts in a step while nobody waits for a next token


class Scheduler:
    """Requests by state, and the KV cache of the running ones. Not thread-safe: the engine's lock protects it.

    `config`, `dtype`: configuration and dtype of the model whose keys and values are cached.
    """

    def __init__(self, serve: ServeConfig, config: Any, dtype: torch.dtype) -> None:
        self.cache = KVCache(serve.kv_cache_bytes)
        self.waiting: deque[Request] = deque()
        self.prefilling: Request | None = None
        self.running: list[Request] = []  # by row of the cache
        self.attributing: deque[Request] = deque()
        self._serve = serve
        self._config, self._dtype = config, dtype

    @property
    def num_requests(self) -> int:
        return len(self.waiting) + self.num_running + len(self.attributing)

    @property
    def num_running(self) -> int:
        """Number of running requests, plus the one being prefilled."""
        return len(self.running) + (self.prefilling is not None)

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens that the next step may run: fewer while other requests are decoding."""
        return self._serve.prefill_tokens if self.running else PREFILL_ALONE

    def check_room(self, slots: int) -> None:
        """Raise `InvalidInput` if `slots` exceed the whole cache: such a request would wait for ever."""
        need = KVCache.bytes_for(slots, self._config, self._dtype)
        if need > self._serve.kv_cache_bytes:
            raise InvalidInput(
                f"prompt and answer need {need} bytes of KV cache, serve.kv_cache_bytes is "
                f"{self._serve.kv_cache_bytes}; shorten messages, lower max_tokens, or raise it",
                param="messages",
                code="kv_cache_exceeded",
            )

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def next_to_prefill(self) -> Request | None:
        """The request being prefilled, or else the first waiting one if it can be admitted; None if neither."""
        free = self.prefilling is None and len(self.running) < self._serve.max_batch
        if free and self.waiting and self._has_room(self.waiting[0]):
            self.prefilling = self.waiting.popleft()
        return self.prefilling

    def end_prefill(self) -> None:
        self.prefilling = None

    def start_decoding(self, request: Request, states: Tensor) -> None:
        """Assign the request a cache row initialised with `states`, `[layers, 2, kv_heads, slots, head_dim]`."""
        self.cache.join(states, request.slots)
        self.running.append(request)

    def remove(self, request: Request) -> bool:
        """Remove the request, whatever its state. Returns whether it was there."""
        if request in self.waiting:
            self.waiting.remove(request)
        elif request is self.prefilling:
            self.prefilling = request.prefill = None
        elif request in self.attributing:
            self.attributing.remove(request)
        elif request in self.running:
            row = self.running.index(request)
            self.cache.leave(row)  # the last row takes its number
            last = self.running.pop()
            if row < len(self.running):
                self.running[row] = last
        else:
            return False
        return True

    def drop_running(self) -> None:
        """Remove all running requests and clear the cache."""
        self.running.clear()
        self.cache.clear()

    def _has_room(self, request: Request) -> bool:
        return not self.running or self.cache.fits(request.slots, self._config, self._dtype)
