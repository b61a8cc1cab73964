"""Queries -> the answer on rows: retrieve, rank, lay the rules over it. Ids and words are the recommender's."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twotower.bundle import Bundle
from twotower.data.item_columns import readable_items
from twotower.model.exported import TowerOutput
from twotower.serving.answers.asking import Asked
from twotower.serving.answers.catalogue import Catalogue
from twotower.serving.answers.rules import Rules
from twotower.serving.answers.stages import Found, Ranked, rank

DEEPER = 4
"""Times as many candidates where the rules leave too few of them."""
DEEPEST = 20_000
"""Candidates that are looked at for the rules' sake, so that one which cannot be fulfilled holds nobody up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What can come, and the rules laid over it: both of one moment."""

    catalogue: Catalogue
    rules: Rules
    put: pa.Table
    """The catalogue's items put since the bundle was made, as filters and rules read them."""

    def with_catalogue(self, catalogue: Catalogue) -> "Standing":
        """The same rules over another state of the catalogue."""
        put = readable_items(catalogue.put.table, catalogue.bundle.model.features)
        return Standing(catalogue=catalogue, rules=self.rules.extended(put), put=put)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The answer to `q` queries, `k` places each."""

    found: Found
    """`[q, k]` what comes, best first."""
    ranked: Ranked | None
    """What each stage thought of it, place by place; None where ranking had no say."""
    fallback: Literal["popular", "retrieval"] | None
    rules: tuple[tuple[str, ...], ...]
    """Of the first query: the rules that moved each item; nothing where there are no rules."""
    is_pinned: NDArray[np.bool_]
    """`[k]` of the first query: which items stand where a rule pinned them."""
    retrieved: int
    """Of the first query: how many candidates retrieval brought. What ranks behind them, a rule did."""
    timings_ms: dict[str, float]
    """Stage -> milliseconds."""


def answer(
    bundle: Bundle,
    asked: Asked,
    *,
    k: int,
    standing: Standing,
    allowed: NDArray[np.bool_] | None,
    began: float,
    rank_until: float | None = None,
) -> Answered:
    """The best `k` for queries that are all told, by the model; or for queries that are all not, by popularity.

    Args:
        bundle: Which answers.
        asked: The queries.
        k: How many items.
        standing: What can come.
        allowed: By row; None allows all.
        began: When the work for these queries began, by `time.perf_counter`.
        rank_until: When ranking has to begin, likewise; later, retrieval's order answers.
    """
    candidates = max(k, int(bundle.metadata["candidates"]))
    deepest = min(len(standing.catalogue), max(candidates, DEEPEST))
    is_told = bool(asked.is_told.any())
    vectors = bundle.model.embed_queries(asked.inputs) if is_told else None
    timings_ms = {"query": milliseconds(began)}
    while True:
        if vectors is None:
            stages = _popular(asked, places=candidates, standing=standing, allowed=allowed, k=k)
        else:
            stages = _two_stages(
                bundle,
                vectors,
                asked,
                places=candidates,
                standing=standing,
                allowed=allowed,
                k=k,
                rank_until=rank_until,
            )
        answered = _arranged(bundle, stages, standing, k=k, timings_ms=timings_ms | stages.timings_ms)
        if standing.rules.is_empty or candidates >= deepest or int(answered.found.count.min()) >= k:
            return answered
        candidates = min(DEEPER * candidates, deepest)


def rank_given(
    bundle: Bundle, asked: Asked, rows: NDArray[np.int64], *, catalogue: Catalogue, began: float
) -> Answered:
    """The caller's own `[n]` rows in the order of the ranking head, for one query."""
    vectors = bundle.model.embed_queries(asked.inputs)
    timings_ms = {"query": milliseconds(began)}
    ranking = time.perf_counter()
    similarity = vectors.embedding @ catalogue.embeddings(rows).T
    found = Found(row=rows[None, :], score=similarity, count=np.array([len(rows)]))
    ranked = _rank(bundle, vectors, found, catalogue=catalogue)
    return Answered(
        found=ranked.found,
        ranked=ranked,
        fallback=None,
        rules=(),
        is_pinned=np.zeros(len(rows), np.bool_),
        retrieved=len(rows),
        timings_ms=timings_ms | {"ranking": milliseconds(ranking)},
    )


