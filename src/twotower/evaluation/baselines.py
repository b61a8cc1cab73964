"""What a model has to beat: popularity, recent popularity, item-kNN and EASE, each learned from the train part alone.

Under the successive protocol the histories that item-kNN and EASE read advance with every query, and the window of
recent popularity moves on, as for every other contender. `ials` and `markov` hold two more, `tuning` the box of all.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray

from twotower.data.pieces import count_rows
from twotower.data.split import TRAIN, SplitDataset
from twotower.evaluation.contenders import Contender
from twotower.evaluation.queries import Queries, expand

FADED = 0.01
"""An item of a history that counts for less than this is forgotten, which bounds the work per query."""
DENSE_ITEMS = 10_000
"""Above this catalogue no weights are kept for every pair of items: they would not fit the memory."""


def train_popularity(dataset: SplitDataset) -> NDArray[np.int64]:
    """`[I]` positive train interactions of each item."""
    return count_rows(dataset.whole or dataset, TRAIN, by="item", positives_only=True)


def train_matrix(dataset: SplitDataset) -> sparse.csr_array:
    """`[U, I]` 1 where a user met an item positively in the train part, in compressed rows."""
    dataset = dataset.whole or dataset
    rows = (dataset.part == TRAIN) & dataset.positive
    shape = (len(dataset.user_ids), len(dataset.item_ids))
    ones = np.ones(int(rows.sum()), np.float32)
    matrix = sparse.csr_array((ones, (dataset.user[rows], dataset.item[rows])), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class Popularity:
    """Everybody gets what most people took in the train part."""

    counts: NDArray[np.int64]
    """`[I]`."""
    name: str = "popularity"

    def score(self, queries: Queries) -> NDArray[np.float32]:
        return np.repeat(self.counts.astype(np.float32)[None, :], len(queries), axis=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentPopularity:
    """Everybody gets what was taken most among the last interactions before the moment of asking."""

    item: NDArray[np.int32]
    """`[n]` positive interactions known to the protocol, in the order of time."""
    timestamp: NDArray[np.int64]
    """`[n]` microseconds since 1970."""
    items: int
    window: int
    """Interactions looked back at."""
    name: str = "recent_popularity"

    @classmethod
    def of(cls, dataset: SplitDataset, *parts: int, window: int) -> "RecentPopularity":
        """The window moves over the parts named."""
        dataset = dataset.whole or dataset
        rows = np.isin(dataset.part, parts) & dataset.positive
        return cls(
            item=dataset.item[rows], timestamp=dataset.timestamp[rows], items=len(dataset.item_ids), window=window
        )

    def score(self, queries: Queries) -> NDArray[np.float32]:
        end = np.searchsorted(self.timestamp, queries.timestamp, side="left")
        order = np.argsort(end, kind="stable")
        end = end[order]
        first = np.maximum(end - self.window, 0)
        # In the order of time each query's counts are those of the one before, plus what entered, minus what left.
        changes = np.zeros((len(queries), self.items), np.float32)
        changes[0] = np.bincount(self.item[first[0] : end[0]], minlength=self.items)
        for edge, sign in ((end, 1.0), (first, -1.0)):
            row, place = expand(edge[:-1], edge[1:])
            np.add.at(changes, (row + 1, self.item[place]), np.float32(sign))
        accumulate(changes)
        scores = np.empty_like(changes)
        scores[order] = changes
        return scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """A contender that reads histories; whoever has none gets what most people took, and not a tie of all items."""

    contender: Contender
    popularity: Popularity

    @property
    def name(self) -> str:
        return self.contender.name

    def score(self, queries: Queries) -> NDArray[np.float32]:
        scores = self.contender.score(queries)
        first, end = queries.known_positives.before(queries.user, queries.timestamp)
        scores[first == end] = self.popularity.counts
        return scores


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemWeights:
    """A linear item-to-item model: an item's score is the sum of its weights from the items of the history."""

    name: str
    weights: sparse.csr_array | NDArray[np.float32]
    """`[I, I]`: row = item of the history, column = item scored."""
    decay: float = 1.0
    """What an item counts for with each step that it is older than the latest; 1 forgets nothing."""

    def score(self, queries: Queries) -> NDArray[np.float32]:
        if self.decay < 1:
            product = faded_histories(queries, items=self.weights.shape[0], decay=self.decay) @ self.weights
            faded: NDArray[np.float32] = product.toarray() if sparse.issparse(product) else product
            return faded
        changes, starts = history_changes(queries, items=self.weights.shape[0])
        product = changes @ self.weights
        scores: NDArray[np.float32] = product.toarray() if sparse.issparse(product) else product
        for first, end in zip(starts, [*starts[1:], len(queries)], strict=True):
            accumulate(scores[first:end])
        return scores


