"""One contender against one set of queries: exact ranks, in blocks that bound the memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from twotower.evaluation.config import EvaluateConfig
from twotower.evaluation.contenders import Contender, TwoStageContender
from twotower.evaluation.queries import Queries, seen_pairs
from twotower.evaluation.ranks import LOWEST, blocks, ranks_in_block, seen_items, silence, top_items

Progress = Callable[[str, int, int], None]
"""Told what is being worked on, how many queries are done, and of how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arena:
    """What all contenders of a report have in common."""

    items: int
    """Items in the catalogue."""
    exclude_seen: bool
    candidates: int
    """Items that retrieval hands to ranking."""
    list_length: int
    """Items of the lists that are kept."""
    scores_in_memory: int
    progress: Progress | None

    @classmethod
    def of(cls, config: EvaluateConfig, *, items: int, progress: Progress | None = None) -> "Arena":
        """What the recipe says of it, for a catalogue of so many items."""
        return cls(
            items=items,
            exclude_seen=config.exclude_seen,
            candidates=config.candidates,
            list_length=config.list_length,
            scores_in_memory=config.scores_in_memory,
            progress=progress,
        )

    def blocks(self, queries: Queries, what: str) -> Iterator[Queries]:
        """The queries in blocks whose scores fit the bound, with a word to `progress` after each."""
        size = max(1, min(4096, self.scores_in_memory // max(self.items, 1)))
        for start, stop in blocks(len(queries), size):
            yield queries.take(start, stop)
            if self.progress is not None:
                self.progress(what, stop, len(queries))


@dataclass(slots=True, kw_only=True)
class Outcome:
    """The ranks of all relevant items, and the lists shown."""

    ranks: NDArray[np.int32]
    """`[r]`."""
    lists: NDArray[np.int32]
    """`[q, k]` item rows, best first; -1 where fewer were left."""
    nan_scores: int = 0
    """Scores that were no number; they rank last."""


@dataclass(slots=True, kw_only=True)
class _Parts:
    ranks: list[NDArray[np.int32]] = field(default_factory=list)
    lists: list[NDArray[np.int32]] = field(default_factory=list)
    nan_scores: int = 0

    def add(self, ranks: NDArray[np.int32], lists: NDArray[np.int32], *, nan_scores: int) -> None:
        self.ranks.append(ranks)
        self.lists.append(lists)
        self.nan_scores += nan_scores

    def outcome(self, list_length: int) -> Outcome:
        return Outcome(
            ranks=np.concatenate([np.empty(0, np.int32), *self.ranks]),
            lists=np.concatenate([np.empty((0, list_length), np.int32), *self.lists]),
            nan_scores=self.nan_scores,
        )


def answerable(queries: Queries, *, arena: Arena) -> tuple[Queries, int]:
    """The queries that can be answered right, and how many cannot: all they ask for was seen, and seen is excluded."""
    if not arena.exclude_seen:
        return queries, 0
    kept = queries.keep_pairs(~seen_pairs(queries, arena.items))
    return kept, len(queries) - len(kept)


def sampled(queries: Queries, limit: int, *, seed: int) -> Queries:
    """At most `limit` of the queries, drawn by chance; 0 keeps all."""
    if not limit or len(queries) <= limit:
        return queries
    keep = np.zeros(len(queries), bool)
    keep[np.random.default_rng(seed).choice(len(queries), limit, replace=False)] = True
    return queries.keep_queries(keep)


def run(contender: Contender, queries: Queries, *, arena: Arena) -> Outcome:
    """Rank the relevant items among all candidates of the catalogue."""
    parts = _Parts()
    for block in arena.blocks(queries, contender.name):
        scores, left, missing = score_block(contender, block, arena=arena)
        ranks = ranks_in_block(scores, block.relevant_start, relevant=block.relevant, candidates=left)
        parts.add(ranks, _shown(top_items(scores, arena.list_length), scores), nan_scores=missing)
    return parts.outcome(min(arena.list_length, arena.items))


def run_two_stage(model: TwoStageContender, queries: Queries, *, arena: Arena) -> dict[str, Outcome]:
    """Retrieval alone, retrieval followed by ranking, and the best that any ranking of the candidates could do.

    Ranking orders exactly the candidates that retrieval hands over; all items beyond them keep retrieval's order.
    """
    parts = {name: _Parts() for name in ("retrieval", "two_stage", "ceiling")}
    for block in arena.blocks(queries, model.name):
        scores, left, missing = score_block(model, block, arena=arena)
        retrieved = ranks_in_block(scores, block.relevant_start, relevant=block.relevant, candidates=left)
        candidates = top_items(scores, arena.candidates)
        valid = np.take_along_axis(scores, candidates, axis=1) > LOWEST
        final = np.array(model.rank(block, candidates), np.float32)
        unordered = np.isnan(final) & valid
        final[~valid | unordered] = LOWEST
        ranks, order = rerank(final, candidates, valid=valid, retrieved=retrieved, queries=block)
        shown = np.where(valid, candidates, -1)
        parts["retrieval"].add(retrieved, shown[:, : arena.list_length], nan_scores=missing)
        best_first = np.take_along_axis(shown, order, axis=1)
        parts["two_stage"].add(ranks, best_first[:, : arena.list_length], nan_scores=missing + int(unordered.sum()))
        ceiling = best_order(retrieved, block, candidates=arena.candidates)
        parts["ceiling"].add(ceiling, shown[:, :0], nan_scores=0)
    width = min(arena.list_length, arena.candidates, arena.items)
    return {name: found.outcome(0 if name == "ceiling" else width) for name, found in parts.items()}


def rerank(
    final: NDArray[np.float32],
    candidates: NDArray[np.int32],
    *,
    valid: NDArray[np.bool_],
    retrieved: NDArray[np.int32],
    queries: Queries,
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The final rank of each relevant item, ties counted against it, and `[q, C]` the order of the candidates.

    Args:
        final: `[q, C]` scores of the ranking, lowest where not valid.
        candidates: `[q, C]` item rows in retrieval's order.
        valid: `[q, C]` whether the candidate may be recommended.
        retrieved: `[r]` ranks by retrieval alone.
    """
    query = queries.pair_query()
    match = (candidates[query] == queries.relevant[:, None]) & valid[query]
    # An item on the edge that ties with others counts as not retrieved, as its rank says.
    inside = match.any(axis=1) & (retrieved <= candidates.shape[1])
    own = final[query, match.argmax(axis=1)]
    at_least = ((final[query] >= own[:, None]) & valid[query]).sum(axis=1)
    ranks = np.where(inside, at_least, retrieved).astype(np.int32)
    return ranks, np.argsort(-final, axis=1, kind="stable")


def best_order(retrieved: NDArray[np.int32], queries: Queries, *, candidates: int) -> NDArray[np.int32]:
    """`[r]` ranks if all relevant items among the candidates came first: the ceiling that retrieval sets."""
    query = queries.pair_query()
    order = np.lexsort((retrieved, query))
    place = np.arange(len(retrieved)) - queries.relevant_start[query] + 1
    ranks = np.empty_like(retrieved)
    ranks[order] = np.where(retrieved[order] <= candidates, place, retrieved[order])
    return ranks


def score_block(
    contender: Contender, block: Queries, *, arena: Arena
) -> tuple[NDArray[np.float32], NDArray[np.int64] | int, int]:
    """Scores with the excluded silenced, how many candidates each query has left, and scores that were no number."""
    scores = np.array(contender.score(block), np.float32, copy=None)
    if not arena.exclude_seen:
        return scores, arena.items, silence(scores, None)
    excluded = seen_items(block, items=arena.items)
    return scores, arena.items - excluded.count(len(block)), silence(scores, excluded)


def _shown(lists: NDArray[np.int32], scores: NDArray[np.float32]) -> NDArray[np.int32]:
    return np.where(np.take_along_axis(scores, lists, axis=1) > LOWEST, lists, -1)
