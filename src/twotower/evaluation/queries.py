"""What is asked in an evaluation: who asks, when, what was known by then, and what turned out to be relevant.

Two protocols. *Successive*: every positive test interaction is a query at its own moment, with all that its user did
before; the model stays as trained while histories advance, as behind a live server. *Static*: one query per test user,
with nothing of the test part known; all that user's test items are relevant.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from twotower.data.histories import UserLog
from twotower.data.pieces import span_of
from twotower.data.split import TEST, TRAIN, VALIDATION, SplitDataset


@dataclass(frozen=True, slots=True, kw_only=True)
class Queries:
    """`q` queries in the order of user and time, and the `r` relevant (query, item) pairs of all of them."""

    user: NDArray[np.int32]
    """`[q]` user row."""
    timestamp: NDArray[np.int64]
    """`[q]` the moment of asking, microseconds since 1970."""
    log_row: NDArray[np.int64]
    """`[q]` row of the dataset whose context columns apply; -1 for none."""
    relevant_start: NDArray[np.int64]
    """`[q + 1]` first pair of each query."""
    relevant: NDArray[np.int32]
    """`[r]` item rows, distinct within a query."""
    relevant_count: NDArray[np.int32]
    """`[r]` test interactions behind each pair: more than 1 where a user met the item more than once."""
    known: UserLog
    """Everything known, positive or not. What a query may see of it is strictly earlier than its moment."""
    known_positives: UserLog
    """What a history may hold."""
    known_parts: tuple[int, ...]
    """The parts that both are of."""

    def __len__(self) -> int:
        return len(self.user)

    def take(self, start: int, stop: int) -> "Queries":
        """The queries from `start` up to but without `stop`."""
        pairs = slice(self.relevant_start[start], self.relevant_start[stop])
        return replace(
            self,
            user=self.user[start:stop],
            timestamp=self.timestamp[start:stop],
            log_row=self.log_row[start:stop],
            relevant_start=self.relevant_start[start : stop + 1] - self.relevant_start[start],
            relevant=self.relevant[pairs],
            relevant_count=self.relevant_count[pairs],
        )

    def keep_pairs(self, keep: NDArray[np.bool_]) -> "Queries":
        """Only the relevant pairs marked in `keep` `[r]`, and only the queries that still have one."""
        sizes = np.bincount(self.pair_query()[keep], minlength=len(self))
        left = sizes > 0
        return replace(
            self,
            user=self.user[left],
            timestamp=self.timestamp[left],
            log_row=self.log_row[left],
            relevant_start=_starts(sizes[left]),
            relevant=self.relevant[keep],
            relevant_count=self.relevant_count[keep],
        )

    def keep_queries(self, keep: NDArray[np.bool_]) -> "Queries":
        """Only the queries marked in `keep` `[q]`."""
        return self.keep_pairs(keep[self.pair_query()])

    def pair_query(self) -> NDArray[np.int64]:
        """`[r]` the query that each relevant pair belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.relevant_start))


def successive(dataset: SplitDataset, part: int = TEST) -> Queries:
    """Every positive interaction of the part, asked for at its own moment with all earlier ones known."""
    rows = np.flatnonzero((dataset.part == part) & dataset.positive)
    known = tuple(earlier for earlier in (TRAIN, VALIDATION, TEST) if earlier <= part)
    return _one_per_row(dataset, rows, known=known)


def static(dataset: SplitDataset, part: int = TEST) -> Queries:
    """One query per user of the part, asked with only the earlier parts known.

    The moment is the start of the part under a split by time, elsewhere just after the user's last interaction of this
    part and those before. Context columns apply where that last interaction is all that is asked for.
    """
    rows = np.flatnonzero((dataset.part == part) & dataset.positive)
    rows = rows[np.argsort(dataset.user[rows], kind="stable")]
    items = max(len(dataset.item_ids), 1)
    pairs, count = np.unique(dataset.user[rows].astype(np.int64) * items + dataset.item[rows], return_counts=True)
    owner, item = np.divmod(pairs, items)
    user, first, tests = np.unique(dataset.user[rows], return_index=True, return_counts=True)
    if dataset.metadata.get("protocol") == "time":
        moment, log_row = np.full(len(user), _part_start(dataset, part)), np.full(len(user), -1)
    else:
        last = np.full(len(dataset.user_ids), np.iinfo(np.int64).min)
        before = dataset.part <= part
        np.maximum.at(last, dataset.user[before], dataset.timestamp[before])
        moment, log_row = last[user] + 1, np.where(tests == 1, rows[first], -1)
    known = tuple(earlier for earlier in (TRAIN, VALIDATION) if earlier < part)
    return Queries(
        user=user.astype(np.int32),
        timestamp=moment,
        log_row=log_row,
        relevant_start=_starts(np.unique(owner, return_counts=True)[1]),
        relevant=item.astype(np.int32),
        relevant_count=count.astype(np.int32),
        known=dataset.user_log(*known),
        known_positives=dataset.user_log(*known, positives_only=True),
        known_parts=known,
    )


def labelled(dataset: SplitDataset, rows: NDArray[np.int64]) -> Queries:
    """One query per dataset row named, positive or not: what the ranking heads are asked to predict.

    Under a split by time the test part counts as known up to the moment; elsewhere only the earlier parts do.
    """
    by_time = dataset.metadata.get("protocol") == "time"
    return _one_per_row(dataset, rows, known=(TRAIN, VALIDATION, TEST) if by_time else (TRAIN, VALIDATION))


def seen_pairs(queries: Queries, items: int) -> NDArray[np.bool_]:
    """`[r]` whether the user had met the relevant item before asking for it.

    Args:
        items: Items in the catalogue.
    """
    log = queries.known
    key = np.repeat(np.arange(len(log.start) - 1), np.diff(log.start)) * items + log.item
    # The log is ordered by time within a user, so a stable sort puts the earliest meeting first.
    keys, first = np.unique(key, return_index=True)
    if not len(keys):
        return np.zeros(len(queries.relevant), bool)
    query = queries.pair_query()
    wanted = queries.user[query].astype(np.int64) * items + queries.relevant
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    seen: NDArray[np.bool_] = (keys[place] == wanted) & (log.timestamp[first[place]] < queries.timestamp[query])
    return seen


def expand(first: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ranges written out: for each place from `first[i]` up to but without `end[i]`, `i` and the place."""
    sizes = end - first
    owner = np.repeat(np.arange(len(first)), sizes)
    return owner, np.arange(len(owner)) + np.repeat(first - (np.cumsum(sizes) - sizes), sizes)


def _one_per_row(dataset: SplitDataset, rows: NDArray[np.int64], *, known: tuple[int, ...]) -> Queries:
    rows = rows[np.lexsort((dataset.timestamp[rows], dataset.user[rows]))]
    return Queries(
        user=dataset.user[rows],
        timestamp=dataset.timestamp[rows],
        log_row=rows,
        relevant_start=np.arange(len(rows) + 1),
        relevant=dataset.item[rows],
        relevant_count=np.ones(len(rows), np.int32),
        known=dataset.user_log(*known),
        known_positives=dataset.user_log(*known, positives_only=True),
        known_parts=known,
    )


def _part_start(dataset: SplitDataset, part: int) -> int:
    cut = dataset.metadata.get("cut_us")
    if part == TEST and cut is not None:
        return int(cut)
    return span_of(dataset.whole or dataset, part)[0]


def _starts(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    starts = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=starts[1:])
    return starts
