"""Exact ranks of relevant items among all items, and the lists that a reader would be shown.

A rank is 1 + the number of *other* items, not excluded, that score at least as much: ties count against the model, so a
constant score ends last and not first. A score that is no number ranks below every number.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from twotower.evaluation.queries import Queries, expand

LOWEST = np.float32(-np.inf)
MANY = 4
"""From this many relevant items per query on, sorting a row of scores once is cheaper than comparing per item."""

GROUP = 16
"""Items whose maximum stands for them while the best are looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Excluded:
    """The (query, item) pairs of a block that are no candidates."""

    query: NDArray[np.int64]
    item: NDArray[np.int32]

    def count(self, queries: int) -> NDArray[np.int64]:
        """`[q]` excluded items of each query, each counted once."""
        return np.bincount(self.query, minlength=queries)


def seen_items(queries: Queries, *, items: int) -> Excluded:
    """What each query's user had met before the moment of asking, each pair once.

    Args:
        items: Items in the catalogue.
    """
    log = queries.known
    query, place = expand(*log.before(queries.user, queries.timestamp))
    seen = np.zeros((len(queries), items), bool)
    seen[query, log.item[place]] = True
    rows, columns = np.divmod(np.flatnonzero(seen), max(items, 1))
    return Excluded(query=rows, item=columns.astype(np.int32))


def silence(scores: NDArray[np.float32], excluded: Excluded | None) -> int:
    """Give excluded items and scores that are no number the lowest score, in place; say how many were no number.

    Args:
        scores: `[q, I]`.
    """
    if excluded is not None:
        scores[excluded.query, excluded.item] = LOWEST
    if not np.isnan(scores.max(initial=LOWEST)):  # One cheap pass: the maximum of anything and NaN is NaN.
        return 0
    missing = np.isnan(scores)
    scores[missing] = LOWEST
    return int(missing.sum())


def ranks_in_block(
    scores: NDArray[np.float32],
    relevant_start: NDArray[np.int64],
    *,
    relevant: NDArray[np.int32],
    candidates: NDArray[np.int64] | int,
) -> NDArray[np.int32]:
    """The rank of each relevant item among the candidates of its query.

    Args:
        scores: `[q, I]` after `silence`.
        relevant_start: `[q + 1]` first pair of each query.
        relevant: `[r]` item rows, none of them excluded.
        candidates: `[q]` or one number for all: items that are not excluded. An item with the lowest score of all ties
            with the excluded ones, which no rank may count.
    """
    sizes = np.diff(relevant_start)
    query = np.repeat(np.arange(len(scores)), sizes)
    wanted = scores[query, relevant]
    if len(relevant) >= MANY * len(scores):
        at_least = _count_by_sorting(scores, relevant_start, wanted)
    else:
        at_least = np.empty(len(relevant), np.int32)
        for pair, (row, value) in enumerate(zip(query, wanted, strict=True)):
            at_least[pair] = np.count_nonzero(scores[row] >= value)
    limit = candidates if isinstance(candidates, int) else candidates[query]
    return np.minimum(at_least, limit).astype(np.int32)


def top_items(scores: NDArray[np.float32], k: int) -> NDArray[np.int32]:
    """`[q, min(k, I)]` item rows, best first; among equal scores the one further down the catalogue comes later.

    Excluded items come last, and only where fewer than `k` are left.
    """
    queries, items = scores.shape
    k = min(k, items)
    groups = items // GROUP
    if k == 0:
        return np.empty((queries, 0), np.int32)
    if groups <= k:
        return np.argsort(-scores, axis=1, kind="stable")[:, :k].astype(np.int32)
    # The k-th best of the groups' maxima bounds the k-th best item from below, and costs a sixteenth of a partition.
    best = scores[:, : groups * GROUP].reshape(queries, GROUP, groups).max(axis=1)
    bound = np.partition(best, groups - k, axis=1)[:, groups - k, None]
    row, column = np.divmod(np.flatnonzero(scores >= bound), items)
    per_row = np.bincount(row, minlength=queries)
    place = np.arange(len(row)) - np.repeat(np.cumsum(per_row) - per_row, per_row)
    columns = np.zeros((queries, int(per_row.max(initial=0))), np.int32)
    found = np.full(columns.shape, LOWEST)
    columns[row, place], found[row, place] = column, scores[row, column]
    # Padding scores lowest and stands behind every true column, so that a stable sort never prefers it.
    order = np.argsort(-found, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(columns, order, axis=1)


def embedding_ranks(
    query_embeddings: NDArray[np.float32],
    candidate_embeddings: NDArray[np.float32],
    *,
    pair_user: NDArray[np.int64],
    pair_item: NDArray[np.int64],
    seen: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
    block: int = 512,
    threads: int = 2,
) -> NDArray[np.int32]:
    """The rank of every (user, item) pair among all items by inner product: full, exact evaluation at full speed.

    `U` users, `I` items, `r` pairs.

    Args:
        query_embeddings: `[U, D]`.
        candidate_embeddings: `[I, D]`.
        pair_user: `[r]` rows of `query_embeddings`, in any order.
        pair_item: `[r]` rows of `candidate_embeddings`.
        seen: Users and items of the pairs to exclude, each pair once; no asked pair may be among them.
        block: Users scored at a time by each thread; memory is `threads * block * I` scores.
        threads: Blocks worked on at a time.
    """
    users, items = len(query_embeddings), len(candidate_embeddings)
    order, start, item = _by_user(pair_user, pair_item, users)
    _, seen_start, seen_item = _by_user(*seen, users) if seen is not None else (None, None, None)
    transposed = np.ascontiguousarray(candidate_embeddings.T)
    ranks = np.empty(len(order), np.int32)

    def work(first: int) -> None:
        last = min(first + block, users)
        scores = query_embeddings[first:last] @ transposed
        excluded = None
        if seen_start is not None and seen_item is not None:
            rows = np.repeat(np.arange(last - first), np.diff(seen_start[first : last + 1]))
            excluded = Excluded(query=rows, item=seen_item[seen_start[first] : seen_start[last]])
        silence(scores, excluded)
        left = items - excluded.count(last - first) if excluded is not None else items
        pairs = slice(start[first], start[last])
        relevant_start = start[first : last + 1] - start[first]
        ranks[pairs] = ranks_in_block(scores, relevant_start, relevant=item[pairs], candidates=left)

    # One thread a product: the pool's threads and those of the linear algebra library would fight over the processors.
    with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(0, users, block)))
    result = np.empty_like(ranks)
    result[order] = ranks
    return result


def blocks(total: int, size: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of at most `size` that cover `total`."""
    for start in range(0, total, size):
        yield start, min(start + size, total)


def _count_by_sorting(
    scores: NDArray[np.float32], relevant_start: NDArray[np.int64], wanted: NDArray[np.float32]
) -> NDArray[np.int32]:
    """How many scores of its row each wanted score does not exceed, itself among them."""
    ascending = np.sort(scores, axis=1)
    at_least = np.empty(len(wanted), np.int32)
    width = scores.shape[1]
    for row, (first, last) in enumerate(zip(relevant_start[:-1].tolist(), relevant_start[1:].tolist(), strict=True)):
        at_least[first:last] = width - ascending[row].searchsorted(wanted[first:last])
    return at_least


def _by_user(
    user: NDArray[np.int64], item: NDArray[np.int64], users: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """Pairs grouped by user: their order, the first place of each user, and the items in that order."""
    order = np.argsort(user, kind="stable")
    start = np.zeros(users + 1, np.int64)
    np.cumsum(np.bincount(user, minlength=users), out=start[1:])
    return order, start, item[order].astype(np.int32)
