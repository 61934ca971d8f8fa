"""The names of models, which may say the memory too, for clients that can send nothing else.

    NAME = BASE [":" VERSION] [":" MODE] ["@" NAMESPACE]

BASE is `base` or the served model's own name, VERSION an alias or a digest, MODE a memory mode; the namespace is all
that follows the first `@`. `base:latest:off@acme`. A mode is never taken for an alias: no alias may be called so.
"""

from dataclasses import dataclass

from common.names import check_name
from common.types import MODES

BASE = "base"


@dataclass(frozen=True)
class ModelName:
    """`version`: the name without what it says of the memory; what it does not say is None."""

    version: str
    mode: str | None = None
    namespace: str | None = None


def parse(name: str, served: str) -> ModelName:
    """`served`: the name of the served model, whose own `:` and `@` divide nothing. Raises `InvalidInput` for a
    namespace that is none; whether the version exists is left to `Parts.version`."""
    for base in sorted({BASE, served}, key=len, reverse=True):
        rest = name.removeprefix(base)
        if name.startswith(base) and rest[:1] in ("", ":", "@"):
            version, at, namespace = rest.partition("@")
            before, _, last = version.rpartition(":")
            mode = last if last in MODES and version else None
            return ModelName(
                base + (before if mode else version),
                mode,
                check_name(namespace, "namespace", "model") if at else None,
            )
    return ModelName(name)
