"""Split -> the arrays that training steps and evaluation draw on, and how a batch is gathered from them.

`gather_history` runs on NumPy and on JAX alike, so that a query is put together by the same lines wherever it is asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twotower.data.examples import EVERYTHING, Reads, Rows, Shared, history_rows
from twotower.data.feature_encoders import DAY, PADDING, SECOND, Inputs
from twotower.data.fitted_features import FittedFeatures
from twotower.data.histories import UserLog
from twotower.data.pieces import rows_of
from twotower.data.split import TRAIN, SplitDataset
from twotower.data.trends import Trends


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryArrays:
    """Every history in one array: a query reads the `length` places before its own, newest first."""

    rows: NDArray[np.int32]
    """`[m]` rows of the item vocabulary; -1 for an item that training did not meet."""
    seconds: NDArray[np.int64]
    """`[m]` whole seconds since 1970."""

    @classmethod
    def from_log(cls, log: UserLog, *, features: FittedFeatures, item_ids: NDArray[np.object_]) -> "HistoryArrays":
        """Number a log's items by the vocabulary that embeds them."""
        return cls(rows=history_rows(features, item_ids)[log.item], seconds=log.timestamp // SECOND)


def gather_history(
    xp: ModuleType, rows: Any, seconds: Any, *, first: Any, end: Any, now: Any, length: int
) -> dict[str, Any]:
    """The history inputs of `q` queries: the last `length` places of `first` up to but without `end`.

    Args:
        xp: `numpy` or `jax.numpy`, whichever the arrays are of.
        rows: `[m]` as in `HistoryArrays`.
        seconds: `[m]` likewise.
        first: `[q]` first place of each query's user.
        end: `[q]` first place that is no longer before the query.
        now: `[q]` the query's moment, on the clock of `seconds`.
        length: Places read.
    """
    place = end[:, None] - 1 - xp.arange(length, dtype=end.dtype)[None, :]
    valid = place >= first[:, None]
    place = xp.where(valid, place, 0)
    found = rows[place] if len(rows) else xp.full(place.shape, PADDING, np.int32)
    age = (now[:, None] - seconds[place]) if len(rows) else xp.zeros(place.shape, np.int32)
    return {
        "history_items": xp.where(valid, found, PADDING),
        "history_days": xp.where(valid, age / DAY, 0.0).astype(np.float32),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryArrays:
    """What the queries of one data set are put together from, with one log as what is known."""

    users: Inputs
    """`[U, ...]` inputs that stay with the user."""
    context: Inputs
    """`[n, ...]` inputs that come with each interaction."""
    blank: Inputs
    """`[1, ...]` the same where nothing is known of the context."""
    features: FittedFeatures
    log: UserLog
    history: HistoryArrays | None
    length: int

    @classmethod
    def build(cls, dataset: SplitDataset, features: FittedFeatures, *, log: UserLog) -> "QueryArrays":
        """Encode the users and contexts once, for any number of queries."""
        history = features.history
        context = features.context_inputs(dataset.context, dataset.timestamp)
        blank = features.query_inputs(columns={}, timestamp=np.zeros(1, np.int64), history=[([], [])])
        return cls(
            users=features.user_inputs(dataset.users),
            context=context,
            blank={key: blank[key] for key in context},
            features=features,
            log=log,
            history=HistoryArrays.from_log(log, features=features, item_ids=dataset.item_ids) if history else None,
            length=history.config.length if history else 0,
        )

    def inputs(self, user: NDArray[np.int32], timestamp: NDArray[np.int64], *, log_row: NDArray[np.int64]) -> Inputs:
        """The query tower's inputs for `q` queries by users of the data set.

        Args:
            user: `[q]` user rows.
            timestamp: `[q]` moments in microseconds.
            log_row: `[q]` the interaction whose context applies; -1 for none, whose columns then count as missing.
        """
        inputs = {key: values[user] for key, values in self.users.items()}
        for key, values in self.context.items():
            unknown = (log_row < 0).reshape(-1, *[1] * (values.ndim - 1))
            inputs[key] = np.where(unknown, self.blank[key], values[np.maximum(log_row, 0)])
        for encoder in self.features.query:
            if encoder.column == "timestamp" and encoder.column not in self.features.user_columns:
                inputs[encoder.key] = encoder.encode(timestamp)
        if self.history is not None:
            first, end = self.log.before(user, timestamp)
            rows, seconds = self.history.rows, self.history.seconds
            now = timestamp // SECOND
            inputs |= gather_history(np, rows, seconds, first=first, end=end, now=now, length=self.length)
        return inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingArrays:
    """The train part as arrays that a step gathers its batch from: `n` examples, `T` items that they name."""

    users: Inputs
    """`[U, ...]` inputs that stay with the user."""
    context: Inputs
    """`[n, ...]` inputs that come with each example."""
    items: Inputs
    """`[T, ...]` the candidate tower's inputs."""
    user: NDArray[np.int32]
    item: NDArray[np.int32]
    """`[n]` place of the item in `items`."""
    second: NDArray[np.int32]
    """`[n]` the example's moment, in seconds since the train part's first: four bytes, as JAX counts; empty where no
    step reads it."""
    first: NDArray[np.int32]
    end: NDArray[np.int32]
    """`[n]` the example's history: places `first` up to but without `end`, all strictly earlier than the example. These
    and the next four are empty where no step reads histories."""
    last: NDArray[np.int32]
    """`[n]` first place that is no longer the example's user's: `first` up to here is all that the user met."""
    history_rows: NDArray[np.int32]
    history_seconds: NDArray[np.int32]
    met: NDArray[np.int32]
    """`[m]` place in `items` of what stands at each place of the log."""
    trends: Trends | None
    """Popularity and age of all items of the catalogue, as known at each moment of the train part; None where no step
    reads them."""
    snapshot: NDArray[np.int32]
    """`[n]` the snapshot of `trends` that the example may see; empty without."""
    labels: NDArray[np.float32]
    """`[n, L]` in the order of the ranking head's labels; NaN where missing."""
    positive: NDArray[np.bool_]
    """`[n]` whether retrieval should bring the item."""
    appeared: NDArray[np.int32]
    """`[T]` when the item was first met, on the clock of `second`."""
    probability: NDArray[np.float32]
    """`[T]` the item's share of the examples: the chance that one in-batch draw is this item."""
    catalogue_row: NDArray[np.int32]
    """`[T]` where each item stands in the catalogue."""

    @classmethod
    def build(
        cls,
        dataset: SplitDataset,
        features: FittedFeatures,
        *,
        labels: Sequence[NDArray[np.float32]],
        reads: Reads = EVERYTHING,
    ) -> "TrainingArrays":
        """Gather everything from the train part: nothing here depends on what the other parts hold.

        Args:
            dataset: All parts.
            features: Fitted on the train part.
            labels: The ranking head's labels in its order, each over the whole log; NaN where missing.
            reads: What the model's steps read; the rest is not built.

        Raises:
            DataError: the train part is empty, holds no positive, or spans more than 68 years.
        """
        shared = Shared.build(dataset, features, reads=reads)
        train = np.flatnonzero(dataset.part == TRAIN)
        rows = Rows(
            user=dataset.user[train],
            item=dataset.item[train],
            timestamp=dataset.timestamp[train],
            positive=dataset.positive[train],
            labels=[label[train] for label in labels],
            context=rows_of(dataset.context, train),
        )
        return cls.of(shared, shared.examples_of(rows))

    @classmethod
    def of(cls, shared: Shared, examples: Mapping[str, Any]) -> "TrainingArrays":
        """Put together what belongs to users and items and what `Shared.examples_of` gives."""
        return cls(**shared.fields(), **examples)
