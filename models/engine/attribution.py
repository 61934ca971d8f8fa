"""How much each injected memory mattered to the answer just given.

    divergence of memory i = log p(answer | prompt) - log p(answer | prompt without memory i)      nats, signed

Memories are hidden as `models.scoring.hidden_blocks` says, also where they are text: no token sees the hidden one, and
all else keeps its place. End tokens do not count. `noise` is the same with nothing hidden, against the
log-probabilities that the answer was chosen by: what the other order of the same sums makes.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from models.kv.prefix import Prefix
from models.scoring.hidden_blocks import Branch, HiddenBlocks, batches
from models.text.prompt import Response, Transcript


class Attribution:
    """Of one request. `hideable`: the prefix whose owners are the memories `injected`, and the ids behind it; None
    where no memory was injected."""

    def __init__(self, hideable: tuple[Prefix, list[int]] | None, injected: Sequence[str]) -> None:
        self._hideable = hideable
        self._injected = [*injected]
        self._tokens: list[int] = []
        self._chosen: list[Tensor] = []  # log p of each token when it was chosen
        self._scoring: HiddenBlocks | None = None
        self._branches: list[Branch] = []
        self._found: dict[int, float] = {}  # log p by row; row 0 hides nothing, row i + 1 memory i

    @property
    def influence(self) -> dict[str, float]:
        """Nats by id of the injected memory, once `advance` has returned True."""
        return {id: self._found[0] - self._found[i] for i, id in enumerate(self._injected, 1)}

    @property
    def noise(self) -> float:
        return abs(self._found[0] - sum(float(logprob) for logprob in self._chosen))

    def take(self, token: int, logits: Tensor) -> None:
        """A token of the answer, chosen from these logits, `[vocabulary]`."""
        self._tokens.append(token)
        if self._hideable:
            scores = logits.float()
            self._chosen.append(scores[token] - scores.logsumexp(0))

    def advance(self, model: Any, limit: int) -> bool:
        """Run one pass of at most `limit` tokens, or of one row. Returns whether all is known."""
        if self._hideable is None or not self._tokens:
            self._found = dict.fromkeys(range(1 + len(self._injected)), 0.0)
            return True
        if self._scoring is None:
            prefix, asked = self._hideable
            ids = asked + self._tokens
            self._scoring = HiddenBlocks(prefix, [Transcript(ids, [Response(0, len(asked), len(ids))])])
            self._branches = [*self._scoring.branches([(), *((i,) for i in range(len(self._injected)))])]
        batch = next(batches(iter(self._branches), limit))
        for branch, [logprob] in zip(batch, self._scoring.run(model, batch), strict=True):
            self._found[branch.row] = logprob
        del self._branches[: len(batch)]
        return not self._branches
