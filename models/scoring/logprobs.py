"""Log-probabilities of tokens, from the states before them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

AT_ONCE = 256  # tokens x vocabulary in float32 is gigabytes for a long response


def logprobs_at(model: Any, states: Tensor, ids: Tensor, places: Sequence[int]) -> np.ndarray:
    """Nats of the tokens `ids` (`[tokens]`) at these places, float64, each from the hidden state before it (`states`:
    `[tokens, hidden]`); logits are float32. The vocabulary is projected at these places only."""
    found = [np.zeros(0)]
    for start in range(0, len(places), AT_ONCE):
        at = torch.tensor(places[start : start + AT_ONCE], device=ids.device)
        logits = model.lm_head(states[at - 1]).float()
        chosen = torch.log_softmax(logits, dim=-1).gather(1, ids[at, None])[:, 0]
        found.append(chosen.double().cpu().numpy())
    return np.concatenate(found)
