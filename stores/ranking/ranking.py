"""From candidates to a ranking, once over the candidates of all shards. Pure functions.

A candidate is a hit of `search.find`: `{memory, scores: {dense, lexical}}`, dense its cosine, lexical its
BM25 or None. `full` goes through these stages:

    fuse      1 / (FUSE + rank by cosine) + 1 / (FUSE + rank by BM25), as a share of the best possible
    gate      times (1 + OVERLAP * share of the query's content words in the text) / (1 + OVERLAP);
              a candidate that shares none and has a cosine below STRANGE is ranked last
    concert   times (1 + CONCERT * w), w the concert weight: recent and new memories win near ties
    rerank    the best RERANKED by an injected model, if one is given

Reciprocal ranks ignore how far apart two scores are: between two memories that both channels rank high, the
gate prefers the one that contains the query's words. The constants were chosen on two public sets, without an
untouched half; `benchmarks/retrieval.py` measures them there.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np

from common.errors import InvalidInput
from common.types import Json
from stores.index.bm25 import terms, text_of
from stores.ranking.concert import Concert, recency, weights

Hits = Sequence[Json]
Rerank = Callable[[Sequence[str], str], Sequence[float]]

FUSE = 10.0
OVERLAP = 3.0
STRANGE = 0.3
CONCERT = 0.1
RERANKED = 50
PAGED = 100
TRACED = 10  # candidates named in each stage of the trace


def depth_of(k: int) -> int:
    """Candidates from each channel of each shard for `k` results."""
    return max(4 * k, 32)


def reach(k: int, offset: int | None) -> int:
    """Results that a search ranks. All pages of a paged search rank the same `PAGED`, since more
    candidates can change the order of the first ones and pages would overlap."""
    if offset is None:
        return k
    if offset < 0 or offset + k > PAGED:
        raise InvalidInput(
            f"offset = {offset}: pages of a search lie in its first {PAGED} results; narrow it by a filter",
            param="offset",
        )
    return PAGED


def check_retrieval(retrieval: str) -> str:
    if retrieval not in ("full", "flat"):
        raise InvalidInput(f"retrieval = {retrieval!r}: must be full or flat", param="retrieval")
    return retrieval


def ranked(
    retrieval: str,
    query: str | None,
    hits: Hits,
    k: int,
    *,
    now: float | None,
    offset: int | None = None,
    concert: Concert | None = None,
    rerank: Rerank | None = None,
) -> tuple[list[Json], list[Json]]:
    """`flat` or `full`, by name; recency counts from `now` (default: the present time)."""
    if check_retrieval(retrieval) == "flat":
        return flat(hits, k, offset)
    moment = time.time() if now is None else now
    return full(query, hits, k, now=moment, offset=offset, concert=concert, rerank=rerank)


def flat(hits: Hits, k: int, offset: int | None = None) -> tuple[list[Json], list[Json]]:
    """Cosine only, the baseline: results `offset` to `offset + k`, and the trace's stages."""
    ordered = sorted(hits, key=lambda hit: (-hit["scores"]["dense"], hit["memory"]["id"]))
    once: dict[str, Json] = {}
    for hit in ordered:
        once.setdefault(hit["memory"]["id"], hit)
    page = [*once.values()][(offset or 0) :][: max(0, k)]
    return [_result(hit, hit["scores"]["dense"], {}) for hit in page], []


def full(
    query: str | None,
    hits: Hits,
    k: int,
    *,
    now: float,
    offset: int | None = None,
    concert: Concert | None = None,
    rerank: Rerank | None = None,
) -> tuple[list[Json], list[Json]]:
    """Results `offset` to `offset + k`, and the trace's stages. The order is total, so pages never overlap
    while nothing is written. Without a query only cosine and concert weight count."""
    hits = _once(hits)
    stages: list[Json] = []
    started = time.perf_counter()

    def stage(name: str, scores: Sequence[float] | np.ndarray) -> None:
        nonlocal started
        ended = time.perf_counter()
        best = sorted(range(len(hits)), key=lambda i: (-scores[i], hits[i]["memory"]["id"]))[:TRACED]
        named = [{"id": hits[i]["memory"]["id"], "score": float(scores[i])} for i in best]
        stages.append({"stage": name, "ms": 1e3 * (ended - started), "candidates": len(hits), "best": named})
        started = time.perf_counter()

    cosines = np.array([hit["scores"]["dense"] for hit in hits], np.float64)
    words = np.array([hit["scores"]["lexical"] for hit in hits], np.float64)  # None becomes NaN
    fused = fuse([cosines, words], depth_of(reach(k, offset)))
    kept = np.flatnonzero(fused > 0.0)
    hits, cosines, fused = [hits[i] for i in kept], cosines[kept], fused[kept]
    stage("fuse", fused)
    gated, strange = overlap_gate(query, [hit["memory"] for hit in hits], cosines, fused)
    stage("gate", gated - strange)
    weights = concert_now([hit["memory"] for hit in hits], cosines, now, concert)
    final = gated * (1.0 + CONCERT * weights) - strange
    stage("concert", final)
    order = sorted(range(len(hits)), key=lambda i: (-final[i], hits[i]["memory"]["id"]))
    extra: dict[int, Json] = {i: {"concert": float(weights[i])} for i in order}
    if rerank is not None and query:
        first = order[:RERANKED]
        given = [float(score) for score in rerank([hits[i]["memory"]["text"] for i in first], query)]
        for i, score in zip(first, given, strict=True):
            extra[i]["rerank"] = score
        order = sorted(first, key=lambda i: -extra[i]["rerank"]) + order[RERANKED:]
        stage("rerank", [extra[i].get("rerank", -np.inf) for i in range(len(hits))])
    page = order[(offset or 0) :][: max(0, k)]
    return [_result(hits[i], float(final[i]), extra[i]) for i in page], stages


