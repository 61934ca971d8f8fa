"""What an API key opens, as `serve.api_keys` says it."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from common.names import ALL, normal
from common.types import Mode


def _written(value: Any) -> Any:
    return "off" if value is False else value


ModeSetting = Annotated[Mode, BeforeValidator(_written)]
"""A mode in a configuration: YAML reads a bare `off` as false."""


class KeyRights(BaseModel):
    """`namespaces` that the key may use, `["*"]` for all. What a request gets that says nothing: `namespace`, which is
    the only one of a key that has one, and the `memory` mode. A bare list is the `namespaces`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    namespaces: list[str] = Field(min_length=1)
    namespace: str | None = None
    memory: ModeSetting | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare_list(cls, value: Any) -> Any:
        return {"namespaces": value} if isinstance(value, list) else value

    @field_validator("namespaces")
    @classmethod
    def _normal(cls, namespaces: list[str]) -> list[str]:
        return [normal(namespace) for namespace in namespaces]

    @model_validator(mode="after")
    def _default_is_open(self) -> Self:
        if self.namespace is not None and not {ALL, normal(self.namespace)} & {*self.namespaces}:
            raise ValueError(f"namespace {self.namespace!r} is none of its namespaces")
        return self

    @property
    def default(self) -> str | None:
        """The namespace of a request that names none; None: it has to, or the configured one applies to `*`."""
        if self.namespace is not None:
            return normal(self.namespace)
        only = self.namespaces[0]
        return only if len({*self.namespaces}) == 1 and only != ALL else None
