"""What training examples are made of: what belongs to users and items, and what to each part of the log.

The whole train part is one such part where it fits the memory; elsewhere each shard of it, with whole users, is one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twotower.data.feature_encoders import PADDING, SECOND, Inputs
from twotower.data.fitted_features import FittedFeatures
from twotower.data.histories import UserLog
from twotower.data.pieces import pieces, trends_of
from twotower.data.split import TRAIN, SplitDataset
from twotower.data.trends import Trends
from twotower.errors import DataError

PER_PLACE = ("history_rows", "history_seconds", "met")
"""Arrays of `examples_of` with a number for each place of the log; the others have one for each example."""
PLACES = ("first", "end", "last")
"""Arrays of `examples_of` that name places of the log."""
HISTORY = frozenset((*PER_PLACE, *PLACES))
"""Arrays of `examples_of` that are empty where no step reads histories."""
_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """What a model's steps read beside the interactions themselves; what none reads is not built."""

    histories: bool = True
    """What the users met before, for the query tower or to keep it from being a negative."""
    trends: bool = True
    """Popularity and age of the items, for the ranking head."""
    moments: bool = True
    """When each example was, for histories or to leave out items that had not appeared by then."""

    def include(self, name: str) -> bool:
        """Whether the array of this name is filled; it is empty otherwise."""
        if name in HISTORY:
            return self.histories
        return {"snapshot": self.trends, "second": self.moments}.get(name, True)