def milliseconds(began: float) -> float:
    """Since a moment by `time.perf_counter`."""
    return round((time.perf_counter() - began) * 1000, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stages:
    """What the stages made of the queries, before the rules."""

    found: Found
    ranked: Ranked | None
    fallback: Literal["popular", "retrieval"] | None
    retrieved: int
    timings_ms: dict[str, float]


def _popular(asked: Asked, *, places: int, standing: Standing, allowed: NDArray[np.bool_] | None, k: int) -> _Stages:
    began = time.perf_counter()
    catalogue = standing.catalogue
    found = catalogue.popular(places=k if standing.rules.is_empty else places, left_out=asked.left_out, allowed=allowed)
    retrieved = int(found.count[0])
    found = _with_pinned(found, asked, standing, allowed=allowed, k=k, score=lambda _, rows: catalogue.popularity(rows))
    return _Stages(
        found=found, ranked=None, fallback="popular", retrieved=retrieved, timings_ms={"retrieval": milliseconds(began)}
    )


def _two_stages(
    bundle: Bundle,
    vectors: TowerOutput,
    asked: Asked,
    *,
    places: int,
    standing: Standing,
    allowed: NDArray[np.bool_] | None,
    k: int,
    rank_until: float | None,
) -> _Stages:
    catalogue = standing.catalogue
    retrieving = time.perf_counter()
    found = catalogue.search(vectors.embedding, candidates=places, left_out=asked.left_out, allowed=allowed)
    retrieved = int(found.count[0])

    def similarity(line: int, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.asarray(catalogue.embeddings(rows) @ vectors.embedding[line], np.float32)

    found = _with_pinned(found, asked, standing, allowed=allowed, k=k, score=similarity)
    timings_ms = {"retrieval": milliseconds(retrieving)}
    ranking = time.perf_counter()
    if rank_until is not None and ranking > rank_until:
        return _Stages(found=found, ranked=None, fallback="retrieval", retrieved=retrieved, timings_ms=timings_ms)
    ranked = _rank(bundle, vectors, found, catalogue=catalogue)
    timings_ms["ranking"] = milliseconds(ranking)
    return _Stages(found=ranked.found, ranked=ranked, fallback=None, retrieved=retrieved, timings_ms=timings_ms)


def _rank(bundle: Bundle, vectors: TowerOutput, found: Found, *, catalogue: Catalogue) -> Ranked:
    return rank(
        bundle.model,
        vectors.ranking,
        catalogue.ranking(found.row),
        trends=catalogue.trends(found.row),
        found=found,
    )


def _with_pinned(
    found: Found,
    asked: Asked,
    standing: Standing,
    *,
    allowed: NDArray[np.bool_] | None,
    k: int,
    score: Callable[[int, NDArray[np.int64]], NDArray[np.float32]],
) -> Found:
    """What was found, and behind it the pinned items that may come and were not."""
    pinned = standing.rules.pinned_within(k)
    catalogue = standing.catalogue
    pinned = np.array(
        [row for row in pinned.tolist() if catalogue.can_come(row) and (allowed is None or allowed[row])], np.int64
    )
    if not len(pinned):
        return found
    width = found.row.shape[1] + len(pinned)
    rows = np.zeros((len(found.row), width), np.int64)
    scores = np.zeros((len(found.row), width), np.float32)
    count = found.count.copy()
    for line, held in enumerate(found.count.tolist()):
        here = found.row[line, :held]
        added = pinned[~np.isin(pinned, here) & ~np.isin(pinned, asked.left_out[line])]
        count[line] += len(added)
        rows[line, : count[line]] = np.concatenate([here, added])
        scores[line, : count[line]] = np.concatenate([found.score[line, :held], score(line, added)])
    return Found(row=rows, score=scores, count=count)


def _arranged(bundle: Bundle, stages: _Stages, standing: Standing, *, k: int, timings_ms: dict[str, float]) -> Answered:
    """The answer after the rules."""
    if standing.rules.is_empty:
        found, ranked = stages.found.first(k), stages.ranked
        return Answered(
            found=found,
            ranked=ranked,
            fallback=stages.fallback,
            rules=(),
            is_pinned=np.zeros(found.row.shape[1], np.bool_),
            retrieved=stages.retrieved,
            timings_ms=timings_ms,
        )
    found = stages.found
    lines = len(found.row)
    place = np.zeros((lines, k), np.int64)
    score = np.zeros((lines, k), np.float32)
    count = np.zeros(lines, np.int64)
    told: tuple[tuple[str, ...], ...] = ()
    is_pinned = np.zeros(k, np.bool_)
    for line, held in enumerate(found.count.tolist()):
        rows = found.row[line, :held]
        if not held:
            continue
        arranged = standing.rules.arrange(
            rows,
            _logits(bundle, found.score[line, :held], fallback=stages.fallback),
            k=k,
            embedding=standing.catalogue.directions(rows) if standing.rules.reads_embeddings else None,
        )
        count[line] = len(arranged.place)
        place[line, : count[line]], score[line, : count[line]] = arranged.place, arranged.score
        if line == 0:
            told = standing.rules.told(rows, arranged)
            is_pinned[: count[0]] = arranged.position > 0
    each = np.arange(lines)[:, None]
    chosen = Found(row=found.row[each, place], score=score, count=count)
    return Answered(
        found=chosen,
        ranked=None if stages.ranked is None else _placed(stages.ranked, place, chosen),
        fallback=stages.fallback,
        rules=told,
        is_pinned=is_pinned,
        retrieved=stages.retrieved,
        timings_ms=timings_ms,
    )


def _placed(ranked: Ranked, place: NDArray[np.int64], chosen: Found) -> Ranked:
    """What the stages thought of the items at these places."""
    each = np.arange(len(place))[:, None]
    return Ranked(
        found=chosen,
        retrieval_rank=ranked.retrieval_rank[each, place],
        retrieval_score=ranked.retrieval_score[each, place],
        labels={label: values[each, place] for label, values in ranked.labels.items()},
    )


def _logits(
    bundle: Bundle, score: NDArray[np.float32], *, fallback: Literal["popular", "retrieval"] | None
) -> NDArray[np.float32]:
    """Scores on the scale on which boosts are told: log odds."""
    if fallback == "popular":
        return np.log1p(score)
    return score / np.float32(bundle.model.temperature) if fallback == "retrieval" else score
