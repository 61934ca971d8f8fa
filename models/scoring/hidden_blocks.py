"""Leave-one-out divergence where memories are key/value blocks: leaving one out hides its block.

    D[i, j] = log p(response j | prefix) - log p(response j | prefix without block i)        nats, signed

Blocks never saw each other, so no state of another block changes when one is left out. A row of the matrix is one
conversation behind one prefix without some blocks:

    hidden       no token of the row attends to the slots of these blocks; those of their tokens that the policy
                 recomputes (`Prefix.again`) are not run
    recomputed   the tokens of other blocks that the policy recomputes, the question, and the response
    kept         the states of head and other blocks, in the places that the served answer saw them in

So a row costs as many tokens as question and response have, whatever the length of the memories. Rows are branches
of one sequence, whose mask lets a token see the prefix without the row's hidden slots and the earlier tokens of its own
row: the prefix is there once, not once a row. `closed_up` is the other definition: the prefix assembled without the
block, so that later blocks and the question move up, and where the policy recomputes the best block the next one takes
its place.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.kv import prefix as kv
from models.scoring.logprobs import logprobs_at
from models.text.prompt import Transcript

ENCODED_AT_ONCE = 32


@dataclass(frozen=True)
class Branch:
    """One conversation of one row: its tokens, where they stand, which slots it does not see, and which of its tokens
    are responses, the first of which is response `first` of the row."""

    row: int
    first: int
    tokens: list[int]
    positions: list[int]
    hidden: Tensor
    responses: list[range]


class HiddenBlocks:
    """Rows of the matrix for conversations behind one prefix, whose states it holds a copy of."""

    def __init__(self, prefix: kv.Prefix, transcripts: Sequence[Transcript]) -> None:
        self._prefix = prefix
        self._transcripts = transcripts
        self._states = prefix.lay()
        self._places = prefix.positions.to(self._states.device)
        self.responses = sum(len(transcript.responses) for transcript in transcripts)

    def rows(self, model: Any, omissions: Sequence[Sequence[int]], *, batch_tokens: int = 1024) -> np.ndarray:
        """log p of every response, float64 `[len(omissions), responses]`, without the blocks of each omission (their
        indices in the prefix; none: the baseline). `batch_tokens` bounds a forward pass, unless one branch alone is
        longer."""
        found = np.zeros((len(omissions), self.responses))
        for batch in batches(self.branches(omissions), batch_tokens):
            for branch, values in zip(batch, self.run(model, batch), strict=True):
                found[branch.row, branch.first : branch.first + len(values)] = values
        return found

    def branches(self, omissions: Sequence[Sequence[int]]) -> Iterator[Branch]:
        for row, omitted in enumerate(omissions):
            hidden = torch.isin(self._prefix.owners, torch.tensor([*omitted], dtype=torch.long))
            again = [
                token
                for token, owner in zip(self._prefix.again, self._prefix.again_owners, strict=True)
                if owner not in omitted
            ]
            first = 0
            for transcript in self._transcripts:
                start, before = self._prefix.length, len(again)
                yield Branch(
                    row,
                    first,
                    [token for token, _ in again] + transcript.tail,
                    [place for _, place in again] + [*range(start, start + len(transcript.tail))],
                    hidden,
                    [range(before + each.start, before + each.stop) for each in transcript.responses],
                )
                first += len(transcript.responses)

    @torch.inference_mode()
    def run(self, model: Any, branches: Sequence[Branch]) -> list[list[float]]:
        """log p of the responses of each branch, in one pass, which copies the prefix's states once."""
        device = model.device
        ids = torch.tensor([token for branch in branches for token in branch.tokens], device=device)
        places = torch.tensor([place for branch in branches for place in branch.positions], device=device)
        sizes = torch.tensor([len(branch.tokens) for branch in branches])
        branch_of = torch.arange(len(branches)).repeat_interleave(sizes).to(device)
        hidden = torch.stack([branch.hidden for branch in branches]).to(device)
        # Slots may stand out of order, so what a token sees is decided by position, never by slot.
        before = (self._places <= places[:, None]) & ~hidden[branch_of]
        own = (branch_of == branch_of[:, None]) & (places <= places[:, None])
        states = model.model(
            input_ids=ids[None],
            position_ids=places[None],
            attention_mask=torch.cat((before, own), dim=1)[None, None],
            past_key_values=kv.as_cache(self._states, model.config),
        ).last_hidden_state[0]
        told, starts = [], [0, *torch.cumsum(sizes, 0).tolist()]
        spans = [
            range(start + response.start, start + response.stop)
            for branch, start in zip(branches, starts, strict=False)
            for response in branch.responses
        ]
        logprobs = logprobs_at(model, states, ids, [place for span in spans for place in span])
        ends = np.cumsum([len(span) for span in spans])
        sums = [float(part.sum()) for part in np.split(logprobs, ends[:-1])]
        for branch in branches:
            told.append(sums[: len(branch.responses)])
            sums = sums[len(branch.responses) :]
        return told


def prefix_of(
    model: Any, head: Sequence[int], memories: Sequence[Sequence[int]], policy: kv.Policy = kv.INDEPENDENT
) -> kv.Prefix:
    """The prefix of memories (ids each, most relevant first), encoded here; owner i is memory i. Without a policy no
    token is recomputed: in a matrix of many responses each would have another best block."""
    states = kv.encode_head(model, head)
    encoded: list[Tensor] = []
    for start in range(0, len(memories), ENCODED_AT_ONCE):
        encoded += kv.encode_blocks(model, states, memories[start : start + ENCODED_AT_ONCE])
    blocks = [
        kv.KVBlock(memory_id=str(i), fingerprint="", ids=tuple(ids), text="", states=block, width=len(ids))
        for i, (ids, block) in enumerate(zip(memories, encoded, strict=True))
    ]
    return kv.assemble(states, blocks, model.model.rotary_emb.inv_freq, policy)


def closed_up(
    model: Any,
    head: Tensor,
    blocks: Sequence[kv.KVBlock],
    inverse_frequency: Tensor,
    policy: kv.Policy,
    transcripts: Sequence[Transcript],
    omitted: Sequence[int],
    *,
    batch_tokens: int = 1024,
) -> np.ndarray:
    """log p of every response, float64 `[responses]`, behind the prefix that is assembled of the other blocks."""
    others = [block for i, block in enumerate(blocks) if i not in omitted]
    prefix = kv.assemble(head, others, inverse_frequency, policy)
    found: np.ndarray = HiddenBlocks(prefix, transcripts).rows(model, [()], batch_tokens=batch_tokens)[0]
    return found


def batches(branches: Iterator[Branch], batch_tokens: int) -> Iterator[list[Branch]]:
    """Branches of one pass each, together at most `batch_tokens` unless one alone has more."""
    batch: list[Branch] = []
    for branch in branches:
        if batch and sum(len(each.tokens) for each in batch) + len(branch.tokens) > batch_tokens:
            yield batch
            batch = []
        batch.append(branch)
    if batch:
        yield batch
