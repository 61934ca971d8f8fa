"""The base weights of a replica and the adapter versions loaded on top of them."""

import contextlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from common.errors import Conflict
from models.weights.adapters import BASE, AdapterStore
from models.weights.load import LoadedModel
from models.weights.load_report import check_adapter, load_report

_PEFT_BASE = "__base__"  # PEFT's name for a row of a mixed batch that no adapter touches


class ModelVersions:
    """A base model and the adapter versions loaded on top of it. Not thread-safe: the engine's lock protects it.

    A version stays loaded while it is held (`hold`, `release`) and, after that, while it is among the `max_adapters`
    most recently used. A retired version stays loaded only for its holders and cannot be held again.
    """

    def __init__(self, loaded: LoadedModel, store: AdapterStore, max_adapters: int) -> None:
        self.base = loaded.model
        self._digest = loaded.digest
        self.store = store
        self.max_adapters = max_adapters
        self._peft: Any = None
        self._loaded: OrderedDict[str, int] = OrderedDict()  # which load it was
        self.loads = 0
        self._holders: Counter[str] = Counter()
        self._retired: set[str] = set()

    @property
    def loaded(self) -> list[str]:
        """Versions in memory, least recently used first."""
        return [*self._loaded]

    def exists(self, digest: str) -> bool:
        return digest == BASE or self.store.has(digest)

    def load_of(self, digest: str) -> int:
        """Identifies the memory of the weights of a held version: a new number after each loading."""
        return 0 if digest == BASE else self._loaded[digest]

    def check(self, digest: str) -> None:
        """Raises `NotFound` if this version does not exist, and `Conflict` if it could not be loaded onto this base."""
        if digest != BASE:
            with self._checked(digest):
                pass

    def hold(self, digest: str) -> None:
        """Keep this version loaded until `release`. Raises `NotFound` if it is retired, and the errors of loading."""
        if digest != BASE:
            self.store.check(digest)
            self._holders[digest] += 1
            try:
                self._load(digest)
            except BaseException:
                self.release(digest)
                raise

    def release(self, digest: str) -> None:
        if digest != BASE:
            self._holders[digest] -= 1
            self._holders += Counter()  # forgets those at 0
            self._evict()

    def retire(self, digest: str) -> None:
        """Unload this version as soon as it is no longer held."""
        self._retired.add(digest)
        self._evict()

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

    @contextlib.contextmanager
    def mixed(self, digests: Sequence[str]) -> Iterator[Callable[..., Any]]:
        """The model to call with a batch whose rows belong to these versions."""
        if len(set(digests)) == 1:
            with self.using(digests[0]) as model:
                yield model
            return
        for digest in {*digests} - {BASE}:
            self._load(digest, evict=False)
        yield partial(self._peft, adapter_names=[digest or _PEFT_BASE for digest in digests])

    def _load(self, digest: str, *, evict: bool = True) -> None:
        if digest in self._loaded:
            self._loaded.move_to_end(digest)
            return
        with self._checked(digest) as path:
            if self._peft is None:
                from peft import PeftModel  # seconds of import, which who deploys a replica need not wait for

                self._peft = PeftModel.from_pretrained(
                    self.base, path, adapter_name=digest, is_trainable=False
                )
            else:
                self._peft.load_adapter(path, adapter_name=digest, is_trainable=False)
        self.loads += 1
        self._loaded[digest] = self.loads
        if evict:
            self._evict(besides=digest)

    @contextlib.contextmanager
    def _checked(self, digest: str) -> Iterator[Path]:
        """A copy of a version's files that fit this base. Raises `NotFound` and `Conflict`."""
        trained_on = self.store.manifest(digest).get("model_digest")
        if trained_on != self._digest:
            raise Conflict(
                f"adapter {digest} was trained on base weights {trained_on}, this instance serves {self._digest}; "
                "serve that model, or consolidate again",
                param="model",
                code="adapter_of_another_base",
            )
        with self.store.copied(digest) as path:
            self.store.check_whole(digest, path)
            check_adapter(load_report(self.base, path))
            yield path

    def _evict(self, besides: str | None = None) -> None:
        """Unload what nobody holds: the retired, and of the others those used longest ago, down to the bound."""
        for digest in [
            digest for digest in self._loaded if digest not in self._holders and digest != besides
        ]:
            if digest in self._retired or len(self._loaded) > self.max_adapters:
                del self._loaded[digest]
                self._unload(digest)
        self._retired &= self._loaded.keys()

    def _unload(self, digest: str) -> None:
        if self._loaded:
            self._peft.delete_adapter(digest)
        else:  # PEFT cannot be without one: the base model gets its own layers back
            self._peft.unload()
            self._peft = None
