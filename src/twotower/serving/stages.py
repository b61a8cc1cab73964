"""The two stages on rows and arrays: retrieve and leave out, then rank. Ids and words are the recommender's."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twotower.index.contract import Index
from twotower.model.exported import ExportedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """`n` places for each of `q` queries, best first; from `count` on they hold nothing."""

    row: NDArray[np.int64]
    """`[q, n]` catalogue rows."""
    score: NDArray[np.float32]
    """`[q, n]` what they are ordered by."""
    count: NDArray[np.int64]
    """`[q]` items found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """The best of what retrieval found, in the order of the ranking head."""

    found: Found
    """`score` is the head's."""
    retrieval_rank: NDArray[np.int64]
    """`[q, n]` place before ranking, from 1."""
    retrieval_score: NDArray[np.float32]
    """`[q, n]` inner product of the embeddings."""
    labels: dict[str, NDArray[np.float32]]
    """Label -> `[q, n]` predictions."""


def retrieve(
    index: Index, queries: NDArray[np.float32], *, candidates: int, left_out: Sequence[NDArray[np.int64]]
) -> Found:
    """The best candidates for `[q, D]` query embeddings among the items that are not left out.

    The search goes deeper by as many items as may be left out, so that `candidates` remain wherever that many exist.

    Args:
        index: Where to search.
        queries: The query embeddings.
        candidates: How many to bring.
        left_out: `q` arrays of distinct rows.
    """
    deepest = candidates + max((len(rows) for rows in left_out), default=0)
    rows, scores = index.search(queries, deepest)
    return _first_kept(rows, scores, left_out=left_out, places=candidates, items=len(index.embeddings))


def popular(
    order: NDArray[np.int64], popularity: NDArray[np.float64], *, places: int, left_out: Sequence[NDArray[np.int64]]
) -> Found:
    """The most popular items that are not left out, for `q` queries of which nothing else is known.

    Args:
        order: `[I]` rows, the most popular first.
        popularity: `[I]` by row; the score of the answer.
        places: How many to bring.
        left_out: `q` arrays of distinct rows.
    """
    deepest = places + max((len(rows) for rows in left_out), default=0)
    rows = np.tile(order[:deepest], (len(left_out), 1))
    scores = popularity[rows].astype(np.float32)
    return _first_kept(rows, scores, left_out=left_out, places=places, items=len(order))


def rank(
    model: ExportedModel,
    queries: NDArray[np.float32],
    candidates: NDArray[np.float32],
    *,
    trends: NDArray[np.float32],
    found: Found,
    places: int,
) -> Ranked:
    """The best of the retrieved candidates by the ranking head; equal scores keep retrieval's order.

    The head sees one query and one candidate at a time, so a score does not depend on what else was retrieved.

    Args:
        model: Whose head ranks.
        queries: `[q, R + M]` what the head reads of the queries.
        candidates: `[I, R]` what it reads of the items, by row.
        trends: `[I, F]` popularity and age of the items, by row.
        found: What retrieval brought.
        places: How many to keep.
    """
    answers = model.rank(queries, candidates[found.row], trends=trends[found.row])
    score = answers.pop("score")
    holds = np.arange(score.shape[1]) < found.count[:, None]
    key = np.where(holds & ~np.isnan(score), -score, np.inf)
    order = np.argsort(key, axis=1, kind="stable")[:, :places]
    lines = np.arange(len(order))[:, None]
    count = np.minimum(found.count, places)
    return Ranked(
        found=Found(row=found.row[lines, order], score=score[lines, order], count=count),
        retrieval_rank=order + 1,
        retrieval_score=found.score[lines, order],
        labels={label: values[lines, order] for label, values in answers.items()},
    )


def _first_kept(
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    *,
    left_out: Sequence[NDArray[np.int64]],
    places: int,
    items: int,
) -> Found:
    """The first `places` of each row of `[q, n]` that are not left out, in their order."""
    barred = np.concatenate(
        [np.empty(0, np.int64), *(each + np.int64(line * items) for line, each in enumerate(left_out))]
    )
    if not len(barred):
        count = np.full(len(rows), min(places, rows.shape[1]), np.int64)
        return Found(row=rows[:, :places], score=scores[:, :places], count=count)
    barred.sort()
    lines = np.arange(len(rows))[:, None]
    keys = rows + lines * items
    is_barred = barred[np.minimum(np.searchsorted(barred, keys), len(barred) - 1)] == keys
    order = np.argsort(is_barred, axis=1, kind="stable")[:, :places]
    count = np.minimum(np.count_nonzero(~is_barred, axis=1), places)
    return Found(row=rows[lines, order], score=scores[lines, order], count=count)
