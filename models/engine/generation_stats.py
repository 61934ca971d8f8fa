"""Statistics of one generation request."""

from dataclasses import dataclass, field
from typing import Any

MOST_ATTRIBUTED = 64  # memories of one answer, each of which costs a pass over question and answer


@dataclass(kw_only=True)
class GenerationStats:
    """Filled in while the request runs. `prompt_tokens` were processed, `prefix_tokens` injected. Times are in
    seconds since the request was submitted. `logprobs`: OpenAI's entry for each token, if requested.

    `influence`, if requested: by injected memory the divergence in nats of the answer (`models.engine.attribution`);
    `influence_noise`: the largest divergence so far with nothing hidden, which is what the computation alone makes;
    `attribute_s`: seconds between the answer's last token and its attribution.
    """

    mode: str
    injected: list[str] = field(default_factory=list)
    prefix_tokens: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    fallback: str | None = None
    finish_reason: str = "length"
    queued_s: float = 0.0
    prefill_s: float = 0.0
    generate_s: float = 0.0
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    influence: dict[str, float] | None = None
    influence_noise: float | None = None
    attribute_s: float = 0.0