def history_changes(queries: Queries, *, items: int) -> tuple[sparse.csr_array, list[int]]:
    """What each query's history holds beyond that of the query before: sums over histories then cost what is new.

    Returns:
        `[q, I]` counts of new items, and the queries whose history is given whole: the first of each user, and any
        whose history is shorter than that of the query before.
    """
    first, end = queries.known_positives.before(queries.user, queries.timestamp)
    whole = np.ones(len(queries), bool)
    whole[1:] = (queries.user[1:] != queries.user[:-1]) | (end[1:] < end[:-1])
    begin = first.copy()
    begin[1:] = np.where(whole[1:], first[1:], end[:-1])
    row, place = expand(begin, end)
    new = _first_meetings(queries, end)[place]
    row, item = row[new], queries.known_positives.item[place[new]]
    changes = sparse.csr_array((np.ones(len(row), np.float32), (row, item)), shape=(len(queries), items))
    return changes, np.flatnonzero(whole).tolist()


def faded_histories(queries: Queries, *, items: int, decay: float) -> sparse.csr_array:
    """`[q, I]` what each item of a query's history counts for: `decay ** age`, 1 for the latest, at most 1 in all.

    Args:
        items: Items in the catalogue.
        decay: In (0, 1]. What would count for less than `FADED` is left out.
    """
    first, end = queries.known_positives.before(queries.user, queries.timestamp)
    if decay < 1:
        first = np.maximum(first, end - math.ceil(math.log(FADED) / math.log(decay)))
    query, place = expand(first, end)
    weight = (decay ** (end[query] - 1 - place)).astype(np.float32)
    held = sparse.csr_array((weight, (query, queries.known_positives.item[place])), shape=(len(queries), items))
    held.sum_duplicates()
    np.minimum(held.data, 1.0, out=held.data)
    return held


def quick(model: ItemWeights) -> ItemWeights:
    """The same model, its weights written out for every pair of items where most products are faster so."""
    weights, items = model.weights, model.weights.shape[0]
    if isinstance(weights, np.ndarray) or items > DENSE_ITEMS or weights.nnz * 32 < items * items:
        return model
    return replace(model, weights=weights.toarray())


def item_knn(matrix: sparse.csr_array, *, neighbours: int, shrinkage: float, cells: int = 8_000_000) -> ItemWeights:
    """Item-kNN: cosine between the items' users, shrunk where few users stand behind it.

    Similarity of items with `a` and `b` users, `c` in common: `c / (sqrt(a b) + shrinkage)`; only the nearest
    `neighbours` of each item count.

    Args:
        matrix: `[U, I]` of zeros and ones.
        cells: Similarities held at a time.

    Source:
        Deshpande and Karypis, "Item-based top-N recommendation algorithms", ACM TOIS 2004,
        https://doi.org/10.1145/963770.963776
    """
    columns = matrix.tocsc()
    users = np.sqrt(np.diff(columns.indptr)).astype(np.float32)
    transposed = columns.T.tocsr()
    parts = []
    block = max(1, cells // max(matrix.shape[1], 1))
    for start in range(0, matrix.shape[1], block):
        rows = transposed[start : start + block]
        common = (rows @ matrix).toarray()
        norms = users[start : start + block, None] * users[None, :] + np.float32(shrinkage)
        similarity = np.divide(common, norms, out=np.zeros_like(common), where=norms > 0)
        own = np.arange(len(similarity))
        similarity[own, own + start] = 0.0
        if neighbours < similarity.shape[1]:
            least = -np.partition(-similarity, neighbours - 1, axis=1)[:, neighbours - 1 : neighbours]
            similarity[similarity < least] = 0.0
        parts.append(sparse.csr_array(similarity))
    # A column of the block's rows holds an item's neighbours: histories hold neighbours, so they must be the rows.
    return ItemWeights(name="item_knn", weights=sparse.vstack(parts).T.tocsr())


def ease(matrix: sparse.csr_array, *, l2: float) -> ItemWeights:
    """EASE: the linear item-to-item model with no weight from an item to itself, in closed form.

    Args:
        matrix: `[U, I]` of zeros and ones.
        l2: Ridge penalty.

    Source:
        Steck, "Embarrassingly shallow autoencoders for sparse data", WWW 2019, https://doi.org/10.1145/3308558.3313710
    """
    gram = np.asarray((matrix.T @ matrix).toarray(), np.float64)
    own = np.arange(len(gram))
    gram[own, own] += l2
    inverse = np.linalg.inv(gram)
    weights = inverse / -np.diag(inverse)
    weights[own, own] = 0.0
    return ItemWeights(name="ease", weights=weights.astype(np.float32))


def accumulate(rows: NDArray[np.float32]) -> None:
    """Add to each row all rows before it, in place: row by row, eight times as fast as `cumsum` down the columns."""
    for place in range(1, len(rows)):
        rows[place] += rows[place - 1]


def _first_meetings(queries: Queries, end: NDArray[np.int64]) -> NDArray[np.bool_]:
    """`[n]` over the places of the log of positives: whether the user meets the item there for the first time.

    A history is a set of items here, as in training. Only the places that the queries can see are worked out.
    """
    log = queries.known_positives
    users, owner = np.unique(queries.user, return_inverse=True)
    last = np.zeros(len(users), np.int64)
    np.maximum.at(last, owner, end)
    holder, place = expand(log.start[users], np.maximum(last, log.start[users]))
    flags = np.zeros(len(log.item), bool)
    key = holder * (int(log.item.max(initial=0)) + 1) + log.item[place]
    flags[place[np.unique(key, return_index=True)[1]]] = True
    return flags