EVERYTHING = Reads()
"""For whoever checks what is built."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """`n` interactions of the train part, in the order of time, with all that their users did there."""

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    """`[n]` rows of the data set's users and items."""
    timestamp: NDArray[np.int64]
    positive: NDArray[np.bool_]
    labels: Sequence[NDArray[np.float32]]
    """Each `[n]`, in the order of the ranking head's labels."""
    context: pa.Table
    """`n` rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What belongs to users and items, found by going through the train part piece by piece."""

    features: FittedFeatures
    users: Inputs
    """`[U', ...]` of the users in the train part."""
    user_place: NDArray[np.int32]
    """`[U]` the place of each of the data set's users in `users`."""
    items: Inputs
    """`[T, ...]` of the items in the train part."""
    item_place: NDArray[np.int32]
    """`[I]` the place of each item of the catalogue in `items`; `PADDING` where it has none."""
    history_row: NDArray[np.int32]
    """`[I]` row of the vocabulary that embeds histories; `PADDING` where it has none."""
    catalogue_row: NDArray[np.int32]
    appeared: NDArray[np.int32]
    probability: NDArray[np.float32]
    """`[T]` each, as in `TrainingArrays`."""
    reads: Reads
    trends: Trends | None
    """None where no step reads them."""
    origin: int
    """The train part's first second."""
    by_order: bool
    """Whether a positive's history ends where it stands itself, as where the last one of each user is taken out."""
    rows: NDArray[np.int64]
    """`[U]` train interactions of each user."""

    @classmethod
    def build(cls, dataset: SplitDataset, features: FittedFeatures, *, reads: Reads = EVERYTHING) -> "Shared":
        """Count the train part.

        Args:
            dataset: All parts.
            features: Fitted on the train part.
            reads: What is left out is not built.

        Raises:
            DataError: the train part is empty, holds no positive, or spans more than 68 years.
        """
        counted = _count(dataset)
        if not counted.positives:
            raise DataError(
                f"train part: {int(counted.users.sum())} interactions, none positive. Loosen prepare.positives."
            )
        refuse_long_span(counted.first, counted.last)
        people, catalogue_row = np.flatnonzero(counted.users), np.flatnonzero(counted.items)
        users = features.user_inputs(dataset.users)
        return cls(
            features=features,
            users={key: values[people] for key, values in users.items()},
            user_place=_places(people, size=len(dataset.user_ids)),
            items=features.candidate_inputs(dataset.items.take(catalogue_row)),
            item_place=_places(catalogue_row, size=len(dataset.item_ids)),
            history_row=history_rows(features, dataset.item_ids),
            reads=reads,
            catalogue_row=catalogue_row.astype(np.int32),
            appeared=(counted.appeared[catalogue_row] - counted.first).astype(np.int32),
            probability=(counted.items[catalogue_row] / counted.items.sum()).astype(np.float32),
            trends=trends_of(dataset, TRAIN) if reads.trends else None,
            origin=counted.first,
            by_order=dataset.metadata.get("protocol") == "last_out",
            rows=counted.users,
        )

    def examples_of(self, rows: Rows) -> dict[str, Any]:
        """The arrays of `TrainingArrays` that belong to the rows given, places counted from their own first one."""
        user, timestamp = rows.user, rows.timestamp
        second = timestamp // SECOND
        labels = np.stack(rows.labels, axis=1) if rows.labels else np.zeros((len(user), 0), np.float32)
        return self._histories(rows) | {
            "context": self.features.context_inputs(rows.context, timestamp),
            "user": self.user_place[user],
            "item": self.item_place[rows.item],
            "second": (second - self.origin).astype(np.int32) if self.reads.moments else np.zeros(0, np.int32),
            "snapshot": self.trends.snapshot_at(second) if self.trends else np.zeros(0, np.int32),
            "labels": labels,
            "positive": rows.positive,
        }

    def _histories(self, rows: Rows) -> dict[str, Any]:
        """The arrays of `HISTORY`."""
        if not self.reads.histories:
            return dict.fromkeys(HISTORY, np.zeros(0, np.int32))
        users = len(self.user_place)
        positive, user, timestamp = rows.positive, rows.user, rows.timestamp
        log = UserLog.from_columns(user[positive], rows.item[positive], timestamp[positive], users=users)
        first, end = log.before(user, timestamp)
        if self.by_order:
            end = _by_order(rows, end=end)
        return {
            "first": first.astype(np.int32),
            "end": end.astype(np.int32),
            "last": log.start[user + 1].astype(np.int32),
            "history_rows": self.history_row[log.item],
            "history_seconds": (log.timestamp // SECOND - self.origin).astype(np.int32),
            "met": self.item_place[log.item],
        }

    def fields(self) -> Mapping[str, Any]:
        """The arrays of `TrainingArrays` that belong to users and items."""
        names = ("users", "items", "catalogue_row", "appeared", "probability", "trends")
        return {name: getattr(self, name) for name in names}


def refuse_long_span(first: int, last: int) -> None:
    """Tell where four bytes of seconds do not reach from the first moment to the last.

    Raises:
        DataError: more than 68 years lie between.
    """
    if last - first >= 2**31:
        years = [np.datetime64(moment, "s").astype("datetime64[Y]") for moment in (first, last)]
        raise DataError(
            f"train part: interactions from {years[0]} to {years[1]} span more than 68 years. "
            "Mend the timestamps, or drop the rows by prepare.filter."
        )


@dataclass(slots=True, kw_only=True)
class _Counted:
    users: NDArray[np.int64]
    items: NDArray[np.int64]
    appeared: NDArray[np.int64]
    """`[I]` first second of each item."""
    positives: int = 0
    first: int = _NEVER
    last: int = -_NEVER


def _count(dataset: SplitDataset) -> _Counted:
    """One pass over the train part."""
    users, items = len(dataset.user_ids), len(dataset.item_ids)
    found = _Counted(
        users=np.zeros(users, np.int64), items=np.zeros(items, np.int64), appeared=np.full(items, _NEVER, np.int64)
    )
    for piece in pieces(len(dataset.user)):
        train = dataset.part[piece] == TRAIN
        if not train.any():
            continue
        item, second = dataset.item[piece][train], dataset.timestamp[piece][train] // SECOND
        found.users += np.bincount(dataset.user[piece][train], minlength=users)
        found.items += np.bincount(item, minlength=items)
        np.minimum.at(found.appeared, item, second)
        found.positives += int((dataset.positive[piece] & train).sum())
        found.first, found.last = min(found.first, int(second.min())), max(found.last, int(second.max()))
    return found


def _places(rows: NDArray[np.int64], *, size: int) -> NDArray[np.int32]:
    places = np.full(size, PADDING, np.int32)
    places[rows] = np.arange(len(rows), dtype=np.int32)
    return places


def history_rows(features: FittedFeatures, item_ids: NDArray[np.object_]) -> NDArray[np.int32]:
    """`[I]` rows of the vocabulary that embeds histories; `PADDING` where it has none."""
    if features.history is None:
        return np.full(len(item_ids), PADDING, np.int32)
    rows = features.history.items.rows(pa.array(item_ids, pa.string()))
    return np.where(rows > 0, rows, PADDING).astype(np.int32)


def _by_order(rows: Rows, *, end: NDArray[np.int64]) -> NDArray[np.int64]:
    """`[n]` where each example's history ends if order alone counts, as in the protocol that takes the last one out.

    A positive ends its own history, so that of several at one instant each sees those before it, in the order of the
    file. The others see what is strictly earlier: `end`.
    """
    positives = np.flatnonzero(rows.positive)
    order = np.lexsort((rows.timestamp[positives], rows.user[positives]))
    place = np.empty(len(positives), np.int64)
    place[order] = np.arange(len(positives))
    found = end.copy()
    found[positives] = place
    return found
