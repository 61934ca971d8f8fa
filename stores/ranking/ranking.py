"""From candidates to a ranking, once over the candidates of all shards. Pure functions.

A candidate is a hit of `search.find`: `{memory, scores: {dense, lexical}, words}`, dense its cosine, lexical None,
`words` what its text has of the query's (`Matched`). `full` goes
through these stages:

    lexical   BM25 by the statistics of the whole namespace (`words`)
    fuse      1 / (FUSE + rank by cosine) + 1 / (FUSE + rank by BM25), as a share of the best possible; equal scores
              share a rank
    gate      times (1 + OVERLAP * share) / (1 + OVERLAP), the share of the query's content words in the text, each
              weighed by its idf to the power RARITY;
              a candidate that shares none and has a cosine below STRANGE is ranked last
    concert   times (1 + CONCERT * w), w the concert weight without novelty: of near ties the newer wins
    rerank    the best RERANKED by an injected model, if one is given
    order     what ended last, the query's own text first, of statements of one shape the newest first (`order.py`)

Reciprocal ranks ignore how far apart two scores are: between two memories that both channels rank high, the
gate prefers the one that contains the query's words. The constants were chosen on two public sets, without an
untouched half; `benchmarks/retrieval.py` measures them there. Nothing depends on how memories fall on shards.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np

from common.errors import InvalidInput
from common.types import Json
from stores.index.bm25 import Matched, WordStatistics, bm25, covered, query_words, rarity_of
from stores.ranking.concert import Concert, weights
from stores.ranking.order import by_score, ruled

Hits = Sequence[Json]
Rerank = Callable[[Sequence[str], str], Sequence[float]]

FUSE = 10.0
OVERLAP = 3.0
RARITY = 0.5  # power of the idf by which a word counts in the gate: with 0, common parts of an identifier outweigh it
STRANGE = 0.3
CONCERT = 0.1
RERANKED = 50
PAGED = 100
TRACED = 10  # candidates named in each stage of the trace
EQUAL = 5  # decimals: cosines and BM25 that agree to so many are equal
HOUR_S, OLDEST_S = 3600.0, 100 * 365.25 * 86400.0
NO_WORDS = WordStatistics(found={})
NOTHING = Matched({}, 0)


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
    words: WordStatistics = NO_WORDS,
) -> tuple[list[Json], list[Json]]:
    """`flat` or `full`, by name; recency counts from `now` (default: the present time)."""
    if check_retrieval(retrieval) == "flat":
        return flat(hits, k, offset)
    moment = time.time() if now is None else now
    return full(query, hits, k, now=moment, offset=offset, concert=concert, rerank=rerank, words=words)


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
    words: WordStatistics = NO_WORDS,
) -> tuple[list[Json], list[Json]]:
    """Results `offset` to `offset + k`, and the trace's stages. The order is total, so pages never overlap
    while nothing is written. Without a query only cosine and concert weight count."""
    hits = _once(hits)
    stages: list[Json] = []
    started = time.perf_counter()

    def stage(name: str, scores: Sequence[float] | np.ndarray) -> None:
        nonlocal started
        ended = time.perf_counter()
        best = np.argsort(-np.asarray(scores), kind="stable")[
            :TRACED
        ]  # of equals the lower id: hits are in their order
        named = [{"id": hits[i]["memory"]["id"], "score": float(scores[i])} for i in best]
        stages.append({"stage": name, "ms": 1e3 * (ended - started), "candidates": len(hits), "best": named})
        started = time.perf_counter()

    rarity = rarity_of(query_words(query) if query else (), words)
    texts = [hit["words"] or NOTHING for hit in hits]
    cosines = np.array([hit["scores"]["dense"] for hit in hits], np.float64)
    lexical = np.array([bm25(text, words, rarity) if text.counts else np.nan for text in texts])
    stage("lexical", np.nan_to_num(lexical, nan=-1.0))
    fused = fuse([cosines, lexical], depth_of(reach(k, offset)))
    kept = np.flatnonzero(fused > 0.0)
    hits, texts = [hits[i] for i in kept], [texts[i] for i in kept]
    cosines, lexical, fused = cosines[kept], lexical[kept], fused[kept]
    stage("fuse", fused)
    shares = np.array(covered(texts, rarity, RARITY))
    gated, strange = overlap_gate(bool(rarity), shares, cosines, fused)
    stage("gate", gated - strange)
    memories = [hit["memory"] for hit in hits]
    weights = concert_now(memories, cosines, now, concert)
    scores = gated * (1.0 + CONCERT * weights) - strange
    stage("concert", scores)
    order = by_score(scores, memories)
    final = np.sort(scores)[::-1]  # a score belongs to its place: results stay in order of their scores
    extra: dict[int, Json] = {i: {"concert": float(weights[i])} for i in order}
    if rerank is not None and query:
        order = _reranked(order, extra, memories, query, rerank)
        stage("rerank", [extra[i].get("rerank", -np.inf) for i in range(len(hits))])
    order = ruled(order, query, memories, [frozenset(text.counts) for text in texts], now)
    stage("order", -np.argsort(order).astype(np.float64))
    shown = order[: reach(k, offset)]
    for i, share in zip(shown, covered([texts[i] for i in shown], rarity), strict=True):
        extra[i]["covered"] = share
    for i in order:
        extra[i]["lexical"] = None if np.isnan(lexical[i]) else float(lexical[i])
    page = [*enumerate(order)][(offset or 0) :][: max(0, k)]
    return [_result(hits[i], float(final[place]), extra[i]) for place, i in page], stages


def _reranked(
    order: Sequence[int], extra: dict[int, Json], memories: Sequence[Json], query: str, rerank: Rerank
) -> list[int]:
    """The order with the first `RERANKED` sorted by the injected model, whose scores go to `extra`."""
    first = order[:RERANKED]
    given = rerank([memories[i]["text"] for i in first], query)
    for i, score in zip(first, given, strict=True):
        extra[i]["rerank"] = float(score)
    return [*sorted(first, key=lambda i: -extra[i]["rerank"]), *order[RERANKED:]]


def relevant(results: Hits, share: float) -> list[Json]:
    """The results of a `full` ranking whose score is at least `share` of the best score.

    Less relevant memories distract a model more than they help. All results are kept if the best one failed the
    overlap gate, and after a reranker: then scores do not measure distances."""
    best = results[0]["score"] if results else 0.0
    if best <= 0.0 or "rerank" in results[0]["scores"]:
        return [*results]
    return [result for result in results if result["score"] >= share * best]


def words_of(replies: Sequence[Json]) -> WordStatistics:
    """The statistics of the whole namespace, from the replies of its shards."""
    return WordStatistics.of_all(reply["words"] for reply in replies if reply["words"] is not None)


def channel_stages(hits: Hits, ms: Sequence[Json]) -> list[Json]:
    """The trace of the channels. Shards search in parallel, so the milliseconds are those of the slowest one. The
    lexical candidates are scored once, over all shards: see the stage `lexical` of `full`."""
    found = [{"id": hit["memory"]["id"], "score": hit["scores"]["dense"]} for hit in hits]
    found.sort(key=lambda one: (-one["score"], one["id"]))
    slowest = {name: max((took[name] for took in ms), default=0.0) for name in ("dense", "lexical")}
    return [
        {"stage": "dense", "ms": slowest["dense"], "candidates": len(found), "best": found[:TRACED]},
        {"stage": "words", "ms": slowest["lexical"], "candidates": len(found)},
    ]


def fuse(channels: Sequence[np.ndarray], depth: int) -> np.ndarray:
    """Reciprocal-rank fusion, `[n]` in 0 to 1, of scores `[n]` a channel; only the best `depth` of a
    channel count; NaN stands for a candidate that the channel did not find. Equal scores have the same rank.
    With that limit five shards, which give more candidates than one, give the same ranking.
    """
    total = np.zeros(len(channels[0]) if channels else 0)
    present = [scores for scores in channels if not np.isnan(scores).all()]
    for scores in present:
        rounded = np.round(scores, EQUAL)
        ranks = np.searchsorted(np.sort(-rounded[~np.isnan(rounded)]), -rounded)  # how many are better
        found = ~np.isnan(rounded) & (ranks < depth)
        total[found] += 1.0 / (FUSE + 1.0 + ranks[found])
    return total * (FUSE + 1.0) / max(1, len(present))


def overlap_gate(
    asked: bool, shares: np.ndarray, cosines: np.ndarray, fused: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores `[n]` after the strict-overlap gate, and which candidates are ranked last, `[n]` of 0 and 1. `shares`
    `[n]`: how much of the query each text covers. A query without content words leaves all scores unchanged."""
    if not asked:
        return fused, np.zeros(len(shares))
    strange = (shares == 0.0) & (cosines < STRANGE)
    return fused * (1.0 + OVERLAP * shares) / (1.0 + OVERLAP), strange.astype(np.float64)


def concert_now(
    memories: Sequence[Json], cosines: np.ndarray, now: float, concert: Concert | None = None
) -> np.ndarray:
    """The concert weight `[n]` of candidates at `now`. Recency falls with the logarithm of the age, so that it still
    tells years apart. Novelty is left out: that of the time of writing rewards the first of several statements."""
    chosen = concert or Concert()
    ages = np.maximum(0.0, now - np.array([memory["time"] for memory in memories], np.float64))
    recent = np.clip(1.0 - np.log1p(ages / HOUR_S) / np.log1p(OLDEST_S / HOUR_S), 0.0, 1.0)
    return weights(cosines, recent, np.zeros(len(memories)), chosen)


def _once(hits: Hits) -> list[Json]:
    """Each id once; the first of equals, in an order that does not depend on the shards'."""
    ordered = sorted(hits, key=lambda hit: (hit["memory"]["id"], -hit["scores"]["dense"]))
    return [*{hit["memory"]["id"]: hit for hit in reversed(ordered)}.values()][::-1]


def _result(hit: Json, score: float, extra: Json) -> Json:
    scores = {"dense": hit["scores"]["dense"], "lexical": None, "concert": None, **extra}
    return {"memory": hit["memory"], "score": score, "scores": scores}
