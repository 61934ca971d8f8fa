"""The finished N x M divergence matrix: table, summary, picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.files import write_bytes, write_json


@dataclass(frozen=True)
class Matrix:
    """Divergences of N memories over M responses.

    `divergence`: float64 `[N, M]`, nats, signed: log-probability of the response with all memories minus without this
    one; NaN where a block failed. `null`: float64 `[M]`, the same with nothing omitted, i.e. the numerical error.
    `truth`: for each response the index of the memory it came from, or None. `context`: `text` or `prefix`, never both
    in one matrix.
    """

    memory_ids: list[str]
    texts: list[str]
    responses: list[dict[str, Any]]
    divergence: np.ndarray
    null: np.ndarray
    truth: list[int | None]
    context: str
    fingerprint: str
    seconds: float
    errors: list[str]

    @property
    def clipped(self) -> np.ndarray:
        """Divergences with negative ones set to 0; failed entries stay NaN."""
        return np.maximum(self.divergence, 0.0)

    def weights(self) -> list[tuple[str, float]]:
        """`(id, sum of clipped divergences in nats)` of each memory whose row is complete."""
        sums = np.nansum(self.clipped, axis=1)
        whole = ~np.isnan(self.divergence).any(axis=1)
        return [(self.memory_ids[i], float(sums[i])) for i in range(len(sums)) if whole[i]]

    def true_first(self) -> float | None:
        """Of the responses with a known memory, the share where that memory has the highest divergence."""
        failed = np.isnan(self.divergence).all(axis=0)
        known = [(j, i) for j, i in enumerate(self.truth) if i is not None and not failed[j]]
        if not known:
            return None
        return float(np.mean([_best(self.divergence[:, j]) == i for j, i in known]))

    def summary(self) -> dict[str, Any]:
        n, m = self.divergence.shape
        sums = np.nansum(self.clipped, axis=0)
        failed = np.isnan(self.divergence).all(axis=0)
        noise = np.abs(self.null[~np.isnan(self.null)])
        return {
            "memories": n,
            "responses": m,
            "seconds": self.seconds,
            "noise_floor": float(noise.max()) if noise.size else None,
            "true_first": self.true_first(),
            "failed_rows": int(np.isnan(self.divergence).any(axis=1).sum()),
            "errors": self.errors,
            "context": self.context,
            "fingerprint": self.fingerprint,
            "weights": dict(self.weights()),
            "scores": [
                {
                    **self.responses[j],
                    "score": None if failed[j] else float(sums[j]),
                    "mattered": self._mattered(j),
                }
                for j in range(m)
            ],
        }

    def _mattered(self, j: int, most: int = 3) -> list[dict[str, Any]]:
        column = np.nan_to_num(self.divergence[:, j], nan=-np.inf)
        return [
            {"id": self.memory_ids[i], "divergence": float(column[i])}
            for i in np.argsort(-column)[:most]
            if column[i] > 0
        ]

    def save(self, folder: Path) -> None:
        """Write matrix.parquet, heatmap.png, and summary.json last: a folder that has it is complete."""
        folder.mkdir(parents=True, exist_ok=True)
        scratch = folder / ".matrix.parquet"
        pq.write_table(self.table(), scratch)
        scratch.replace(folder / "matrix.parquet")
        write_bytes(folder / "heatmap.png", self.picture())
        write_json(folder / "summary.json", self.summary())

    def table(self) -> pa.Table:
        n, m = self.divergence.shape
        flat = self.divergence.reshape(-1)
        failed = np.isnan(flat)
        return pa.table(
            {
                "memory": np.repeat(self.memory_ids, m),
                "conversation": np.tile([r["conversation"] for r in self.responses], n),
                "entry_index": np.tile([r["entry_index"] for r in self.responses], n),
                "divergence": pa.array(flat, mask=failed),
                "tokens": np.tile([r["tokens"] for r in self.responses], n),
                "status": np.where(failed, "failed", "ok"),
                "context": np.repeat(self.context, n * m),
                "fingerprint": np.repeat(self.fingerprint, n * m),
            }
        )

    def picture(self) -> bytes:
        """A heat map as PNG: memories down, responses across; a ring around each known true memory."""
        import io

        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        n, m = self.divergence.shape
        figure, axes = pyplot.subplots(figsize=(4 + 0.34 * m, 1.6 + 0.24 * n), layout="constrained")
        finite = np.abs(self.divergence[~np.isnan(self.divergence)])
        limit = float(finite.max()) if finite.size else 1.0
        image = axes.imshow(self.divergence, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        known = [(j, i) for j, i in enumerate(self.truth) if i is not None]
        axes.scatter(
            *zip(*known, strict=True) if known else ([], []), s=34, facecolors="none", edgecolors="black"
        )
        axes.set_yticks(range(n), [_short(text) for text in self.texts], fontsize=7)
        axes.set_xticks(
            range(m), [_short(r.get("question", ""), 34) for r in self.responses], fontsize=7, rotation=90
        )
        axes.set_title("What each answer loses without each memory (nats)", fontsize=9)
        figure.colorbar(image, ax=axes, shrink=0.7)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120)
        pyplot.close(figure)
        return buffer.getvalue()


def _best(column: np.ndarray) -> int:
    return -1 if np.isnan(column).all() else int(np.nanargmax(column))


def _short(text: str, most: int = 48) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
