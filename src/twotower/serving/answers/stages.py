"""What the two stages make of rows and arrays: leave out, then rank. Ids and words are the recommender's."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twotower.model.exported import ExportedModel

RANKED_AT_ONCE = 1 << 12
"""Candidates in one call of the ranking head. More take longer each, as what the head makes of them leaves the cache:
measured .36 ms a query at 32,000 candidates a call, .19 ms at 100 to 4,000. The memory that a call takes is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """`n` places for each of `q` queries, best first; from `count` on they hold nothing."""

    row: NDArray[np.int64]
    """`[q, n]` catalogue rows."""
    score: NDArray[np.float32]
    """`[q, n]` what they are ordered by."""
    count: NDArray[np.int64]
    """`[q]` items found."""

    def first(self, places: int) -> "Found":
        """No more than the first places."""
        return Found(row=self.row[:, :places], score=self.score[:, :places], count=np.minimum(self.count, places))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """What retrieval found, in the order of the ranking head."""

    found: Found
    """`score` is the head's."""
    retrieval_rank: NDArray[np.int64]
    """`[q, n]` place before ranking, from 1."""
    retrieval_score: NDArray[np.float32]
    """`[q, n]` inner product of the embeddings."""
    labels: dict[str, NDArray[np.float32]]
    """Label -> `[q, n]` predictions."""


def rank(
    model: ExportedModel,
    queries: NDArray[np.float32],
    candidates: NDArray[np.float32],
    *,
    trends: NDArray[np.float32],
    found: Found,
) -> Ranked:
    """The retrieved candidates in the order of the ranking head; equal scores keep retrieval's order.

    The head sees one query and one candidate at a time, so a score does not depend on what else was retrieved.

    Args:
        model: Whose head ranks.
        queries: `[q, R + M]` what the head reads of the queries.
        candidates: `[q, n, R]` what it reads of the items found.
        trends: `[q, n, F]` popularity and age of the items found.
        found: What retrieval brought.
    """
    width = max(1, RANKED_AT_ONCE // max(1, len(queries)))
    parts = [
        model.rank(queries, candidates[:, first : first + width], trends=trends[:, first : first + width])
        for first in range(0, max(1, candidates.shape[1]), width)
    ]
    answers = (
        {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]} if parts[1:] else parts[0]
    )
    score = answers.pop("score")
    holds = np.arange(score.shape[1]) < found.count[:, None]
    key = np.where(holds & ~np.isnan(score), -score, np.inf)
    order = np.argsort(key, axis=1, kind="stable")
    lines = np.arange(len(order))[:, None]
    return Ranked(
        found=Found(row=found.row[lines, order], score=score[lines, order], count=found.count),
        retrieval_rank=order + 1,
        retrieval_score=found.score[lines, order],
        labels={label: values[lines, order] for label, values in answers.items()},
    )


def first_kept(
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    *,
    left_out: Sequence[NDArray[np.int64]],
    places: int,
    items: int,
) -> Found:
    """The first `places` of each row of `[q, n]` that are not left out, in their order.

    Args:
        rows: Catalogue rows, best first.
        scores: What they are ordered by.
        left_out: `q` arrays of distinct rows.
        places: How many to keep.
        items: Above every row.
    """
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
