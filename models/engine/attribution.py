"""How much each injected memory mattered to the answer just given.

    divergence of memory i = log p(answer | prompt) - log p(answer | prompt without memory i)      nats, signed

Memories are hidden as `models.scoring.hidden_blocks` says, also where they are text: no token sees the hidden one, and
all else keeps its place. End tokens do not count. The first term is what the answer was chosen by. `noise` is the
divergence of a null row, which hides nothing: what the other order of the same sums makes. A null row costs as much as
a memory, so it is run for one answer in `NULL_EVERY`.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from models.kv.prefix import Prefix
from models.scoring.hidden_blocks import Branch, HiddenBlocks, batches
from models.text.prompt import Response, Transcript

NULL_EVERY = 16


class Attribution:
    """Of one request. `hideable`: the prefix whose owners are the memories `injected`, and the ids behind it; None
    where no memory was injected. `null`: run the null row too."""

    def __init__(
        self, hideable: tuple[Prefix, list[int]] | None, injected: Sequence[str], *, null: bool
    ) -> None:
        self._null = null
        self._hideable = hideable
        self._injected = [*injected]
        self._tokens: list[int] = []
        self._chosen: list[Tensor] = []  # log p of each token when it was chosen
        self._scoring: HiddenBlocks | None = None
        self._branches: list[Branch] = []
        self._found: dict[int, float] = {}  # log p by row: row i hides memory i, the one behind them nothing

    @property
    def influence(self) -> dict[str, float]:
        """Nats by id of the injected memory, once `advance` has returned True."""
        whole = self._whole
        return {id: whole - self._found[i] for i, id in enumerate(self._injected)}

    @property
    def noise(self) -> float:
        """Nats, of the null row; 0 where none was run."""
        return abs(self._whole - self._found.get(len(self._injected), self._whole))

    @property
    def _whole(self) -> float:
        """log p of the answer with nothing hidden."""
        return float(sum(float(logprob) for logprob in self._chosen))

    def take(self, token: int, logits: Tensor) -> None:
        """A token of the answer, chosen from these logits, `[vocabulary]`."""
        self._tokens.append(token)
        if self._hideable:
            scores = logits.float()
            self._chosen.append(scores[token] - scores.logsumexp(0))

    def advance(self, model: Any, limit: int) -> bool:
        """Run one pass of at most `limit` tokens, or of one row. Returns whether all is known."""
        if self._hideable is None or not self._tokens:
            self._found = dict.fromkeys(range(len(self._injected)), self._whole)
            return True
        if self._scoring is None:
            prefix, asked = self._hideable
            ids = asked + self._tokens
            self._scoring = HiddenBlocks(prefix, [Transcript(ids, [Response(0, len(asked), len(ids))])])
            hidden = [(i,) for i in range(len(self._injected))]
            self._branches = [*self._scoring.branches([*hidden, ()] if self._null else hidden)]
        batch = next(batches(iter(self._branches), limit))
        for branch, [logprob] in zip(batch, self._scoring.run(model, batch), strict=True):
            self._found[branch.row] = logprob
        del self._branches[: len(batch)]
        return not self._branches
