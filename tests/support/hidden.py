"""Memories to leave out, and the oracle of hidden blocks: a prefix that never had them."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from models.kv import prefix as kv
from models.text.prompt import Transcript

TOLERANCE = 5e-4  # nats, summed over a response, float32
FACTS = [
    "Ada lives in Lisbon.",
    "Bo works as a baker, mostly at night.",
    "Cy keeps a goat.",
    "Dee plays the harp.",
]


def without(prefix: kv.Prefix, omitted: Sequence[int], ids: Collection[str]) -> kv.Prefix:
    """The prefix with these blocks, whose memories have these ids, taken out, and everything else in its place."""
    kept = ~torch.isin(prefix.owners, torch.tensor([*omitted], dtype=torch.long))
    again = [
        (token, owner)
        for token, owner in zip(prefix.again, prefix.again_owners, strict=True)
        if owner not in omitted
    ]
    return replace(
        prefix,
        pieces=tuple(piece for piece in prefix.pieces if piece.block.memory_id not in ids),
        positions=prefix.positions[kept],
        owners=prefix.owners[kept],
        again=tuple(token for token, _ in again),
        again_owners=tuple(owner for _, owner in again),
    )


def naive(model: Any, prefix: kv.Prefix, transcripts: Sequence[Transcript]) -> np.ndarray:
    """log p of each response: one prefill for each conversation."""
    values = []
    for transcript in transcripts:
        logprobs = {}

        def judge(tokens, logits, logprobs=logprobs, tail=transcript.tail):
            for token, row in zip(tokens, logits, strict=True):
                place = len(logprobs) + 1
                assert tail[place] == token
                logprobs[place] = float(torch.log_softmax(row.float(), -1)[token])

        judged = len(transcript.tail) - 1
        kv.Prefill(prefix, transcript.tail, model.config, judge, judged).advance(model)
        values += [sum(logprobs[p] for p in range(r.start, r.stop)) for r in transcript.responses]
    return np.array(values)