def relevant(results: Hits, share: float) -> list[Json]:
    """The results of a `full` ranking whose score is at least `share` of the best score.

    Less relevant memories distract a model more than they help. All results are kept if the best one failed the
    overlap gate, and after a reranker: then scores do not measure distances."""
    best = results[0]["score"] if results else 0.0
    if best <= 0.0 or "rerank" in results[0]["scores"]:
        return [*results]
    return [result for result in results if result["score"] >= share * best]


def channel_stages(hits: Hits, ms: Sequence[Json]) -> list[Json]:
    """The trace of the channels. Shards search in parallel, so the milliseconds are those of the slowest one."""
    stages = []
    for name in ("dense", "lexical"):
        found = [
            {"id": hit["memory"]["id"], "score": hit["scores"][name]}
            for hit in hits
            if hit["scores"][name] is not None
        ]
        found.sort(key=lambda one: (-one["score"], one["id"]))
        slowest = max((took[name] for took in ms), default=0.0)
        stages.append({"stage": name, "ms": slowest, "candidates": len(found), "best": found[:TRACED]})
    return stages


def fuse(channels: Sequence[np.ndarray], depth: int) -> np.ndarray:
    """Reciprocal-rank fusion, `[n]` in 0 to 1, of scores `[n]` a channel; only the best `depth` of a
    channel count; NaN stands for a candidate that the channel did not find.
    With that limit five shards, which give more candidates than one, give the same ranking.
    """
    total = np.zeros(len(channels[0]) if channels else 0)
    present = [scores for scores in channels if not np.isnan(scores).all()]
    for scores in present:
        order = np.argsort(-scores, kind="stable")  # NaN comes last
        found = order[: min(depth, int(np.count_nonzero(~np.isnan(scores))))]
        total[found] += 1.0 / (FUSE + 1.0 + np.arange(len(found)))
    return total * (FUSE + 1.0) / max(1, len(present))


def overlap_gate(
    query: str | None, memories: Sequence[Json], cosines: np.ndarray, fused: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores `[n]` after the strict-overlap gate, and which candidates are ranked last, `[n]` of 0 and 1. A query
    without content words leaves all scores unchanged."""
    asked = set(terms(query)) if query else set()
    if not asked:
        return fused, np.zeros(len(memories))
    shares = np.array([len(asked.intersection(terms(text_of(memory)))) / len(asked) for memory in memories])
    strange = (shares == 0.0) & (cosines < STRANGE)
    return fused * (1.0 + OVERLAP * shares) / (1.0 + OVERLAP), strange.astype(np.float64)


def concert_now(
    memories: Sequence[Json], cosines: np.ndarray, now: float, concert: Concert | None = None
) -> np.ndarray:
    """The concert weight `[n]` of candidates at `now`; novelty is that at the time of writing."""
    chosen = concert or Concert()
    times = [memory["time"] for memory in memories]
    new = [memory["statistics"]["novelty"] for memory in memories]
    return weights(cosines, recency(times, now, chosen.tau_s), new, chosen)


def _once(hits: Hits) -> list[Json]:
    """Each id once; the first of equals, in an order that does not depend on the shards'."""
    ordered = sorted(hits, key=lambda hit: (hit["memory"]["id"], -hit["scores"]["dense"]))
    return [*{hit["memory"]["id"]: hit for hit in reversed(ordered)}.values()][::-1]


def _result(hit: Json, score: float, extra: Json) -> Json:
    scores = {"dense": hit["scores"]["dense"], "lexical": hit["scores"]["lexical"], "concert": None, **extra}
    return {"memory": hit["memory"], "score": score, "scores": scores}
