"""Prioritised sampling of memories: a sum tree over priorities, and a sampler over shards and kinds.

    p_i = (eps + s_i)^a,   s_i = (w_salience * salience_i + w_usage * usage_i + w_novelty * novelty_i) / sum of weights

with each statistic divided by its largest value. A kind is drawn by `mix` (shared out over the kinds that are
present), then a shard of it by its mass, then an item by p. Draws are stratified: `n` draws lie in `n` equal
strips of the mass, so frequencies match priorities as closely as `n` allows, and an item whose expected count
is two or more is never missed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from common.config import ReplayConfig


class SumTree:
    """Weights (float64, >= 0) whose prefix sums can be searched: `set` and `find` cost O(log size).

    A parent is always written as the sum of its two children, so rounding does not accumulate.
    """

    def __init__(self, weights: Sequence[float] | np.ndarray) -> None:
        values = np.asarray(weights, dtype=np.float64)
        if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any():
            raise ValueError("weights must be a flat list of finite numbers >= 0")
        self.size = len(values)
        self._leaves = 1 << max(0, self.size - 1).bit_length()
        self._sums = np.zeros(2 * self._leaves)
        self._sums[self._leaves : self._leaves + self.size] = values
        for node in range(self._leaves - 1, 0, -1):
            self._sums[node] = self._sums[2 * node] + self._sums[2 * node + 1]

    @property
    def total(self) -> float:
        return float(self._sums[1])

    def __getitem__(self, index: int) -> float:
        return float(self._sums[self._leaves + index])

    def set(self, index: int, weight: float) -> None:
        if not 0 <= index < self.size or not np.isfinite(weight) or weight < 0:
            raise ValueError(
                f"set({index}, {weight}): index below {self.size} and a finite weight >= 0 are needed"
            )
        node = self._leaves + index
        self._sums[node] = weight
        while node > 1:
            node //= 2
            self._sums[node] = self._sums[2 * node] + self._sums[2 * node + 1]

    def find(self, masses: np.ndarray) -> np.ndarray:
        """Indices `[n]` of the items that own the points `masses` `[n]` of [0, total); never one of weight 0."""
        nodes = np.ones(len(masses), dtype=np.int64)
        rest = np.array(masses, dtype=np.float64)
        while nodes.size and nodes[0] < self._leaves:  # all leaves are on one level
            left = self._sums[2 * nodes]
            right = self._sums[2 * nodes + 1]
            goes_right = ((rest >= left) & (right > 0)) | (left <= 0)
            rest = np.where(goes_right, rest - left, rest)
            nodes = 2 * nodes + goes_right
        return nodes - self._leaves


@dataclass
class Ledger:
    """Checks conservation: every sampled form is streamed, and every streamed form is trained on or reported."""

    samples: int = 0
    sampled: int = 0
    streamed: int = 0
    trained: int = 0
    reported: int = 0

    def check(self) -> None:
        """Raise `RuntimeError` with the counts if forms were lost or added."""
        if not self.sampled == self.streamed == self.trained + self.reported:
            raise RuntimeError(f"replay lost or invented forms: {asdict(self)}")


class Sampler:
    """Draws memory ids; the same seed and round give the same draw, whatever was drawn before."""

    def __init__(self, records: Iterable[Mapping[str, Any]], config: ReplayConfig, seed: int) -> None:
        """`records`: memories with `id`, `kind`, optional `shard` and `statistics` {salience, usage, novelty}.

        Beyond `config.max_items`, the memories of the highest priority are kept.
        """
        rows = list(records)
        weights = priorities([row.get("statistics") or {} for row in rows], config)
        kept = sorted(range(len(rows)), key=lambda number: (-weights[number], rows[number]["id"]))[
            : config.max_items
        ]
        groups: dict[tuple[str, str], list[int]] = {}
        for number in sorted(kept, key=lambda number: rows[number]["id"]):
            row = rows[number]
            groups.setdefault((row["kind"], str(row.get("shard", 0))), []).append(number)
        self.seed = seed
        self.num_items = len(kept)
        self._keys = sorted(groups)
        self._ids = [
            np.array([rows[number]["id"] for number in groups[key]], dtype=object) for key in self._keys
        ]
        self._trees = [SumTree(weights[groups[key]]) for key in self._keys]
        self._scales = self._kind_scales(config.mix)

    def _kind_scales(self, mix: Mapping[str, float]) -> np.ndarray:
        """`[groups]`: factors that give each kind its share of the mass; a kind outside `mix` counts as 0."""
        masses: dict[str, float] = {}
        for (kind, _), tree in zip(self._keys, self._trees, strict=True):
            masses[kind] = masses.get(kind, 0.0) + tree.total
        shares = {kind: max(0.0, mix.get(kind, 0.0)) for kind, mass in masses.items() if mass > 0}
        if not any(shares.values()):  # none of the kinds present is in the mix: the mix says nothing
            shares = dict.fromkeys(shares, 1.0)
        return np.array(
            [shares.get(kind, 0.0) / masses[kind] if masses[kind] else 0.0 for kind, _ in self._keys]
        )

    def probabilities(self) -> dict[str, float]:
        """Probability of each id in one draw; they sum to 1."""
        total = float(self._scales @ np.array([tree.total for tree in self._trees]))
        return {
            str(memory_id): tree[index] * scale / total
            for ids, tree, scale in zip(self._ids, self._trees, self._scales, strict=True)
            for index, memory_id in enumerate(ids)
        }

    def sample(self, count: int, round_number: int) -> list[str]:
        """`count` ids in random order, with repeats; empty if there are no memories."""
        if self.num_items == 0 or count <= 0:
            return []
        rng = np.random.default_rng((self.seed, round_number))
        edges = np.cumsum(self._scales * np.array([tree.total for tree in self._trees]))
        points = (np.arange(count) + rng.random(count)) / count * edges[-1]
        # Rounding may put the last point on the edge itself, which belongs to nobody.
        points = np.minimum(points, np.nextafter(edges[-1], 0))
        groups = np.searchsorted(edges, points, side="right")
        drawn: list[str] = []
        for group in np.unique(groups):
            start = edges[group - 1] if group else 0.0
            inside = (points[groups == group] - start) / self._scales[group]
            drawn += [str(memory_id) for memory_id in self._ids[group][self._trees[group].find(inside)]]
        return [drawn[place] for place in rng.permutation(count)]


def priorities(statistics: Sequence[Mapping[str, float]], config: ReplayConfig) -> np.ndarray:
    """`[n]` priorities p_i of the formula above; all 1 under the policy `uniform`."""
    if config.policy == "uniform":
        return np.ones(len(statistics))
    parts = {"salience": config.salience, "usage": config.usage, "novelty": config.novelty}
    score = np.zeros(len(statistics))
    for name, weight in parts.items():
        values = np.array([max(0.0, float(row.get(name) or 0.0)) for row in statistics])
        largest = values.max(initial=0.0)
        score += weight * (values / largest if largest > 0 else values)
    return (config.eps + score / (sum(parts.values()) or 1.0)) ** config.exponent
