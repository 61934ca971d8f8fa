"""The base weights of a replica and the adapter versions loaded on top of them."""

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from peft import PeftModel

from common.errors import Conflict
from models.adapters import BASE, AdapterStore
from models.load import LoadedModel


class Weights:
    """A base model and the adapter versions loaded on top of it. Not thread-safe: the engine's lock holds it."""

    def __init__(self, loaded: LoadedModel, store: AdapterStore, max_adapters: int) -> None:
        self.base = loaded.model
        self._digest = loaded.digest
        self._store = store
        self._max = max_adapters
        self._peft: Any = None
        self._held: OrderedDict[str, None] = OrderedDict()

    @contextlib.contextmanager
    def using(self, digest: str) -> Iterator[Any]:
        """The model to call while answering with this version; `BASE` is the untouched base."""
        if digest == BASE:
            with self._peft.disable_adapter() if self._peft is not None else contextlib.nullcontext():
                yield self.base
            return
        self._load(digest)
        self._peft.set_adapter(digest, inference_mode=True)
        yield self.base  # PEFT injects into the base model's own layers

    def _load(self, digest: str) -> None:
        if digest in self._held:
            self._held.move_to_end(digest)
            return
        trained_on = self._store.manifest(digest).get("model_digest")
        if trained_on != self._digest:
            raise Conflict(
                f"adapter {digest} was trained on base weights {trained_on}, this instance serves {self._digest}; "
                "serve that model, or consolidate again",
                param="model",
                code="adapter_of_another_base",
            )
        path = self._store.path(digest)
        if self._peft is None:
            self._peft = PeftModel.from_pretrained(self.base, path, adapter_name=digest, is_trainable=False)
        else:
            self._peft.load_adapter(path, adapter_name=digest, is_trainable=False)
        self._held[digest] = None
        while len(self._held) > self._max:
            oldest, _ = self._held.popitem(last=False)
            self._peft.delete_adapter(oldest)
